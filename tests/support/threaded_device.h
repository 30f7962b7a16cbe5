// A virtio device with a thread of its own: fills what it is given with 0xee. The contract's other half, tried on
// something small.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/deadline_mutex.h"
#include "base/unique_fd.h"
#include "devices/virtio_device.h"

namespace fvmm::testing {

class ThreadedDevice final : public devices::VirtioDevice {
 public:
  ThreadedDevice() : event_(::eventfd(0, EFD_CLOEXEC)), thread_([this] { run(); }) {}
  ~ThreadedDevice() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake();
    thread_.join();
  }
  ThreadedDevice(const ThreadedDevice&) = delete;
  ThreadedDevice& operator=(const ThreadedDevice&) = delete;
  ThreadedDevice(ThreadedDevice&&) = delete;
  ThreadedDevice& operator=(ThreadedDevice&&) = delete;

  [[nodiscard]] std::uint32_t type() const override { return 42; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override {
    static constexpr std::array<std::uint16_t, 1> kSizes{32};
    return kSizes;
  }
  void activate(const Driver& driver) override {
    const std::lock_guard lock(mutex_);
    driver_ = driver;
  }
  void notify(unsigned) override {
    ++notified;
    wake();
  }
  void reset() override {
    const std::lock_guard lock(mutex_);
    driver_ = {};
  }
  Status quiesce(const Deadline& deadline) override {
    const std::unique_lock lock(mutex_, deadline.at());
    if (!lock) return Error(Errc::kDeadlineExceeded, "the device's thread is busy");
    quiet_ = true;
    return {};
  }
  void resume() override {
    {
      const std::lock_guard lock(mutex_);
      quiet_ = false;
    }
    wake();
  }
  [[nodiscard]] devices::DeviceState save() const override { return {.version = 1, .bytes = {}}; }
  Status load(const devices::DeviceState& state) override {
    if (state.version == 1 && state.bytes.empty()) return {};
    return Error(Errc::kInvalidArgument, "a threaded device has no state");
  }
  [[nodiscard]] int doorbell(unsigned) const override { return event_.get(); }

  /// Holds the thread where it is, in the middle of its work as far as anybody can tell.
  [[nodiscard]] std::unique_lock<DeadlineMutex> busy() { return std::unique_lock(mutex_); }
  int notified = 0;  // calls of notify(), so: notifications that were exits

 private:
  void wake() {
    const std::uint64_t one = 1;
    FVMM_CHECK(::write(event_.get(), &one, sizeof one) == sizeof one, "an eventfd takes a 1");
  }
  void run() {
    for (;;) {
      std::uint64_t count = 0;
      FVMM_CHECK(::read(event_.get(), &count, sizeof count) == sizeof count, "an eventfd gives 8 bytes");
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      if (!quiet_ && !driver_.queues.empty()) serve(driver_.queues[0]);
    }
  }
  void serve(devices::Virtqueue& queue) {
    while (auto left = queue.arm()) {
      for (; left > 0 && queue.pop(chain_); --left) {
        const std::vector<std::byte> fill(chain_.writable_bytes(), std::byte{0xee});
        queue.push(chain_, static_cast<std::uint32_t>(chain_.write(0, fill)));
      }
      queue.interrupt();
    }
  }

  UniqueFd event_;
  DeadlineMutex mutex_;    // the thread holds it while it has the queues
  Driver driver_;          // mutex_
  bool quiet_ = true;      // mutex_
  bool stopping_ = false;  // mutex_
  devices::Chain chain_;   // thread
  std::thread thread_;
};

}  // namespace fvmm::testing
