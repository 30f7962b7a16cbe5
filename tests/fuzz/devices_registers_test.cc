// Random register traffic, host input and save/load round trips. A failure prints its seed; FVMM_FUZZ_SEED replays it,
// FVMM_FUZZ_STEPS changes the length.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "devices/bus.h"
#include "devices/i8042.h"
#include "devices/serial.h"
#include "support/fake_devices.h"

namespace fvmm::devices {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

/// One machine's worth of port devices. Two of them fed the same traffic must never differ.
struct Machine {
  Machine() {
    bus.add(kCom1Base, kUartPorts, serial);
    controller.attach(bus);
  }
  testing::FakeIrqLine irq;
  testing::FakeSink sink;
  int resets = 0;
  Serial serial{"com1", irq, sink};
  I8042 controller{[this] { ++resets; }};
  Bus bus{"port"};
};

class Traffic {
 public:
  explicit Traffic(std::uint64_t seed) : random_(seed) {}

  std::uint64_t below(std::uint64_t limit) {
    return std::uniform_int_distribution<std::uint64_t>(0, limit - 1)(random_);
  }
  std::uint64_t port() {
    static constexpr std::array<std::uint64_t, 4> kBases{kCom1Base, kCom1Base, kI8042DataPort, kI8042CommandPort};
    return kBases.at(below(kBases.size())) + below(kUartPorts);
  }
  std::vector<std::byte> bytes(std::size_t count) {
    std::vector<std::byte> out(count);
    for (std::byte& byte : out) byte = static_cast<std::byte>(below(256));
    return out;
  }
  std::size_t width() { return std::size_t{1} << (below(8) == 0 ? below(4) : 0); }

 private:
  std::mt19937_64 random_;
};

bool equal(const std::vector<NamedState>& a, const std::vector<NamedState>& b) {
  return std::ranges::equal(a, b, [](const NamedState& x, const NamedState& y) {
    return x.id == y.id && x.state.version == y.state.version && x.state.bytes == y.state.bytes;
  });
}

/// What a guest can do, to both machines; they must answer alike.
void guest_access(Traffic& traffic, Machine& steady, Machine& moved) {
  const std::uint64_t port = traffic.port();
  std::vector<std::byte> data = traffic.bytes(traffic.width());
  if (traffic.below(2) == 0) {
    steady.bus.write(port, data);
    moved.bus.write(port, data);
    return;
  }
  std::vector<std::byte> other = data;
  steady.bus.read(port, data);
  moved.bus.read(port, other);
  ASSERT_EQ(data, other) << "port " << port;
}

void host_input(Traffic& traffic, Machine& steady, Machine& moved) {
  const auto data = traffic.bytes(traffic.below(traffic.below(50) == 0 ? 6000 : 40));
  const auto steady_guard = steady.bus.lock();
  const auto moved_guard = moved.bus.lock();
  ASSERT_EQ(steady.serial.push_input(data), moved.serial.push_input(data));
}

/// Damages a state in one place; loading it changes everything or nothing.
void damaged_load(Traffic& traffic, Machine& machine) {
  const auto before = machine.bus.save_all();
  auto damaged = before;
  std::vector<std::byte>& bytes = damaged.at(traffic.below(damaged.size())).state.bytes;
  if (traffic.below(3) == 0) {
    bytes.resize(traffic.below(bytes.size() + 4));
  } else {
    bytes.at(traffic.below(bytes.size())) = static_cast<std::byte>(traffic.below(256));
  }
  const bool loaded = machine.bus.load_all(damaged).ok();
  ASSERT_TRUE(equal(machine.bus.save_all(), loaded ? damaged : before));
  ASSERT_TRUE(machine.bus.load_all(before).ok());
}

// One machine runs through; the other is saved and loaded into a fresh one every few accesses, as migration does.
TEST(DeviceRegisters, AMachineThatIsMovedAllTheTimeBehavesLikeOneThatIsNot) {
  const std::uint64_t seed = from_environment("FVMM_FUZZ_SEED", std::random_device{}());
  const std::uint64_t steps = from_environment("FVMM_FUZZ_STEPS", 300'000);
  SCOPED_TRACE("FVMM_FUZZ_SEED=" + std::to_string(seed));
  Traffic traffic(seed);
  Machine steady;
  auto moved = std::make_unique<Machine>();
  std::string moved_text;  // what earlier incarnations have sent
  for (std::uint64_t step = 0; step < steps && !::testing::Test::HasFatalFailure(); ++step) {
    guest_access(traffic, steady, *moved);
    if (traffic.below(16) == 0) host_input(traffic, steady, *moved);
    if (traffic.below(64) == 0) damaged_load(traffic, *moved);
    if (traffic.below(64) != 0) continue;
    auto next = std::make_unique<Machine>();
    ASSERT_TRUE(next->bus.load_all(moved->bus.save_all()).ok());
    moved_text += moved->sink.text;
    moved = std::move(next);
    ASSERT_TRUE(equal(steady.bus.save_all(), moved->bus.save_all()));
    ASSERT_EQ(steady.irq.level, moved->irq.level);
  }
  EXPECT_EQ(steady.sink.text, moved_text + moved->sink.text);
}

}  // namespace
}  // namespace fvmm::devices
