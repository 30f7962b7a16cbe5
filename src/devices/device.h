// The device contract: a register window on a bus, whole state saved, all-or-nothing load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fvmm::devices {

/// One device's state as a snapshot carries it.
struct DeviceState {
  std::uint32_t version = 0;
  std::vector<std::byte> bytes;
};

/// A device on a port or MMIO bus. Every method runs with the bus lock held.
class Device {
 public:
  Device() = default;
  virtual ~Device() = default;
  Device(const Device&) = delete;  // a bus holds it by reference: identity matters
  Device& operator=(const Device&) = delete;
  Device(Device&&) = delete;
  Device& operator=(Device&&) = delete;

  [[nodiscard]] virtual std::string_view id() const = 0;                  // stable; names it in a snapshot
  virtual void read(std::uint64_t offset, std::span<std::byte> out) = 0;  // answers as hardware would; never fails
  virtual void write(std::uint64_t offset, std::span<const std::byte> in) = 0;

  /// Call only while the vCPUs are parked. Cannot fail: state is already in memory.
  [[nodiscard]] virtual DeviceState save() const = 0;
  /// All or nothing: on error the device keeps its old state. Accepts this version and the last.
  virtual Status load(const DeviceState& state) = 0;
};

/// One interrupt input of the guest's interrupt controller; vmm implements it over KVM. Thread: any.
class IrqLine {
 public:
  IrqLine() = default;
  virtual ~IrqLine() = default;
  IrqLine(const IrqLine&) = delete;
  IrqLine& operator=(const IrqLine&) = delete;
  IrqLine(IrqLine&&) = delete;
  IrqLine& operator=(IrqLine&&) = delete;
  virtual void set(bool level) = 0;
};

/// Where a device's output leaves the VM. Stands in front of everything that leaves, so that fault tolerance can hold
/// it.
class OutputSink {
 public:
  OutputSink() = default;
  virtual ~OutputSink() = default;
  OutputSink(const OutputSink&) = delete;
  OutputSink& operator=(const OutputSink&) = delete;
  OutputSink(OutputSink&&) = delete;
  OutputSink& operator=(OutputSink&&) = delete;
  virtual void emit(std::span<const std::byte> bytes) = 0;  // never blocks the vCPU for long; counts what it must drop
};

}  // namespace fvmm::devices
