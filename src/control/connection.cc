#include "control/connection.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "control/unix_socket.h"

namespace fvmm::control {
namespace {
constexpr int kFramesPerTurn = 16;  // then other connections have their turn
}  // namespace

Connection::Connection(asio::io_context& io, UniqueFd socket, const PeerCredentials& peer, ConnectionOwner& owner,
                       std::chrono::milliseconds frame_wait_max)
    : io_(io),
      peer_(peer),
      owner_(owner),
      frame_wait_max_(frame_wait_max),
      socket_until_start_(std::move(socket)),
      fd_(socket_until_start_.get()),
      stream_(io),
      timer_(io) {}

Status Connection::start() {
  AsioError error;
  stream_.assign(fd_, error);
  if (error) return Error(Errc::kIo, "epoll for a control connection", error.value());
  (void)socket_until_start_.release();  // stream_ owns it now
  wait_readable();
  return {};
}

void Connection::wake() {
  { const std::lock_guard lock(mutex_); }  // a sender between its check and its wait holds the lock
  room_.notify_all();
}

void Connection::refuse(const Error& error) {
  push(encode_error(kConnectionCall, error));
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;  // the calls under way here are cancelled, and their answers dropped
  }
  room_.notify_all();
  drain();
}

void Connection::drain() {
  if (draining_ || !stream_.is_open()) return;
  stop_reading();
  draining_ = true;
  timing_ = false;
  bool empty = false;
  {
    const std::lock_guard lock(mutex_);
    empty = output_.empty();
  }
  if (empty) return close();
  timer_.expires_after(kFlushWaitMax);
  timer_.async_wait([self = shared_from_this()](const AsioError& error) {
    if (!error) self->close();
  });
}

bool Connection::begin_call(std::uint64_t call) {
  const std::lock_guard lock(mutex_);
  return calls_.insert(call).second;
}

void Connection::end_call(std::uint64_t call) {
  const std::lock_guard lock(mutex_);
  calls_.erase(call);
}

Status Connection::wait_for_room(const Deadline& deadline, const std::atomic<bool>& stopping) {
  std::unique_lock lock(mutex_);
  const auto done = [&] { return gone_ || stopping || output_bytes_ < kOutputBytesMax; };
  const bool in_time = room_.wait_until(lock, deadline.at(), done);
  if (gone_) return Error(Errc::kCancelled, "the client is gone");
  if (output_bytes_ < kOutputBytesMax) return {};
  if (in_time) return Error(Errc::kCancelled, "the server is stopping");
  return Error(Errc::kDeadlineExceeded, "the client does not read its answers");
}

void Connection::push(std::string frame) {
  bool start_writer = false;
  {
    const std::lock_guard lock(mutex_);
    if (gone_) return;
    output_bytes_ += frame.size();
    output_.push_back(std::move(frame));
    if (writing_ || !write_locked() || output_.empty()) return;
    start_writer = writing_ = true;
  }
  if (start_writer) asio::post(io_, [self = shared_from_this()] { self->wait_writable(); });
}

void Connection::abandon() {
  const std::lock_guard lock(mutex_);
  fail_locked();
}

/// Writes until the socket is full or nothing is left. False when the client is gone.
bool Connection::write_locked() {
  while (!output_.empty()) {
    const std::string_view rest = std::string_view(output_.front()).substr(output_offset_);
    const ssize_t sent = send_some(fd_, rest);
    if (sent < 0) {
      if (errno == EAGAIN) return true;
      fail_locked();
      return false;
    }
    output_offset_ += static_cast<std::size_t>(sent);
    output_bytes_ -= static_cast<std::size_t>(sent);
    if (output_offset_ < output_.front().size()) continue;
    output_.pop_front();
    output_offset_ = 0;
  }
  return true;
}

/// The client is gone: whoever waits learns it here; the io thread sees the end of the stream and closes.
void Connection::fail_locked() {
  output_.clear();
  output_bytes_ = output_offset_ = 0;
  if (gone_.exchange(true)) return;
  if (fd_ >= 0) ::shutdown(fd_, SHUT_RDWR);
  room_.notify_all();
}

void Connection::wait_readable() {
  stream_.async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this()](const AsioError& error) {
    if (!error) self->on_readable();
  });
}

void Connection::wait_writable() {
  if (!stream_.is_open()) return;
  stream_.async_wait(asio::posix::stream_descriptor::wait_write, [self = shared_from_this()](const AsioError& error) {
    if (!error) self->on_writable();
  });
}

void Connection::on_writable() {
  bool more = false;
  bool failed = false;
  bool room = false;
  {
    const std::lock_guard lock(mutex_);
    failed = !write_locked();
    more = writing_ = !failed && !output_.empty();
    room = output_bytes_ < kOutputBytesMax;
  }
  if (failed || (draining_ && !more)) return close();
  if (more) wait_writable();
  if (!room) return;
  room_.notify_all();
  if (std::exchange(paused_, false)) wait_readable();
}

void Connection::on_readable() {
  for (int frames = 0; reading_ && frames < kFramesPerTurn; ++frames) {
    switch (reader_.read(stream_.native_handle())) {
      case FrameReader::Step::kFrame:
        handle_frame();
        break;
      case FrameReader::Step::kBlocked:
        time_frame();
        return wait_readable();
      case FrameReader::Step::kEnd:
        return close();
      case FrameReader::Step::kTooLong:
        return refuse(Error(Errc::kInvalidArgument, fmt::format("a frame of {} bytes; at most {} are accepted",
                                                                reader_.length(), kRpcFrameBytesMax)));
    }
  }
  if (!reading_) return;
  {
    const std::lock_guard lock(mutex_);
    paused_ = output_bytes_ >= kOutputBytesMax;
  }
  if (!paused_) wait_readable();
}

void Connection::handle_frame() {
  if (std::exchange(timing_, false)) timer_.cancel();
  owner_.received(shared_from_this(), reader_.take());
}

/// A request that stops halfway must not hold one of the few connections for ever.
void Connection::time_frame() {
  if (timing_ || !reader_.underway()) return;
  timing_ = true;
  timer_.expires_after(frame_wait_max_);
  timer_.async_wait([self = shared_from_this()](const AsioError& error) {
    if (error || !self->timing_) return;
    self->refuse(Error(Errc::kDeadlineExceeded, "the rest of a frame did not come"));
  });
}

void Connection::close() {
  if (!stream_.is_open()) return;
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    fd_ = -1;
    AsioError ignored;
    stream_.close(ignored);
  }
  room_.notify_all();
  timer_.cancel();
  owner_.closed(shared_from_this());
}

}  // namespace fvmm::control
