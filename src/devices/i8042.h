// The keyboard controller's part that outlived the keyboard: the reset line and the A20 gate at ports 0x60 and 0x64. No
// keyboard, no mouse, no interrupt. Every method runs with the bus lock held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "base/result.h"
#include "devices/device.h"

namespace fvmm::devices {

class Bus;

inline constexpr std::uint64_t kI8042DataPort = 0x60;
inline constexpr std::uint64_t kI8042CommandPort = 0x64;
inline constexpr std::uint64_t kI8042CommandOffset = kI8042CommandPort - kI8042DataPort;
inline constexpr std::uint32_t kI8042StateVersion = 1;

class I8042 final : public Device {
 public:
  /// @param reset  called on the vCPU's thread with the bus lock held when the guest pulls the reset line: it only
  ///               tells the machine's owner, and returns
  explicit I8042(std::function<void()> reset);
  /// Claims its two ports; 0x61 to 0x63 stay with others (the in-kernel PIT has 0x61).
  void attach(Bus& bus);

  [[nodiscard]] std::string_view id() const override { return "i8042"; }
  void read(std::uint64_t offset, std::span<std::byte> out) override;
  void write(std::uint64_t offset, std::span<const std::byte> in) override;
  [[nodiscard]] DeviceState save() const override;
  Status load(const DeviceState& state) override;

 private:
  struct State {
    std::uint8_t output_port = 0x03;  // reset line high (inactive), A20 open
    std::uint8_t command = 0;         // the command that waits for its data byte, 0 for none
  };

  void write_command(std::uint8_t value);
  void write_data(std::uint8_t value);

  std::function<void()> reset_;
  State state_;  // bus lock
};

}  // namespace fvmm::devices
