// Port devices under chosen register traffic, host input, moves and damaged states: one machine runs through, the other
// is saved and loaded into a fresh one all the time, as migration does; nobody can tell them apart.
#pragma once

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "devices/bus.h"
#include "devices/i8042.h"
#include "devices/serial.h"
#include "support/fake_devices.h"
#include "support/fuzz_input.h"

namespace fvmm::testing {

/// One machine's worth of port devices.
struct PortMachine {
  PortMachine() {
    bus.add(devices::kCom1Base, devices::kUartPorts, serial);
    controller.attach(bus);
  }
  FakeIrqLine irq;
  FakeSink sink;
  int resets = 0;
  devices::Serial serial{"com1", irq, sink};
  devices::I8042 controller{[this] { ++resets; }};
  devices::Bus bus{"port"};
};

class PortFuzz {
 public:
  /// @param base, ports  where the traffic goes: the device's ports and what lies beside them
  PortFuzz(std::uint64_t base, std::uint64_t ports) : base_(base), ports_(ports) {
    spdlog::default_logger_raw()->set_level(
        spdlog::level::off);  // what a guest does wrong goes into the log, and this one does little else
  }

  void run(FuzzInput input) {
    while (!input.empty()) step(input);
    compare();
    FVMM_CHECK(steady_.sink.text == earlier_ + moved_->sink.text, "a move neither loses nor repeats output");
    FVMM_CHECK(steady_.resets == earlier_resets_ + moved_->resets, "a move neither loses nor repeats a reset");
    fuzz_effects += steady_.sink.text.size() + static_cast<std::uint64_t>(steady_.resets);
  }

 private:
  void step(FuzzInput& input) {
    const std::uint64_t what = input.below(32);
    if (what < 12) {
      write(input);
    } else if (what < 24) {
      read(input);
    } else if (what < 26) {
      repeated(input);
    } else if (what < 28) {
      host_input(input.bytes(input.below(40)));
    } else if (what == 28) {
      host_input(std::vector<std::byte>(input.below(6000), std::byte{'i'}));
    } else if (what == 29) {
      damaged_load(input);
    } else {
      move();
    }
  }
  std::uint64_t port(FuzzInput& input) { return base_ + input.below(ports_); }
  static std::size_t width(FuzzInput& input) { return std::size_t{1} << (input.one_in(8) ? input.below(4) : 0); }

  void write(FuzzInput& input) {
    const std::uint64_t at = port(input);
    const auto data = input.bytes(width(input));
    steady_.bus.write(at, data);
    moved_->bus.write(at, data);
  }
  void read(FuzzInput& input) {
    const std::uint64_t at = port(input);
    std::vector<std::byte> one(width(input), std::byte{0x5a});
    std::vector<std::byte> other = one;
    steady_.bus.read(at, one);
    moved_->bus.read(at, other);
    FVMM_CHECK(one == other, "a read tells a machine that was moved from one that was not");
  }
  void repeated(FuzzInput& input) {
    const std::uint64_t at = port(input);
    const std::size_t each = std::size_t{1} << input.below(3);
    std::vector<std::byte> one = input.bytes(each * (1 + input.below(8)));
    std::vector<std::byte> other = one;
    if (input.one_in(2)) {
      steady_.bus.write_repeated(at, each, one);
      moved_->bus.write_repeated(at, each, other);
    } else {
      steady_.bus.read_repeated(at, each, one);
      moved_->bus.read_repeated(at, each, other);
    }
    FVMM_CHECK(one == other, "a string read tells a machine that was moved from one that was not");
  }
  void host_input(const std::vector<std::byte>& data) {
    const auto steady_guard = steady_.bus.lock();
    const auto moved_guard = moved_->bus.lock();
    FVMM_CHECK(steady_.serial.push_input(data) == moved_->serial.push_input(data), "room for input is state");
  }
  /// Damages a state in one place; loading it changes everything or nothing.
  void damaged_load(FuzzInput& input) {
    const auto before = moved_->bus.save_all();
    auto damaged = before;
    std::vector<std::byte>& bytes = damaged.at(input.below(damaged.size())).state.bytes;
    if (input.one_in(3)) {
      bytes.resize(input.below(bytes.size() + 4));
    } else {
      bytes.at(input.below(bytes.size())) = static_cast<std::byte>(input.take<std::uint8_t>());
    }
    const bool loaded = moved_->bus.load_all(damaged).ok();
    FVMM_CHECK(equal(moved_->bus.save_all(), loaded ? damaged : before), "a load is all or nothing");
    FVMM_CHECK(moved_->bus.load_all(before).ok(), "what was saved can be loaded");
  }
  void move() {
    auto next = std::make_unique<PortMachine>();
    FVMM_CHECK(next->bus.load_all(moved_->bus.save_all()).ok(), "what was saved can be loaded");
    earlier_ += moved_->sink.text;
    earlier_resets_ += moved_->resets;
    moved_ = std::move(next);
    compare();
  }
  void compare() {
    FVMM_CHECK(equal(steady_.bus.save_all(), moved_->bus.save_all()), "save, load and save give the same bytes");
    FVMM_CHECK(steady_.irq.level == moved_->irq.level, "a load drives the interrupt line");
  }
  static bool equal(const std::vector<devices::NamedState>& a, const std::vector<devices::NamedState>& b) {
    return std::ranges::equal(a, b, [](const devices::NamedState& x, const devices::NamedState& y) {
      return x.id == y.id && x.state.version == y.state.version && x.state.bytes == y.state.bytes;
    });
  }

  const std::uint64_t base_;
  const std::uint64_t ports_;
  PortMachine steady_;
  std::unique_ptr<PortMachine> moved_ = std::make_unique<PortMachine>();
  std::string earlier_;  // what earlier incarnations have sent
  int earlier_resets_ = 0;
};

}  // namespace fvmm::testing
