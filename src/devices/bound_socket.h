// A unix stream socket with a name in the file system: made with its mode, taken away with its owner.
#pragma once

#include <sys/types.h>

#include <filesystem>

#include "base/result.h"
#include "base/unique_fd.h"

namespace fvmm::devices {

/// Owner: a server. Thread: one at a time.
class BoundSocket {
 public:
  /// Binds, mode 0660; nobody can connect before listen(). A socket that a dead process left there is replaced.
  /// kInvalidArgument: a path longer than unix(7) allows. kAlreadyExists: no socket, or somebody listens. kIo.
  static Result<BoundSocket> bind(std::filesystem::path path);
  BoundSocket() = default;
  ~BoundSocket() { close(); }
  BoundSocket(BoundSocket&& other) noexcept { *this = std::move(other); }
  BoundSocket& operator=(BoundSocket&& other) noexcept;
  BoundSocket(const BoundSocket&) = delete;
  BoundSocket& operator=(const BoundSocket&) = delete;

  /// kAborted: somebody else has the path by now.
  Status listen(int backlog);
  /// A connection, non-blocking and close-on-exec; empty: none waits. kResourceExhausted: no descriptors or memory
  /// left.
  Result<UniqueFd> accept();
  /// Closes it, and takes its name away if it still is this one's. A second call does nothing.
  void close();

  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(socket_); }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  [[nodiscard]] bool named() const;

  std::filesystem::path path_;
  UniqueFd socket_;
  dev_t device_ = 0;  // of the name's inode
  ino_t inode_ = 0;
};

/// Connects to who listens at `path`, without waiting: non-blocking, close-on-exec. kInvalidArgument: too long.
/// kUnavailable: nobody listens there, or does not take connections now. kIo.
Result<UniqueFd> connect_to_path(const std::filesystem::path& path);

/// Takes a socket away at which nobody listens any more; nothing there is fine. kAlreadyExists: no socket, or somebody
/// listens. kIo.
Status remove_dead_socket(const std::filesystem::path& path);

}  // namespace fvmm::devices
