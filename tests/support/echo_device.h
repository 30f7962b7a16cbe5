// A virtio device with three queues that gives back what it is sent, out of order and late: for the transport and its
// queues, which no real device uses in every way. Serves on the caller's thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <span>
#include <vector>

#include "devices/virtio_device.h"

namespace fvmm::testing {

class EchoDevice final : public devices::VirtioDevice {
 public:
  static constexpr std::size_t kHeld = 3;  // requests of a queue that wait for their answer

  [[nodiscard]] std::uint32_t type() const override { return 43; }
  [[nodiscard]] std::uint64_t features() const override { return 0b1011; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override {
    static constexpr std::array<std::uint16_t, 3> kSizes{64, 16, 1024};
    return kSizes;
  }
  [[nodiscard]] std::size_t config_bytes() const override { return config_.size(); }
  void read_config(std::uint64_t offset, std::span<std::byte> out) override {
    std::memcpy(out.data(), config_.data() + offset, out.size());
  }
  void write_config(std::uint64_t offset, std::span<const std::byte> in) override {
    std::memcpy(config_.data() + offset, in.data(), in.size());
    if (driver_.signals != nullptr) driver_.signals->config_changed();
  }
  void activate(const Driver& driver) override { driver_ = driver; }
  void notify(unsigned queue) override { serve(queue, kHeld); }
  void reset() override {
    driver_ = {};
    for (auto& held : held_) held.clear();
  }
  Status quiesce(const Deadline&) override {
    for (unsigned queue = 0; queue < driver_.queues.size(); ++queue) {
      answer(queue, 0);
      driver_.queues[queue].interrupt();
    }
    return {};
  }
  void resume() override {
    for (unsigned queue = 0; queue < driver_.queues.size(); ++queue) serve(queue, kHeld);
  }
  [[nodiscard]] devices::DeviceState save() const override {
    return {.version = 1, .bytes = {config_.begin(), config_.end()}};
  }
  Status load(const devices::DeviceState& state) override {
    if (state.version != 1 || state.bytes.size() != config_.size()) {
      return Error(Errc::kInvalidArgument, "not an echo device's state");
    }
    std::ranges::copy(state.bytes, config_.begin());
    return {};
  }

 private:
  void serve(unsigned index, std::size_t hold) {
    devices::Virtqueue& queue = driver_.queues[index];
    devices::Chain chain;
    unsigned taken = 0;
    for (auto left = queue.arm(); left > 0 && queue.pop(chain); --left) {
      held_.at(index).push_back(chain);
      if (++taken % 4 == 0) {  // thinks better of it, once
        held_.at(index).pop_back();
        queue.unpop();
        if (queue.pop(chain)) held_.at(index).push_back(chain);
      }
    }
    answer(index, hold);
    if (index == 1) queue.disarm();
    queue.interrupt();
  }
  /// Until `hold` are left; the newest goes first.
  void answer(unsigned index, std::size_t hold) {
    auto& held = held_.at(index);
    std::vector<std::byte> bytes;
    while (held.size() > hold) {
      const devices::Chain chain = std::move(held.back());
      held.pop_back();
      bytes.resize(std::min<std::uint64_t>(chain.readable_bytes(), 8192));
      bytes.resize(chain.read(0, bytes));
      driver_.queues[index].push(chain, static_cast<std::uint32_t>(chain.write(0, bytes)));
    }
  }

  Driver driver_;
  std::array<std::byte, 24> config_{};
  std::array<std::deque<devices::Chain>, 3> held_;
};

}  // namespace fvmm::testing
