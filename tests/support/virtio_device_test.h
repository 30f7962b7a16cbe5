// One virtio device of every kind, with memory and a driver, for tests that all of them must pass.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <thread>

#include "support/virtio_kinds.h"

namespace fvmm::testing {

class EveryVirtioDevice : public ::testing::TestWithParam<VirtioKind> {
 protected:
  static constexpr std::chrono::seconds kAnswerWait{30};

  EveryVirtioDevice() { specimen->device.resume(); }
  [[nodiscard]] devices::VirtioMmio& device() const { return specimen->device; }

  /// The buffer of request number `index`, 64 bytes of its own.
  [[nodiscard]] Descriptor request_at(unsigned index) const {
    return {.address = kDriverBuffers + 64ULL * index, .bytes = 64, .flags = GetParam().buffer_flags};
  }
  /// The next answer; devices with a thread need a moment. Nothing at the deadline.
  std::optional<VirtioDriver::Used> answer() {
    const Deadline deadline = Deadline::after(kAnswerWait);
    for (;;) {
      if (auto used = driver.take_used(GetParam().queue)) return used;
      if (deadline.passed()) return std::nullopt;
      std::this_thread::yield();
    }
  }
  /// Request `index` is answered as a whole.
  void expect_answer(std::uint16_t index) {
    driver.send(GetParam().queue, index, request_at(index));
    const auto used = answer();
    ASSERT_TRUE(used.has_value()) << "no answer";
    EXPECT_EQ(used->head, index);
    EXPECT_EQ(used->bytes, GetParam().buffer_flags != 0 ? 64U : 0U);
  }
  void expect_needs_reset() {
    const Deadline deadline = Deadline::after(kAnswerWait);
    while (!driver.needs_reset() && !deadline.passed()) std::this_thread::yield();
    EXPECT_TRUE(driver.needs_reset());
    settle();
  }
  /// Whatever was begun is finished, its interrupt included.
  void settle() {
    ASSERT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok());
    device().resume();
  }
  /// Quiesces and saves; the device goes on.
  devices::DeviceState saved() {
    EXPECT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok());
    devices::DeviceState state = device().save();
    device().resume();
    return state;
  }
  /// The guest goes on with a new device of that state; the old one is gone.
  void move_with(const devices::DeviceState& state) {
    auto there = std::make_unique<VirtioSpecimen>(GetParam(), *memory);
    ASSERT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok());
    const Status loaded = there->device.load(state);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message();
    specimen = std::move(there);
    driver.move_to(specimen->device);
    specimen->device.resume();
  }

  std::unique_ptr<memory::GuestMemory> memory = small_memory();
  std::unique_ptr<VirtioSpecimen> specimen = std::make_unique<VirtioSpecimen>(GetParam(), *memory);
  VirtioDriver driver{specimen->device, *memory};
};

}  // namespace fvmm::testing
