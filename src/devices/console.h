// A serial port's way out of the worker: SerialOutput writes to the log and to the console's client on a thread of its
// own, so that no vCPU ever waits for a file or a socket; ConsoleServer lets one client at a time attach to the port.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "devices/bound_socket.h"
#include "devices/device.h"

namespace fvmm::devices {

inline constexpr std::uint64_t kLogBytesMax = 16 * kMiB;             // then one old file is kept as "<log>.1"
inline constexpr std::size_t kConsoleRingBytes = 64 * kKiB;          // what a newly attached client sees first
inline constexpr std::size_t kOutputBufferBytesMax = kMiB;           // between the guest and the writer thread
inline constexpr std::size_t kConsoleInputBytesMax = 4096;           // read from a client and not yet taken
inline constexpr std::chrono::milliseconds kConsoleRetry{50};        // while the guest has no room for input
inline constexpr std::chrono::milliseconds kConsoleStopFlush{1000};  // for the last output when the sink is destroyed

/// The sink of one serial port. Owner: the worker's machine; outlives the port and the ConsoleServer.
class SerialOutput final : public OutputSink {
 public:
  struct Options {
    std::filesystem::path log;  // appended to; its directory exists; empty: no log
    std::uint64_t log_bytes_max = kLogBytesMax;
    std::size_t buffer_bytes_max = kOutputBufferBytesMax;
  };
  /// Opens the log and starts the writer thread. kIo, kPermissionDenied, kNotFound when the log cannot be opened.
  static Result<std::unique_ptr<SerialOutput>> create(Options options);
  ~SerialOutput() override;  // flushes within kConsoleStopFlush, then stops the thread
  SerialOutput(const SerialOutput&) = delete;
  SerialOutput& operator=(const SerialOutput&) = delete;
  SerialOutput(SerialOutput&&) = delete;
  SerialOutput& operator=(SerialOutput&&) = delete;

  /// Appends to the buffer; what does not fit is dropped and counted. Thread: any. Never waits for I/O.
  void emit(std::span<const std::byte> bytes) override;

  /// Waits until everything emitted before the call was written. kDeadlineExceeded. Thread: any but the writer.
  Status flush(const Deadline& deadline);

  /// Sends the ring's content and then all further output to a stream socket; replaces an earlier client. Thread: any.
  void attach(UniqueFd client);
  void detach();

  [[nodiscard]] std::uint64_t total_bytes() const;           // emitted by the guest, dropped ones included
  [[nodiscard]] std::uint64_t dropped_bytes() const;         // the buffer was full
  [[nodiscard]] std::uint64_t client_dropped_bytes() const;  // a client was too slow
  [[nodiscard]] std::uint64_t log_lost_bytes() const;        // the log could not be written
  [[nodiscard]] std::string recent() const;                  // the last kConsoleRingBytes written

 private:
  explicit SerialOutput(Options options);
  void run();
  void write_out(std::span<const std::byte> bytes, std::optional<UniqueFd> new_client);
  void remember(std::span<const std::byte> bytes);
  void log(std::span<const std::byte> bytes);
  Status open_log();
  Status rotate_log();
  void send_to_client(std::span<const std::byte> bytes);

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable work_;        // the writer waits: output, a new client, or the end
  std::condition_variable written_;     // flush() waits
  std::vector<std::byte> buffer_;       // mutex_
  std::optional<UniqueFd> new_client_;  // mutex_; an empty descriptor detaches
  std::string ring_;                    // mutex_; at most 2 * kConsoleRingBytes
  std::uint64_t accepted_bytes_ = 0;    // mutex_
  std::uint64_t written_bytes_ = 0;     // mutex_
  std::uint64_t dropped_bytes_ = 0;     // mutex_
  bool stopping_ = false;               // mutex_
  std::atomic<std::uint64_t> client_dropped_bytes_{0};
  std::atomic<std::uint64_t> log_lost_bytes_{0};
  UniqueFd log_;                 // writer thread
  std::uint64_t log_bytes_ = 0;  // writer thread
  bool log_failed_ = false;      // writer thread; the failure was reported
  UniqueFd client_;              // writer thread
  std::thread writer_;
};

/// A unix stream socket (mode 0660) onto one serial port: what a client types goes to the port, what the guest says
/// goes to the client. One client at a time; the next is told so and closed. Owner: the worker.
class ConsoleServer {
 public:
  /// Takes input from the front and returns how many bytes it took; what it leaves is offered again later. Runs on the
  /// server's thread, e.g. `auto guard = bus.lock(); return serial.push_input(bytes);`.
  using Input = std::function<std::size_t(std::span<const std::byte>)>;

  /// Listens at `path` (at most 107 bytes, unix(7)); a socket left there by a dead process is replaced. `output`
  /// outlives the server. Errors of BoundSocket.
  static Result<std::unique_ptr<ConsoleServer>> start(const std::filesystem::path& path, SerialOutput& output,
                                                      Input input);
  ~ConsoleServer();
  ConsoleServer(const ConsoleServer&) = delete;
  ConsoleServer& operator=(const ConsoleServer&) = delete;
  ConsoleServer(ConsoleServer&&) = delete;
  ConsoleServer& operator=(ConsoleServer&&) = delete;

  /// Closes the client and the socket, removes the path, ends the thread. A second call does nothing. Thread: the
  /// owner.
  void stop();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] bool has_client() const { return has_client_.load(); }
  [[nodiscard]] std::uint64_t refused_clients() const { return refused_clients_.load(); }
  [[nodiscard]] std::uint64_t input_dropped_bytes() const { return input_dropped_bytes_.load(); }  // client left first

 private:
  ConsoleServer(std::filesystem::path path, SerialOutput& output, Input input);
  void run();
  bool accept_client();  // false: out of descriptors or memory, try again later
  void serve_client(short events);
  void take_leave();
  bool read_input();  // false: the client is gone
  void offer_input();
  void drop_client();

  const std::filesystem::path path_;
  SerialOutput& output_;
  const Input input_;
  BoundSocket listener_;                // server thread, once it runs
  UniqueFd stop_;                       // eventfd
  UniqueFd client_;                     // server thread
  std::vector<std::byte> input_bytes_;  // server thread; at most kConsoleInputBytesMax
  bool input_ended_ = false;            // server thread; the client has shut down its sending side
  std::atomic<bool> has_client_{false};
  std::atomic<std::uint64_t> refused_clients_{0};
  std::atomic<std::uint64_t> input_dropped_bytes_{0};
  std::thread thread_;
};

}  // namespace fvmm::devices
