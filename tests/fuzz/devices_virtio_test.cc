// Random register traffic, rings and descriptors, host input, pauses and moves, on every virtio device that serves on
// the vCPU's thread. A failure prints its seed; FVMM_FUZZ_SEED replays it, FVMM_FUZZ_STEPS changes the length.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/virtio_kinds.h"

namespace fvmm::devices {
namespace {

using namespace virtio;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

constexpr std::uint64_t kRings = kMiB;  // queue q has its rings 32 KiB further each
constexpr std::uint64_t kRingStride = 32 * kKiB;
constexpr std::uint16_t kSize = 16;

class Traffic {
 public:
  explicit Traffic(std::uint64_t seed) : random_(seed) {}
  std::uint64_t below(std::uint64_t limit) {
    return std::uniform_int_distribution<std::uint64_t>(0, limit - 1)(random_);
  }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  template <typename T, std::size_t N>
  T any(const std::array<T, N>& of) {
    return of.at(below(N));
  }
  std::uint32_t word() {
    return one_in(4) ? static_cast<std::uint32_t>(random_()) : static_cast<std::uint32_t>(below(8));
  }
  std::uint64_t address() {  // mostly RAM; now and then its end, the hole, or nonsense
    if (one_in(12)) return any(std::array<std::uint64_t, 4>{testing::kDriverMemory - 8, 3 * kGiB, ~7ULL, random_()});
    return one_in(8) ? kRings + below(0x10000) : 4 * kMiB + below(64) * 64;
  }
  std::uint32_t length() {
    return one_in(16) ? any(std::array<std::uint32_t, 4>{0, 16 * 1025, 0xffffffff, 65537})
                      : 16 * (1 + static_cast<std::uint32_t>(below(4)));
  }

 private:
  std::mt19937_64 random_;
};

/// One device with memory, and what that memory must be if every write of the device is marked.
struct Machine {
  explicit Machine(const testing::VirtioKind& which) : kind(which), shadow(testing::kDriverMemory) {}

  void guest_writes(std::uint64_t address, std::span<const std::byte> bytes) {
    const auto ram = memory->pages_for_load({0, memory->layout().pages()});
    std::ranges::copy(bytes, ram.begin() + static_cast<std::ptrdiff_t>(address));
    std::ranges::copy(bytes, shadow.begin() + static_cast<std::ptrdiff_t>(address));
  }
  template <typename T>
  void put(std::uint64_t address, T value) {
    guest_writes(address, std::as_bytes(std::span(&value, 1)));
  }
  std::uint16_t get(std::uint64_t address) const { return memory->load_u16(address).value(); }
  void write(std::uint64_t offset, std::uint32_t value) {
    specimen->device.write(offset, std::as_bytes(std::span(&value, 1)));
  }
  std::size_t push_input(std::span<const std::byte> bytes) {
    auto* const console = dynamic_cast<VirtioConsole*>(&specimen->device.device());
    return console == nullptr ? 0 : console->push_input(bytes);
  }
  void pause() { ASSERT_TRUE(specimen->device.quiesce(Deadline::after(std::chrono::seconds(10))).ok()); }
  void move() {
    auto there = std::make_unique<testing::VirtioSpecimen>(kind, *memory);
    ASSERT_TRUE(there->device.load(specimen->device.save()).ok());
    ASSERT_EQ(there->line.level, specimen->line.level);
    earlier += specimen->sink.text;
    specimen = std::move(there);
  }
  /// Takes over what was marked.
  void follow_marks() {
    memory::Bitmap marks(memory->layout().pages());
    memory->device_marks().drain_into(marks);
    for (const memory::PageRange& range : marks.ranges(64)) {
      std::ranges::copy(memory->pages(range), shadow.begin() + static_cast<std::ptrdiff_t>(range.first * kPageBytes));
    }
  }
  [[nodiscard]] bool all_marked() const {
    const auto ram = memory->pages({0, memory->layout().pages()});
    return std::memcmp(ram.data(), shadow.data(), ram.size()) == 0;
  }

  const testing::VirtioKind& kind;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  std::unique_ptr<testing::VirtioSpecimen> specimen = std::make_unique<testing::VirtioSpecimen>(kind, *memory);
  std::vector<std::byte> shadow;
  std::string earlier;  // what earlier incarnations have sent
};

class VirtioFuzz {
 public:
  VirtioFuzz(const testing::VirtioKind& kind, std::uint64_t seed) : traffic_(seed), steady_(kind), moved_(kind) {
    both([](Machine& machine) { machine.specimen->device.resume(); });
  }

  void step() {
    const std::uint64_t what = traffic_.below(100);
    if (what < 3) {
      start_driver();
    } else if (what < 20) {
      registers();
    } else if (what < 45) {
      descriptor();
    } else if (what < 80) {
      offer();
    } else if (what < 90) {
      host_input();
    } else if (what < 96) {
      const std::uint32_t bits = traffic_.word();
      both([&](Machine& machine) { machine.write(kInterruptAck, bits); });
    } else {
      pause();
    }
    both([](Machine& machine) { machine.follow_marks(); });
    served_ += served();
  }
  void check_end() {
    EXPECT_TRUE(steady_.all_marked()) << "the device wrote a page without a mark";
    EXPECT_TRUE(moved_.all_marked());
    EXPECT_EQ(steady_.specimen->sink.text, moved_.earlier + moved_.specimen->sink.text);
    EXPECT_GT(served_, 0U) << "no request was ever answered: this tests nothing";
  }

 private:
  void both(const std::function<void(Machine&)>& action) {
    action(steady_);
    action(moved_);
  }
  [[nodiscard]] std::uint64_t rings(unsigned queue) const { return kRings + kRingStride * queue; }
  unsigned queue() {
    return static_cast<unsigned>(traffic_.below(steady_.specimen->device.device().queue_sizes().size()));
  }

  /// A driver that does everything right.
  void start_driver() {
    const std::uint32_t low = static_cast<std::uint32_t>((traffic_.one_in(2) ? kFeatureIndirect : 0) |
                                                         (traffic_.one_in(2) ? kFeatureEventIdx : 0));
    both([&](Machine& machine) {
      for (const auto& [offset, value] : std::vector<std::pair<std::uint64_t, std::uint32_t>>{{kStatus, 0},
                                                                                              {kStatus, 3},
                                                                                              {kDriverFeaturesSel, 0},
                                                                                              {kDriverFeatures, low},
                                                                                              {kDriverFeaturesSel, 1},
                                                                                              {kDriverFeatures, 1},
                                                                                              {kStatus, 11}}) {
        machine.write(offset, value);
      }
      const auto queues = machine.specimen->device.device().queue_sizes().size();
      for (unsigned queue = 0; queue < queues; ++queue) {
        machine.guest_writes(rings(queue), std::vector<std::byte>(kRingStride));
        machine.write(kQueueSel, queue);
        machine.write(kQueueSize, kSize);
        machine.write(kQueueDescLow, static_cast<std::uint32_t>(rings(queue)));
        machine.write(kQueueDriverLow, static_cast<std::uint32_t>(rings(queue) + 0x1000));
        machine.write(kQueueDeviceLow, static_cast<std::uint32_t>(rings(queue) + 0x2000));
        machine.write(kQueueReady, 1);
      }
      machine.write(kStatus, 15);
    });
  }
  void registers() {
    const std::uint64_t offset = traffic_.below(traffic_.one_in(4) ? 0x120 : 0x40) * (traffic_.one_in(8) ? 1 : 4);
    const std::size_t width = traffic_.one_in(8) ? 1ULL << traffic_.below(4) : 4;
    std::array<std::byte, 8> a{};
    std::array<std::byte, 8> b{};
    steady_.specimen->device.read(offset, std::span(a).first(width));
    moved_.specimen->device.read(offset, std::span(b).first(width));
    ASSERT_EQ(a, b) << "register " << offset;
    const bool breaks_off = offset == kStatus || offset == kQueueReady;
    if (breaks_off && !traffic_.one_in(4)) return;
    const std::uint32_t value = traffic_.word();
    std::memcpy(a.data(), &value, sizeof value);
    both([&](Machine& machine) { machine.specimen->device.write(offset, std::span(a).first(width)); });
  }
  void descriptor() {
    const std::uint64_t at =
        traffic_.one_in(4) ? kDriverBuffersTable + 16 * traffic_.below(4) : rings(queue()) + 16 * traffic_.below(kSize);
    std::uint16_t flags = static_cast<std::uint16_t>(traffic_.below(4));
    std::uint64_t address = traffic_.address();
    if (traffic_.one_in(4)) {
      flags = static_cast<std::uint16_t>(flags | kDescriptorIndirect) & static_cast<std::uint16_t>(~kDescriptorNext);
      address = kDriverBuffersTable;
    }
    const std::uint32_t length = traffic_.length();
    const auto next = static_cast<std::uint16_t>(traffic_.below(traffic_.one_in(16) ? 70000 : kSize));
    both([&](Machine& machine) {
      machine.put(at, address);
      machine.put(at + 8, length);
      machine.put(at + 12, flags);
      machine.put(at + 14, next);
    });
  }
  void offer() {
    const unsigned q = queue();
    const std::uint64_t available = rings(q) + 0x1000;
    const std::uint16_t index = steady_.get(available + 2);
    const auto head = static_cast<std::uint16_t>(traffic_.below(traffic_.one_in(64) ? 70000 : kSize));
    const auto step = static_cast<std::uint16_t>(traffic_.one_in(64) ? traffic_.below(40) : 1);
    const bool good = traffic_.one_in(2);  // a whole, honest request
    const std::uint16_t event = static_cast<std::uint16_t>(index + traffic_.below(3));
    const std::uint64_t buffer = 4 * kMiB + traffic_.below(64) * 64;
    const bool tell = !traffic_.one_in(8);
    both([&](Machine& machine) {
      if (good) {
        machine.put(rings(q) + 16ULL * (head % kSize), buffer);
        machine.put(rings(q) + 16ULL * (head % kSize) + 8, std::uint32_t{64});
        machine.put(rings(q) + 16ULL * (head % kSize) + 12,
                    q == machine.kind.queue ? machine.kind.buffer_flags : kDescriptorWrite);
      }
      machine.put(available + 4 + 2ULL * (index % kSize), head);
      machine.put(available + 4 + 2ULL * kSize, event);
      machine.put(available + 2, static_cast<std::uint16_t>(index + step));
      if (tell) machine.write(kQueueNotify, q);
    });
  }
  void host_input() {
    std::vector<std::byte> bytes(traffic_.below(traffic_.one_in(20) ? 5000 : 40), std::byte{'i'});
    ASSERT_EQ(steady_.push_input(bytes), moved_.push_input(bytes));
  }
  /// Both stand still; one of them moves; loading a damaged state changes everything or nothing.
  void pause() {
    both([](Machine& machine) { machine.pause(); });
    const DeviceState before = moved_.specimen->device.save();
    ASSERT_EQ(steady_.specimen->device.save().bytes, before.bytes);
    DeviceState damaged = before;
    damaged.bytes.at(traffic_.below(damaged.bytes.size())) = static_cast<std::byte>(traffic_.below(256));
    const bool loaded = moved_.specimen->device.load(damaged).ok();
    ASSERT_EQ(moved_.specimen->device.save().bytes, loaded ? damaged.bytes : before.bytes);
    ASSERT_TRUE(moved_.specimen->device.load(before).ok());
    moved_.move();
    both([](Machine& machine) { machine.specimen->device.resume(); });
    ASSERT_EQ(steady_.specimen->line.level, moved_.specimen->line.level);
  }
  std::uint64_t served() { return steady_.get(rings(steady_.kind.queue) + 0x2000 + 2) != 0 ? 1 : 0; }

  static constexpr std::uint64_t kDriverBuffersTable = 6 * kMiB;
  Traffic traffic_;
  Machine steady_;
  Machine moved_;
  std::uint64_t served_ = 0;
};

/// The bytes of the generator must be the same on both machines.
testing::VirtioKind predictable(const testing::VirtioKind& kind) {
  testing::VirtioKind same = kind;
  if (std::string(kind.name) == "rng") {
    same.make = [](OutputSink&) {
      return std::make_unique<VirtioRng>([](std::span<std::byte> out) { std::ranges::fill(out, std::byte{0x5a}); });
    };
  }
  return same;
}

TEST(VirtioFuzz, ADeviceThatIsMovedAllTheTimeBehavesLikeOneThatIsOnlyPaused) {
  const std::uint64_t seed = from_environment("FVMM_FUZZ_SEED", std::random_device{}());
  const std::uint64_t steps = from_environment("FVMM_FUZZ_STEPS", 100'000);
  for (const testing::VirtioKind& listed : testing::virtio_kinds()) {
    if (listed.threaded) continue;  // two of those differ in timing
    SCOPED_TRACE(std::string(listed.name) + ", FVMM_FUZZ_SEED=" + std::to_string(seed));
    const testing::VirtioKind kind = predictable(listed);
    VirtioFuzz fuzz(kind, seed);
    for (std::uint64_t step = 0; step < steps && !::testing::Test::HasFatalFailure(); ++step) fuzz.step();
    fuzz.check_end();
  }
}

}  // namespace
}  // namespace fvmm::devices
