// A network backend in memory: what the guest sends is kept, and what tests push waits until the guest takes it.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "devices/net_backend.h"

namespace fvmm::testing {

using Frame = std::vector<std::byte>;  // with the virtio header

/// The test's end. Thread: any.
class Wire {
 public:
  void push(Frame frame) {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(frame));
    const std::uint64_t one = 1;
    FVMM_CHECK(::write(readable_.get(), &one, sizeof one) == sizeof one, "an eventfd takes a 1");
  }
  /// How many of those that were pushed nobody has read.
  [[nodiscard]] std::size_t waiting() const {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }
  /// All that was sent, once there are so many; fewer at the deadline.
  std::vector<Frame> sent(std::size_t count) const {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, Deadline::after(std::chrono::seconds(30)).at(), [&] { return sent_.size() >= count; });
    return sent_;
  }
  [[nodiscard]] devices::NetOffloads offloads() const {
    const std::lock_guard lock(mutex_);
    return offloads_;
  }
  [[nodiscard]] bool closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  friend class WireBackend;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  UniqueFd readable_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)};  // as often as frames wait
  std::deque<Frame> waiting_;
  std::vector<Frame> sent_;
  devices::NetOffloads offloads_;
  bool closed_ = false;
};

/// The device's end.
class WireBackend final : public devices::NetBackend {
 public:
  WireBackend(std::shared_ptr<Wire> wire, bool offloads) : wire_(std::move(wire)), offloads_(offloads) {}
  [[nodiscard]] bool offloads() const override { return offloads_; }
  Status set_offloads(const devices::NetOffloads& offloads) override {
    const std::lock_guard lock(wire_->mutex_);
    wire_->offloads_ = offloads;
    return {};
  }
  [[nodiscard]] int fd() const override { return wire_->readable_.get(); }
  std::optional<std::size_t> receive(std::span<std::byte> out) override {
    const std::lock_guard lock(wire_->mutex_);
    if (wire_->waiting_.empty()) return std::nullopt;
    std::uint64_t one = 0;
    FVMM_CHECK(::read(wire_->readable_.get(), &one, sizeof one) == sizeof one, "as often as frames wait");
    const Frame frame = std::move(wire_->waiting_.front());
    wire_->waiting_.pop_front();
    std::ranges::copy(frame, out.begin());
    return frame.size();
  }
  void discard_waiting() override {}
  void emit(std::span<const std::byte> frame) override {
    const std::lock_guard lock(wire_->mutex_);
    wire_->sent_.emplace_back(frame.begin(), frame.end());
    wire_->changed_.notify_all();
  }
  void close() override {
    const std::lock_guard lock(wire_->mutex_);
    wire_->closed_ = true;
  }

 private:
  const std::shared_ptr<Wire> wire_;
  const bool offloads_;
};

/// A frame to `destination` with a payload that its number tells from others; `bytes` without the virtio header: of
/// fewer than an address has, so many of its bytes.
inline Frame frame_to(const std::array<std::uint8_t, 6>& destination, std::size_t bytes, unsigned number = 0) {
  Frame frame(devices::kNetHeaderBytes + bytes);
  for (std::size_t i = devices::kNetHeaderBytes; i < frame.size(); ++i) {
    frame[i] = static_cast<std::byte>((i * 7 + number) % 251);
  }
  for (std::size_t i = 0; i < std::min(bytes, destination.size()); ++i) {
    frame[devices::kNetHeaderBytes + i] = static_cast<std::byte>(destination.at(i));
  }
  return frame;
}

}  // namespace fvmm::testing
