#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "control/asio.h"
#include "control/frame_reader.h"
#include "control/server.h"

namespace fvmm::control {

inline constexpr std::size_t kOutputBytesMax = 1024 * 1024;       // waiting for a slow client; past it senders block
inline constexpr std::chrono::milliseconds kFlushWaitMax{1'000};  // last words to a client before closing

class Connection;

/// What a connection tells its server, on the io thread.
class ConnectionOwner {
 public:
  ConnectionOwner() = default;
  ConnectionOwner(const ConnectionOwner&) = delete;
  ConnectionOwner& operator=(const ConnectionOwner&) = delete;
  ConnectionOwner(ConnectionOwner&&) = delete;
  ConnectionOwner& operator=(ConnectionOwner&&) = delete;
  virtual void received(const std::shared_ptr<Connection>& connection, Incoming&& frame) = 0;
  virtual void closed(const std::shared_ptr<Connection>& connection) = 0;

 protected:
  ~ConnectionOwner() = default;
};

/// One client's socket. Reading, timers and closing happen on the io thread; answers are written straight from the
/// thread that has them, and what the socket does not take at once is queued for the io thread. Owners: server and
/// calls.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(asio::io_context& io, UniqueFd socket, const PeerCredentials& peer, ConnectionOwner& owner,
             std::chrono::milliseconds frame_wait_max);

  // Thread: io.
  Status start();
  /// Reads no more requests; those under way go on.
  void stop_reading() { reading_ = false; }
  /// Wakes senders that block for a slow client, so that they look at whether they still should.
  void wake();
  /// Sends an error about the connection itself and closes it once that is written.
  void refuse(const Error& error);
  /// Closes once everything queued is written, or after kFlushWaitMax.
  void drain();

  // Thread: any.
  [[nodiscard]] bool gone() const { return gone_.load(); }
  [[nodiscard]] const PeerCredentials& peer() const { return peer_; }
  /// Notes a call under way; false when that number already is.
  [[nodiscard]] bool begin_call(std::uint64_t call);
  void end_call(std::uint64_t call);
  /// Waits until the queue takes another frame. kCancelled: the client is gone or `stopping`; kDeadlineExceeded: too
  /// slow.
  Status wait_for_room(const Deadline& deadline, const std::atomic<bool>& stopping);
  /// Writes or queues one whole frame; never blocks. Dropped when the client is gone.
  void push(std::string frame);
  /// Gives up on a client that does not read.
  void abandon();

 private:
  void wait_readable();
  void wait_writable();
  void on_readable();
  void on_writable();
  void handle_frame();
  void time_frame();
  void close();
  void fail_locked();
  bool write_locked();

  asio::io_context& io_;
  const PeerCredentials peer_;
  ConnectionOwner& owner_;
  const std::chrono::milliseconds frame_wait_max_;
  UniqueFd socket_until_start_;
  int fd_;                                 // mutex_ for writing while !gone_; closed by the io thread under mutex_
  asio::posix::stream_descriptor stream_;  // io thread
  asio::steady_timer timer_;               // io thread

  // Reading: io thread.
  bool reading_ = true;
  bool paused_ = false;  // the client does not read its answers, so we do not read its requests
  bool timing_ = false;  // timer_ runs for the frame under way
  bool draining_ = false;
  FrameReader reader_;

  std::mutex mutex_;
  std::condition_variable room_;
  std::deque<std::string> output_;  // mutex_
  std::size_t output_bytes_ = 0;    // mutex_; in output_, not yet written
  std::size_t output_offset_ = 0;   // mutex_; of the first frame, already written
  bool writing_ = false;            // mutex_; the io thread waits for the socket to take more
  std::set<std::uint64_t> calls_;   // mutex_
  std::atomic<bool> gone_{false};   // set under mutex_
};

}  // namespace fvmm::control
