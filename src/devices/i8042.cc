#include "devices/i8042.h"

#include <fmt/format.h>

#include <algorithm>

#include "devices/bus.h"
#include "devices/state_codec.h"

namespace fvmm::devices {
namespace {

// Intel 8042 as IBM's PC/AT used it; commands by their value at port 0x64.
constexpr std::uint8_t kWriteConfiguration = 0x60;  // a data byte follows
constexpr std::uint8_t kWriteOutputPort = 0xd1;     // a data byte follows
constexpr std::uint8_t kPulseReset = 0xfe;
constexpr std::uint8_t kResetLine = 0x01;  // output port bit 0, active low

bool takes_data(std::uint8_t command) {
  return command == kWriteConfiguration || command == kWriteOutputPort;
}

}  // namespace

I8042::I8042(std::function<void()> reset) : reset_(std::move(reset)) {}

void I8042::attach(Bus& bus) {
  bus.add(kI8042DataPort, 1, *this);
  bus.add(kI8042CommandPort, 1, *this, kI8042CommandOffset);
}

// Status 0: no key has come (output buffer empty) and the next command is welcome (input buffer empty).
void I8042::read(std::uint64_t /*offset*/, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
}

void I8042::write(std::uint64_t offset, std::span<const std::byte> in) {
  if (in.empty()) return;
  const auto value = std::to_integer<std::uint8_t>(in[0]);
  if (offset == kI8042CommandOffset) {
    write_command(value);
  } else if (offset == 0) {
    write_data(value);
  }
}

void I8042::write_command(std::uint8_t value) {
  state_.command = takes_data(value) ? value : std::uint8_t{0};
  if (value == kPulseReset && reset_) reset_();
}

void I8042::write_data(std::uint8_t value) {
  const std::uint8_t command = std::exchange(state_.command, std::uint8_t{0});
  if (command != kWriteOutputPort) return;
  state_.output_port = value;  // the A20 gate itself does nothing: address line 20 is never masked
  if ((value & kResetLine) == 0 && reset_) reset_();
}

DeviceState I8042::save() const {
  StateWriter writer;
  writer.put(state_.output_port);
  writer.put(state_.command);
  return {.version = kI8042StateVersion, .bytes = writer.take()};
}

Status I8042::load(const DeviceState& state) {
  if (state.version != kI8042StateVersion) {
    return Error(Errc::kInvalidArgument, fmt::format("i8042 state version {}, want 1", state.version));
  }
  StateReader reader(state.bytes);
  State loaded;
  loaded.output_port = reader.get<std::uint8_t>();
  loaded.command = reader.get<std::uint8_t>();
  if (!reader.complete()) return Error(Errc::kInvalidArgument, "i8042 state has the wrong length");
  if (loaded.command != 0 && !takes_data(loaded.command)) {
    return Error(Errc::kInvalidArgument, fmt::format("i8042 state waits for data of command {:#x}", loaded.command));
  }
  state_ = loaded;
  return {};
}

}  // namespace fvmm::devices
