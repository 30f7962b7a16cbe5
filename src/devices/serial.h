// A 16550A UART, as National Semiconductor's PC16550D datasheet describes it and Linux's 8250 driver probes it. Every
// method runs with the bus lock held; output leaves through the sink byte by byte, input comes from push_input().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "devices/device.h"

namespace fvmm::devices {

inline constexpr std::uint64_t kCom1Base = 0x3f8;
inline constexpr std::uint64_t kUartPorts = 8;
inline constexpr unsigned kCom1Irq = 4;
inline constexpr std::size_t kUartFifoBytes = 16;
inline constexpr std::size_t kSerialQueueBytesMax = 4096;  // input that waits on the host for room in the FIFO
inline constexpr std::uint32_t kSerialStateVersion = 1;

class Serial final : public Device {
 public:
  /// @param id   name in a snapshot, "com1"
  /// @param irq  driven to the level of the UART's interrupt, gated by MCR OUT2 as on a PC; must outlive the device
  /// @param out  receives what the guest transmits; must outlive the device
  Serial(std::string id, IrqLine& irq, OutputSink& out);

  [[nodiscard]] std::string_view id() const override { return id_; }
  /// An access wider than a byte is split into byte accesses at consecutive offsets, as the ISA bus does.
  void read(std::uint64_t offset, std::span<std::byte> out) override;
  void write(std::uint64_t offset, std::span<const std::byte> in) override;
  [[nodiscard]] DeviceState save() const override;
  /// Also drives the interrupt line to the loaded level: KVM does not carry line levels. Load after the irqchip's
  /// state.
  Status load(const DeviceState& state) override;

  /// Input from the host. Returns how many bytes were taken, from the front; the rest stays with the caller, who comes
  /// back later. Thread: any, with the bus lock held.
  [[nodiscard]] std::size_t push_input(std::span<const std::byte> bytes);

 private:
  /// Everything the guest could notice. A value, so that load() can build a new one and then replace the old.
  struct State {
    std::uint16_t divisor = 12;  // 9600 baud; nothing is timed by it
    std::uint8_t ier = 0;
    std::uint8_t fcr = 0;
    std::uint8_t lcr = 0;
    std::uint8_t mcr = 0;
    std::uint8_t scr = 0;
    std::uint8_t lsr_errors = 0;  // overrun only; cleared when LSR is read
    std::uint8_t msr_delta = 0;   // cleared when MSR is read
    bool thr_empty_pending = false;
    bool irq_level = false;
    std::deque<std::uint8_t> fifo;   // at most fifo_bytes()
    std::deque<std::uint8_t> queue;  // at most kSerialQueueBytesMax

    [[nodiscard]] std::size_t fifo_bytes() const;
    [[nodiscard]] std::uint8_t interrupt() const;  // IIR bits 3..0: the highest pending and enabled source
    [[nodiscard]] bool irq() const;
    [[nodiscard]] std::uint8_t modem_status() const;  // MSR bits 7..4
    [[nodiscard]] bool loopback() const;
    [[nodiscard]] bool divisor_latch() const;
    void refill();  // queue to FIFO
  };

  static Result<State> parse(const DeviceState& state);
  static Status check(const State& state);
  std::uint8_t read_register(std::uint64_t offset);
  void write_register(std::uint64_t offset, std::uint8_t value);
  std::uint8_t receive();
  std::uint8_t read_iir();
  void transmit(std::uint8_t value);
  void write_ier(std::uint8_t value);
  void write_fcr(std::uint8_t value);
  void write_mcr(std::uint8_t value);
  void update_irq();

  const std::string id_;
  IrqLine& irq_;
  OutputSink& out_;
  State state_;  // bus lock
};

}  // namespace fvmm::devices
