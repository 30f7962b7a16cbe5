// The UART's state, version 1: see docs/devices.md for the layout.
#include <fmt/format.h>

#include "devices/serial.h"
#include "devices/serial_registers.h"
#include "devices/state_codec.h"

namespace fvmm::devices {
using namespace uart;

namespace {

Error bad(std::string_view why) {
  return {Errc::kInvalidArgument, fmt::format("serial state: {}", why)};
}

}  // namespace

DeviceState Serial::save() const {
  StateWriter writer;
  writer.put(state_.divisor);
  writer.put(state_.ier);
  writer.put(state_.fcr);
  writer.put(state_.lcr);
  writer.put(state_.mcr);
  writer.put(state_.scr);
  writer.put(state_.lsr_errors);
  writer.put(state_.msr_delta);
  writer.put(state_.thr_empty_pending);
  writer.put(state_.irq_level);
  writer.put(static_cast<std::uint8_t>(state_.fifo.size()));
  for (const std::uint8_t byte : state_.fifo) writer.put(byte);
  writer.put(static_cast<std::uint32_t>(state_.queue.size()));
  for (const std::uint8_t byte : state_.queue) writer.put(byte);
  return {.version = kSerialStateVersion, .bytes = writer.take()};
}

Result<Serial::State> Serial::parse(const DeviceState& state) {
  if (state.version != kSerialStateVersion) return bad(fmt::format("version {}, want 1", state.version));
  StateReader reader(state.bytes);
  State loaded;
  loaded.divisor = reader.get<std::uint16_t>();
  loaded.ier = reader.get<std::uint8_t>();
  loaded.fcr = reader.get<std::uint8_t>();
  loaded.lcr = reader.get<std::uint8_t>();
  loaded.mcr = reader.get<std::uint8_t>();
  loaded.scr = reader.get<std::uint8_t>();
  loaded.lsr_errors = reader.get<std::uint8_t>();
  loaded.msr_delta = reader.get<std::uint8_t>();
  loaded.thr_empty_pending = reader.get_bool();
  loaded.irq_level = reader.get_bool();
  for (auto left = reader.get_count<std::uint8_t>(); left > 0; --left) {
    loaded.fifo.push_back(reader.get<std::uint8_t>());
  }
  for (auto left = reader.get_count<std::uint32_t>(); left > 0; --left) {
    loaded.queue.push_back(reader.get<std::uint8_t>());
  }
  if (!reader.complete()) return bad("wrong length or a flag that is neither 0 nor 1");
  return loaded;
}

// Only what a running UART can reach: a state that passes saves as the same bytes again.
Status Serial::check(const State& state) {
  if ((state.ier & ~kIerBits) != 0) return bad("IER has reserved bits");
  if ((state.fcr & ~kFcrKept) != 0) return bad("FCR has reserved bits");
  if (state.fcr != 0 && (state.fcr & kFcrEnable) == 0) return bad("FCR has a setting without its enable bit");
  if ((state.mcr & ~kMcrBits) != 0) return bad("MCR has reserved bits");
  if ((state.lsr_errors & ~kLsrOverrun) != 0) return bad("LSR has an error that cannot occur");
  if ((state.msr_delta & ~kMsrDeltaBits) != 0) return bad("MSR has more than delta bits");
  if (state.fifo.size() > state.fifo_bytes()) return bad("the FIFO holds more than it can");
  if (state.queue.size() > kSerialQueueBytesMax) return bad("the input queue is over its limit");
  const bool fifo_full = state.fifo.size() == state.fifo_bytes();
  if (!state.queue.empty() && !fifo_full && !state.loopback()) return bad("input waits although the FIFO has room");
  if (state.irq_level != state.irq()) return bad("the interrupt level contradicts the registers");
  return {};
}

Status Serial::load(const DeviceState& state) {
  State loaded = FVMM_TRY(parse(state));
  FVMM_TRY(check(loaded));
  state_ = std::move(loaded);
  irq_.set(state_.irq_level);
  return {};
}

}  // namespace fvmm::devices
