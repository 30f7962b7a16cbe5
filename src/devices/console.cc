// SerialOutput: from the guest's bytes to the log and the console's client.
#include "devices/console.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/check.h"
#include "base/file.h"

namespace fvmm::devices {

SerialOutput::SerialOutput(Options options) : options_(std::move(options)) {}

Result<std::unique_ptr<SerialOutput>> SerialOutput::create(Options options) {
  FVMM_CHECK(options.log_bytes_max > 0, "a log has room for a byte");
  std::unique_ptr<SerialOutput> output(new SerialOutput(std::move(options)));
  if (!output->options_.log.empty()) FVMM_TRY(output->open_log(), "serial log");
  output->writer_ = std::thread([raw = output.get()] { raw->run(); });
  ::pthread_setname_np(output->writer_.native_handle(), "fvmm-serial");
  return output;
}

SerialOutput::~SerialOutput() {
  if (!writer_.joinable()) return;
  if (const Status flushed = flush(Deadline::after(kConsoleStopFlush)); !flushed) {
    spdlog::warn("serial output lost at the end: {}", flushed.error().message());
  }
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_one();
  writer_.join();
}

void SerialOutput::emit(std::span<const std::byte> bytes) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    const std::size_t taken = std::min(bytes.size(), options_.buffer_bytes_max - buffer_.size());
    wake = buffer_.empty() && taken > 0;
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
    accepted_bytes_ += taken;
    dropped_bytes_ += bytes.size() - taken;
  }
  if (wake) work_.notify_one();  // otherwise the writer is awake, or was woken for what is there already
}

Status SerialOutput::flush(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  const std::uint64_t target = accepted_bytes_;
  if (written_.wait_until(lock, deadline.at(), [&] { return written_bytes_ >= target; })) return {};
  return Error(Errc::kDeadlineExceeded, fmt::format("{} bytes of serial output unwritten", target - written_bytes_));
}

void SerialOutput::attach(UniqueFd client) {
  {
    const std::lock_guard lock(mutex_);
    new_client_ = std::move(client);
  }
  work_.notify_one();
}

void SerialOutput::detach() {
  attach(UniqueFd());
}

void SerialOutput::run() {
  std::vector<std::byte> bytes;
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stopping_ || !buffer_.empty() || new_client_; });
    if (stopping_) return;
    std::optional<UniqueFd> new_client = std::exchange(new_client_, std::nullopt);
    bytes.clear();
    bytes.swap(buffer_);
    lock.unlock();
    write_out(bytes, std::move(new_client));
    lock.lock();
    written_bytes_ += bytes.size();
    written_.notify_all();
  }
}

// A new client gets the ring as it was before these bytes, then these bytes: nothing twice, nothing missing.
void SerialOutput::write_out(std::span<const std::byte> bytes, std::optional<UniqueFd> new_client) {
  if (new_client) {
    client_ = std::move(*new_client);
    const std::string before = recent();
    send_to_client(as_bytes(before));
  }
  remember(bytes);
  log(bytes);
  send_to_client(bytes);
}

void SerialOutput::remember(std::span<const std::byte> bytes) {
  const std::span<const std::byte> last = bytes.last(std::min(bytes.size(), kConsoleRingBytes));
  const std::lock_guard lock(mutex_);
  ring_.append(reinterpret_cast<const char*>(last.data()), last.size());
  // Twice the size before the front is cut off: a byte is then moved once, not once per byte that follows it.
  if (ring_.size() > 2 * kConsoleRingBytes) ring_.erase(0, ring_.size() - kConsoleRingBytes);
}

std::string SerialOutput::recent() const {
  const std::lock_guard lock(mutex_);
  return ring_.substr(ring_.size() - std::min(ring_.size(), kConsoleRingBytes));
}

// A slow client loses bytes; it never slows the log, the other threads, or the guest.
void SerialOutput::send_to_client(std::span<const std::byte> bytes) {
  while (client_ && !bytes.empty()) {
    const ssize_t sent = ::send(client_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      if (errno != EAGAIN) client_.reset();  // gone; the console server notices by itself
      client_dropped_bytes_.fetch_add(bytes.size(), std::memory_order_relaxed);
      return;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
}

void SerialOutput::log(std::span<const std::byte> bytes) {
  if (options_.log.empty()) return;
  while (!bytes.empty()) {
    Status done;
    if (log_bytes_ >= options_.log_bytes_max) done = rotate_log();
    if (done && !log_) done = open_log();
    const auto room = options_.log_bytes_max - std::min(log_bytes_, options_.log_bytes_max);
    const auto part = bytes.first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), room)));
    if (done) done = write_all(log_.get(), part, log_bytes_);
    if (!done) {
      log_lost_bytes_.fetch_add(bytes.size(), std::memory_order_relaxed);
      if (!log_failed_) spdlog::error("serial log {}: {}", options_.log.string(), done.error().message());
      log_failed_ = true;
      return;
    }
    log_failed_ = false;
    log_bytes_ += part.size();
    bytes = bytes.subspan(part.size());
  }
}

Status SerialOutput::open_log() {
  UniqueFd file = FVMM_TRY(open_file(options_.log, O_WRONLY | O_CREAT, 0640));
  const off_t end = ::lseek(file.get(), 0, SEEK_END);
  if (end < 0) return Error(Errc::kIo, "lseek", errno);
  log_ = std::move(file);
  log_bytes_ = static_cast<std::uint64_t>(end);
  return {};
}

Status SerialOutput::rotate_log() {
  std::filesystem::path old = options_.log;
  old += ".1";
  std::error_code error;
  std::filesystem::rename(options_.log, old, error);
  if (error) return Error(Errc::kIo, "rename to " + old.string(), error.value());
  log_.reset();
  log_bytes_ = 0;
  return open_log();
}

std::uint64_t SerialOutput::total_bytes() const {
  const std::lock_guard lock(mutex_);
  return accepted_bytes_ + dropped_bytes_;
}

std::uint64_t SerialOutput::dropped_bytes() const {
  const std::lock_guard lock(mutex_);
  return dropped_bytes_;
}

std::uint64_t SerialOutput::client_dropped_bytes() const {
  return client_dropped_bytes_.load(std::memory_order_relaxed);
}

std::uint64_t SerialOutput::log_lost_bytes() const {
  return log_lost_bytes_.load(std::memory_order_relaxed);
}

}  // namespace fvmm::devices
