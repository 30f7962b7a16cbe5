// A virtio device under chosen registers, rings, descriptors, requests, host input, pauses, moves and damaged states.
// One machine is only paused, the other moves each time; nobody can tell them apart. Of a device with a thread of its
// own there is one machine, for two differ in timing.
#pragma once

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "support/fuzz_input.h"
#include "support/fuzz_machine.h"

namespace fvmm::testing {

class VirtioFuzz {
 public:
  /// @param prepare  what each machine's guest has written before anything else
  explicit VirtioFuzz(
      const VirtioKind& kind, const std::function<void(FuzzMachine&)>& prepare = [](FuzzMachine&) {})
      : kind_(kind) {
    spdlog::default_logger_raw()->set_level(
        spdlog::level::off);  // what a guest does wrong goes into the log, and this one does little else
    machines_.push_back(std::make_unique<FuzzMachine>(kind_));
    if (!kind_.threaded) machines_.push_back(std::make_unique<FuzzMachine>(kind_));
    each(prepare);
  }

  /// Where a request of one buffer takes its 64 bytes from.
  static constexpr std::uint64_t buffer(unsigned number) { return kBuffers + number * 64ULL; }
  static constexpr unsigned kBufferCount = 64;

  void run(FuzzInput input) {
    if (!input.one_in(4)) start_driver(input);
    while (!input.empty()) {
      step(input);
      each([](FuzzMachine& machine) { machine.follow_marks(); });
    }
    each([](FuzzMachine& machine) {
      machine.pause();
      machine.follow_marks();
      FVMM_CHECK(machine.all_marked(), "a device writes only where it was told to, and marks it");
    });
    FVMM_CHECK(first().sent() == last().sent(), "a move neither loses nor repeats output");
    fuzz_effects += first().load(rings(kind_.queue) + kUsedAt + 2);
  }

 private:
  static constexpr std::uint64_t kRings = kMiB;  // queue q has its rings 32 KiB further each
  static constexpr std::uint64_t kRingStride = 32 * kKiB;
  static constexpr std::uint64_t kAvailableAt = 0x1000;
  static constexpr std::uint64_t kUsedAt = 0x2000;
  static constexpr std::uint64_t kBuffers = 4 * kMiB;
  static constexpr std::uint64_t kTables = 6 * kMiB;  // indirect ones
  static constexpr std::uint16_t kSize = 16;

  FuzzMachine& first() { return *machines_.front(); }
  FuzzMachine& last() { return *machines_.back(); }
  void each(const std::function<void(FuzzMachine&)>& action) {
    for (const auto& machine : machines_) action(*machine);
  }
  void write_all(std::uint64_t offset, std::uint32_t value) {
    each([&](FuzzMachine& machine) { machine.write(offset, value); });
  }
  static std::uint64_t rings(std::uint64_t queue) { return kRings + kRingStride * queue; }
  std::uint64_t queues() { return first().device().device().queue_sizes().size(); }
  std::uint64_t queue(FuzzInput& input) { return input.one_in(2) ? kind_.queue : input.below(queues()); }

  void step(FuzzInput& input) {
    using Step = void (VirtioFuzz::*)(FuzzInput&);
    static constexpr std::array<Step, 32> kSteps{
        &VirtioFuzz::start_driver, &VirtioFuzz::registers,   &VirtioFuzz::registers,   &VirtioFuzz::registers,
        &VirtioFuzz::registers,    &VirtioFuzz::registers,   &VirtioFuzz::queue_setup, &VirtioFuzz::scribble,
        &VirtioFuzz::descriptor,   &VirtioFuzz::descriptor,  &VirtioFuzz::descriptor,  &VirtioFuzz::descriptor,
        &VirtioFuzz::descriptor,   &VirtioFuzz::descriptor,  &VirtioFuzz::offer,       &VirtioFuzz::offer,
        &VirtioFuzz::offer,        &VirtioFuzz::offer,       &VirtioFuzz::offer,       &VirtioFuzz::one_buffer,
        &VirtioFuzz::one_buffer,   &VirtioFuzz::one_buffer,  &VirtioFuzz::one_buffer,  &VirtioFuzz::request,
        &VirtioFuzz::request,      &VirtioFuzz::request,     &VirtioFuzz::request,     &VirtioFuzz::host_input,
        &VirtioFuzz::host_input,   &VirtioFuzz::acknowledge, &VirtioFuzz::pause,       &VirtioFuzz::damage};
    (this->*kSteps.at(input.below(kSteps.size())))(input);
  }

  /// A driver that does everything right, with rings that have nothing in them.
  void start_driver(FuzzInput& input) {
    using namespace devices::virtio;
    const std::uint64_t offered = first().device().device().features() | kTransportFeatures;
    const std::uint64_t features = (offered & ~input.take<std::uint32_t>()) | kFeatureVersion1;
    const std::pair<std::uint64_t, std::uint32_t> writes[] = {
        {kStatus, 0},
        {kStatus, 3},
        {kDriverFeaturesSel, 0},
        {kDriverFeatures, static_cast<std::uint32_t>(features)},
        {kDriverFeaturesSel, 1},
        {kDriverFeatures, static_cast<std::uint32_t>(features >> 32)},
        {kStatus, 11}};
    for (const auto& [offset, value] : writes) write_all(offset, value);
    for (std::uint64_t queue = 0; queue < queues(); ++queue) {
      each([&](FuzzMachine& machine) { machine.guest_writes(rings(queue), std::vector<std::byte>(kRingStride)); });
      write_all(kQueueSel, static_cast<std::uint32_t>(queue));
      write_all(kQueueSize, kSize);
      write_all(kQueueDescLow, static_cast<std::uint32_t>(rings(queue)));
      write_all(kQueueDriverLow, static_cast<std::uint32_t>(rings(queue) + kAvailableAt));
      write_all(kQueueDeviceLow, static_cast<std::uint32_t>(rings(queue) + kUsedAt));
      write_all(kQueueReady, 1);
    }
    write_all(kStatus, 15);
  }
  static std::uint32_t word(FuzzInput& input) {
    return input.one_in(4) ? input.take<std::uint32_t>() : static_cast<std::uint32_t>(input.below(16));
  }
  void registers(FuzzInput& input) {
    const std::uint64_t offset = input.one_in(8) ? input.below(0x140) : 4 * input.below(0x50);
    const std::size_t width = input.one_in(8) ? std::size_t{1} << input.below(4) : 4;
    std::array<std::byte, 8> one{};
    std::array<std::byte, 8> other{};
    first().device().read(offset, std::span(one).first(width));
    last().device().read(offset, std::span(other).first(width));
    FVMM_CHECK(one == other, "a register tells a machine that was moved from one that was not");
    if (input.one_in(2)) return;
    const std::uint32_t value = word(input);
    std::memcpy(one.data(), &value, sizeof value);
    each([&](FuzzMachine& machine) { machine.write(offset, std::span(one).first(width)); });
  }
  /// One queue anew, with rings that may lie anywhere.
  void queue_setup(FuzzInput& input) {
    using namespace devices::virtio;
    if (input.one_in(2)) {
      for (const std::uint32_t status : {0U, 3U}) write_all(kStatus, status);
      write_all(kDriverFeaturesSel, 1);
      write_all(kDriverFeatures, 1);
      write_all(kStatus, 11);
    }
    write_all(kQueueSel, static_cast<std::uint32_t>(input.below(queues() + 1)));
    write_all(kQueueSize, input.one_in(4) ? input.take<std::uint32_t>() : 1U << input.below(12));
    for (const std::uint64_t offset : {kQueueDescLow, kQueueDriverLow, kQueueDeviceLow}) {
      const std::uint64_t at = address(input);
      write_all(offset, static_cast<std::uint32_t>(at));
      write_all(offset + 4, static_cast<std::uint32_t>(at >> 32));
    }
    write_all(kQueueReady, 1);
    if (input.one_in(2)) write_all(kStatus, 15);
  }
  /// Mostly RAM; now and then its end, the hole, or nonsense.
  static std::uint64_t address(FuzzInput& input) {
    static constexpr std::array<std::uint64_t, 6> kEdges{kDriverMemory - 8, kDriverMemory - 1, kDriverMemory,
                                                         3 * kGiB,          4 * kGiB,          ~7ULL};
    const std::uint64_t what = input.below(16);
    if (what == 14) return input.any(kEdges);
    if (what == 15) return input.take<std::uint64_t>();
    return what > 11 ? kRings + input.below(0x10000) : kBuffers + input.below(64) * 64;
  }
  static std::uint32_t length(FuzzInput& input) {
    static constexpr std::array<std::uint32_t, 8> kEdges{0, 1, 15, 512, 4096, 65537, 16 * 1025, 0xffffffff};
    const std::uint64_t what = input.below(16);
    if (what == 15) return input.take<std::uint32_t>();
    return what > 11 ? input.any(kEdges) : 16 * (1 + static_cast<std::uint32_t>(input.below(4)));
  }
  void scribble(FuzzInput& input) {
    const std::uint64_t at = input.one_in(2) ? kRings + input.below(0x10000) : kBuffers + input.below(0x2000);
    const auto bytes = input.bytes(1 + input.below(16));
    each([&](FuzzMachine& machine) { machine.guest_writes(at, bytes); });
  }
  void describe(std::uint64_t at, const Descriptor& descriptor) {
    each([&](FuzzMachine& machine) {
      machine.put(at, descriptor.address);
      machine.put(at + 8, descriptor.bytes);
      machine.put(at + 12, descriptor.flags);
      machine.put(at + 14, descriptor.next);
    });
  }
  void descriptor(FuzzInput& input) {
    using namespace devices::virtio;
    const std::uint64_t at =
        input.one_in(4) ? kTables + 16 * input.below(4) : rings(queue(input)) + 16 * input.below(kSize);
    Descriptor made{.address = address(input), .bytes = length(input)};
    made.flags = static_cast<std::uint16_t>(input.below(4));
    made.next = input.one_in(16) ? input.take<std::uint16_t>() : static_cast<std::uint16_t>(input.below(kSize));
    if (input.one_in(4)) {
      made.flags = static_cast<std::uint16_t>((made.flags | kDescriptorIndirect) & ~kDescriptorNext);
      if (!input.one_in(4)) made.address = kTables;
    }
    describe(at, made);
  }
  /// Makes `count` heads available, the first of them `head`, and tells the device, or not.
  void make_available(FuzzInput& input, std::uint64_t queue, std::uint16_t head, std::uint16_t count) {
    const std::uint64_t available = rings(queue) + kAvailableAt;
    const std::uint16_t index = first().load(available + 2);
    const auto event = static_cast<std::uint16_t>(index + input.below(3));
    const bool tell = !input.one_in(8);
    each([&](FuzzMachine& machine) {
      machine.put(available + 4 + 2ULL * (index % kSize), head);
      machine.put(available + 4 + 2ULL * kSize, event);
      machine.put(available + 2, static_cast<std::uint16_t>(index + count));
      if (tell) machine.write(devices::virtio::kQueueNotify, static_cast<std::uint32_t>(queue));
    });
  }
  void offer(FuzzInput& input) {
    const std::uint64_t to = queue(input);
    const std::uint16_t head =
        input.one_in(32) ? input.take<std::uint16_t>() : static_cast<std::uint16_t>(input.below(kSize));
    const auto count = static_cast<std::uint16_t>(input.one_in(32) ? input.below(0x10000) : 1 + input.below(2));
    make_available(input, to, head, count);
  }
  /// A whole, honest request of one buffer.
  void one_buffer(FuzzInput& input) {
    const std::uint64_t to = queue(input);
    const auto head = static_cast<std::uint16_t>(input.below(kSize));
    const auto flags = to == kind_.queue ? kind_.buffer_flags : devices::virtio::kDescriptorWrite;
    describe(rings(to) + 16ULL * head,
             {.address = kBuffers + input.below(kBufferCount) * 64, .bytes = 64, .flags = flags});
    make_available(input, to, head, 1);
  }
  /// Header, data in up to two buffers, a status byte: what most devices take for a request.
  void request(FuzzInput& input) {
    using namespace devices::virtio;
    const std::uint64_t to = queue(input);
    const auto head = static_cast<std::uint16_t>(input.below(kSize - 3));
    const std::uint64_t header = kBuffers + 16 * input.below(64);
    const std::uint16_t write = input.one_in(2) ? kDescriptorWrite : std::uint16_t{0};
    std::array<std::uint32_t, 4> words{static_cast<std::uint32_t>(input.below(16)), 0, 0, 0};
    words[2] = input.one_in(8) ? input.take<std::uint32_t>() : static_cast<std::uint32_t>(input.below(2100));
    words[3] = input.one_in(16) ? input.take<std::uint32_t>() : 0;
    const std::uint64_t parts = input.below(3);
    each([&](FuzzMachine& machine) { machine.guest_writes(header, std::as_bytes(std::span(words))); });
    std::uint16_t at = head;
    const auto add = [&](std::uint64_t address, std::uint32_t bytes, std::uint16_t flags) {
      const auto next = static_cast<std::uint16_t>(at + 1);
      describe(rings(to) + 16ULL * at, {.address = address, .bytes = bytes, .flags = flags, .next = next});
      at = next;
    };
    add(header, 16, kDescriptorNext);
    for (std::uint64_t part = 0; part < parts; ++part) {
      const std::uint32_t bytes = input.one_in(4) ? length(input) : static_cast<std::uint32_t>(512 * input.below(17));
      add(kBuffers + 0x10000 + 0x4000 * part, bytes, static_cast<std::uint16_t>(write | kDescriptorNext));
    }
    add(kBuffers + 0x20000 + head, 1, kDescriptorWrite);
    make_available(input, to, head, 1);
  }
  void host_input(FuzzInput& input) {
    const std::vector<std::byte> bytes(input.one_in(16) ? input.below(5000) : input.below(40), std::byte{'i'});
    std::vector<std::size_t> taken;
    each([&](FuzzMachine& machine) { taken.push_back(machine.push_input(bytes)); });
    FVMM_CHECK(taken.front() == taken.back(), "room for input is state");
  }
  void acknowledge(FuzzInput& input) { write_all(devices::virtio::kInterruptAck, word(input)); }

  void pause(FuzzInput&) {
    each([](FuzzMachine& machine) { machine.pause(); });
    FVMM_CHECK(first().device().save().bytes == last().device().save().bytes, "two that did the same save the same");
    last().move();
    each([](FuzzMachine& machine) { machine.resume(); });
    FVMM_CHECK(first().line().level == last().line().level, "a move keeps the interrupt line");
  }
  /// Loading a state with one wrong byte changes everything or nothing.
  void damage(FuzzInput& input) {
    each([](FuzzMachine& machine) { machine.pause(); });
    devices::VirtioMmio& device = last().device();
    const devices::DeviceState before = device.save();
    devices::DeviceState damaged = before;
    if (input.one_in(4)) {
      damaged.bytes.resize(input.below(damaged.bytes.size() + 4));
    } else {
      damaged.bytes.at(input.below(damaged.bytes.size())) = static_cast<std::byte>(input.take<std::uint8_t>());
    }
    const bool loaded = device.load(damaged).ok();
    if (loaded && kind_.keeps_own) damaged = device.save();
    FVMM_CHECK(!loaded || device.load(damaged).ok(), "what was loaded can be saved and loaded");
    FVMM_CHECK(device.save().bytes == (loaded ? damaged.bytes : before.bytes), "a load is all or nothing");
    FVMM_CHECK(device.load(before).ok(), "what was saved can be loaded");
    each([](FuzzMachine& machine) { machine.resume(); });
  }

  const VirtioKind kind_;
  std::vector<std::unique_ptr<FuzzMachine>> machines_;
};

/// A kind of the list in virtio_kinds.h.
inline const VirtioKind& kind_named(std::string_view name) {
  const auto found = std::ranges::find_if(virtio_kinds(), [&](const VirtioKind& kind) { return kind.name == name; });
  FVMM_CHECK(found != virtio_kinds().end(), "a target's device is in the list");
  return *found;
}

}  // namespace fvmm::testing
