#include "devices/serial.h"

#include <algorithm>
#include <utility>

#include "devices/serial_registers.h"

namespace fvmm::devices {
using namespace uart;  // NOLINT(google-build-using-namespace): this file is about nothing else

namespace {

constexpr std::uint8_t kUnconnected = 0xff;

}  // namespace

Serial::Serial(std::string id, IrqLine& irq, OutputSink& out) : id_(std::move(id)), irq_(irq), out_(out) {}

std::size_t Serial::State::fifo_bytes() const {
  return (fcr & kFcrEnable) != 0 ? kUartFifoBytes : 1;
}
bool Serial::State::loopback() const {
  return (mcr & kMcrLoopback) != 0;
}
bool Serial::State::divisor_latch() const {
  return (lcr & kLcrDivisor) != 0;
}

// Priorities of the datasheet's table V. Whatever the trigger level, data is reported at once: the character timeout
// that would report it anyway has always just passed.
std::uint8_t Serial::State::interrupt() const {
  if ((ier & kIerLineStatus) != 0 && lsr_errors != 0) return kIirLine;
  if ((ier & kIerReceived) != 0 && !fifo.empty()) return kIirReceived;
  if ((ier & kIerThrEmpty) != 0 && thr_empty_pending) return kIirThrEmpty;
  if ((ier & kIerModem) != 0 && msr_delta != 0) return kIirModem;
  return kIirNone;
}

bool Serial::State::irq() const {
  return interrupt() != kIirNone && (mcr & kMcrOut2) != 0;
}

// A peer that is always there and ready; in loopback the chip's own outputs, as the datasheet wires them.
std::uint8_t Serial::State::modem_status() const {
  if (!loopback()) return kMsrCts | kMsrDsr | kMsrDcd;
  std::uint8_t status = 0;
  if ((mcr & kMcrRts) != 0) status |= kMsrCts;
  if ((mcr & kMcrDtr) != 0) status |= kMsrDsr;
  if ((mcr & kMcrOut1) != 0) status |= kMsrRing;
  if ((mcr & kMcrOut2) != 0) status |= kMsrDcd;
  return status;
}

void Serial::State::refill() {
  if (loopback()) return;  // the receiver is disconnected from the line
  while (!queue.empty() && fifo.size() < fifo_bytes()) {
    fifo.push_back(queue.front());
    queue.pop_front();
  }
}

void Serial::read(std::uint64_t offset, std::span<std::byte> out) {
  for (std::byte& byte : out) byte = static_cast<std::byte>(read_register(offset++));
  update_irq();
}

void Serial::write(std::uint64_t offset, std::span<const std::byte> in) {
  for (const std::byte byte : in) write_register(offset++, std::to_integer<std::uint8_t>(byte));
  update_irq();
}

std::uint8_t Serial::read_register(std::uint64_t offset) {
  switch (offset) {
    case kData:
      return state_.divisor_latch() ? static_cast<std::uint8_t>(state_.divisor & 0xff) : receive();
    case kInterruptEnable:
      return state_.divisor_latch() ? static_cast<std::uint8_t>(state_.divisor >> 8) : state_.ier;
    case kInterruptIdent:
      return read_iir();
    case kLineControl:
      return state_.lcr;
    case kModemControl:
      return state_.mcr;
    case kLineStatus: {
      const std::uint8_t errors = std::exchange(state_.lsr_errors, std::uint8_t{0});
      const std::uint8_t ready = state_.fifo.empty() ? 0 : kLsrDataReady;
      return errors | ready | kLsrThrEmpty | kLsrIdle;  // a byte has left before the next instruction
    }
    case kModemStatus:
      return state_.modem_status() | std::exchange(state_.msr_delta, std::uint8_t{0});
    case kScratch:
      return state_.scr;
    default:
      return kUnconnected;
  }
}

void Serial::write_register(std::uint64_t offset, std::uint8_t value) {
  switch (offset) {
    case kData:
      if (state_.divisor_latch()) {
        state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0xff00) | value);
      } else {
        transmit(value);
      }
      break;
    case kInterruptEnable:
      if (state_.divisor_latch()) {
        state_.divisor = static_cast<std::uint16_t>((state_.divisor & 0x00ff) | (value << 8));
      } else {
        write_ier(value);
      }
      break;
    case kInterruptIdent:
      write_fcr(value);
      break;
    case kLineControl:
      state_.lcr = value;
      break;
    case kModemControl:
      write_mcr(value);
      break;
    case kScratch:
      state_.scr = value;
      break;
    default:
      break;  // LSR and MSR are read only
  }
}

std::uint8_t Serial::receive() {
  if (state_.fifo.empty()) return 0;
  const std::uint8_t value = state_.fifo.front();
  state_.fifo.pop_front();
  state_.refill();
  return value;
}

// Reading IIR takes back the transmitter's interrupt, but only if that is the one being reported.
std::uint8_t Serial::read_iir() {
  const std::uint8_t source = state_.interrupt();
  if (source == kIirThrEmpty) state_.thr_empty_pending = false;
  const std::uint8_t fifos = (state_.fcr & kFcrEnable) != 0 ? kIirFifos : 0;
  return source | fifos;
}

void Serial::transmit(std::uint8_t value) {
  state_.thr_empty_pending = true;  // the byte is gone at once
  if (!state_.loopback()) {
    const auto byte = static_cast<std::byte>(value);
    out_.emit({&byte, 1});
  } else if (state_.fifo.size() < state_.fifo_bytes()) {
    state_.fifo.push_back(value);
  } else {
    state_.lsr_errors |= kLsrOverrun;
  }
}

// Enabling the transmitter's interrupt while THR is empty raises it at once; Linux tests for that.
void Serial::write_ier(std::uint8_t value) {
  const std::uint8_t enabled = static_cast<std::uint8_t>(value & ~state_.ier);
  state_.ier = value & kIerBits;
  if ((enabled & kIerThrEmpty) != 0) state_.thr_empty_pending = true;
}

void Serial::write_fcr(std::uint8_t value) {
  const bool toggled = ((value ^ state_.fcr) & kFcrEnable) != 0;
  // The other bits are only taken together with the enable bit.
  state_.fcr = (value & kFcrEnable) != 0 ? (value & kFcrKept) : std::uint8_t{0};
  if (toggled || (value & kFcrClearReceiver) != 0) state_.fifo.clear();
  state_.refill();
}

void Serial::write_mcr(std::uint8_t value) {
  const std::uint8_t before = state_.modem_status();
  state_.mcr = value & kMcrBits;
  const std::uint8_t after = state_.modem_status();
  std::uint8_t delta = static_cast<std::uint8_t>((before ^ after) >> 4);
  const bool ring_began = (after & kMsrRing) != 0;
  if (ring_began) delta &= static_cast<std::uint8_t>(~kMsrRingEnded);
  state_.msr_delta |= delta;
  state_.refill();
}

std::size_t Serial::push_input(std::span<const std::byte> bytes) {
  const std::size_t fifo_room = state_.loopback() ? 0 : state_.fifo_bytes() - state_.fifo.size();
  const std::size_t taken = std::min(bytes.size(), fifo_room + kSerialQueueBytesMax - state_.queue.size());
  for (const std::byte byte : bytes.first(taken)) state_.queue.push_back(std::to_integer<std::uint8_t>(byte));
  state_.refill();
  update_irq();
  return taken;
}

void Serial::update_irq() {
  const bool level = state_.irq();
  if (level == state_.irq_level) return;
  state_.irq_level = level;
  irq_.set(level);
}

}  // namespace fvmm::devices
