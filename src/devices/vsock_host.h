// The host's side of a vsock device: programs connect to a unix socket at PATH to reach the guest, and listen at
// PATH_PORT to be reached by it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/bound_socket.h"

namespace fvmm::devices {

inline constexpr std::size_t kVsockPathBytesMax = 107 - sizeof("_4294967295") + 1;  // unix(7), with any port behind it

/// Owner: the device. Thread: the device's, or whoever has taken the device from it; path() is for any.
class VsockHost {
 public:
  VsockHost() = default;
  virtual ~VsockHost() = default;
  VsockHost(const VsockHost&) = delete;
  VsockHost& operator=(const VsockHost&) = delete;
  VsockHost(VsockHost&&) = delete;
  VsockHost& operator=(VsockHost&&) = delete;

  [[nodiscard]] virtual std::string path() const = 0;
  /// The VM may run here: from now on programs can connect. A second call does nothing.
  virtual Status listen() = 0;
  /// To poll for accept(); -1: it does not listen.
  [[nodiscard]] virtual int fd() const = 0;
  /// A program that has connected, as a non-blocking stream socket; empty: none. kResourceExhausted: try later.
  virtual Result<UniqueFd> accept() = 0;
  /// Connects to the program behind a port, without waiting. Errors: there is none, or it does not take it now.
  virtual Result<UniqueFd> connect(std::uint32_t port) = 0;
  /// Nobody can connect any more, and the path is gone.
  virtual void close() = 0;
};

class UnixVsockHost final : public VsockHost {
 public:
  /// Takes the path; nobody can connect before listen(). Errors of BoundSocket; kInvalidArgument: longer than
  /// kVsockPathBytesMax.
  static Result<std::unique_ptr<UnixVsockHost>> bind(const std::filesystem::path& path);

  [[nodiscard]] std::string path() const override { return socket_.path().string(); }
  Status listen() override;
  [[nodiscard]] int fd() const override { return listens_ ? socket_.fd() : -1; }
  Result<UniqueFd> accept() override { return socket_.accept(); }
  Result<UniqueFd> connect(std::uint32_t port) override;
  void close() override { socket_.close(); }

 private:
  explicit UnixVsockHost(BoundSocket socket) : socket_(std::move(socket)) {}

  BoundSocket socket_;
  bool listens_ = false;
};

}  // namespace fvmm::devices
