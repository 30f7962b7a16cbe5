// The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): registers, status, feature negotiation and queues in
// front of one VirtioDevice. Every method runs with the bus lock held, unless it says otherwise.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "devices/device.h"
#include "devices/virtio_device.h"
#include "devices/virtio_queue.h"
#include "devices/virtio_signals.h"
#include "memory/guest_memory.h"

namespace fvmm::devices {

inline constexpr std::uint64_t kVirtioMmioBytes = 0x1000;  // of one device's window
inline constexpr std::uint32_t kVirtioMmioStateVersion = 1;

class VirtioMmio final : public Device {
 public:
  /// What surrounds the transport; all of it outlives it.
  struct Surroundings {
    memory::GuestMemory& memory;
    IrqLine& line;
    Doorbells* doorbells = nullptr;  // null: every notification is an exit
    std::uint64_t address = 0;       // of the window, for doorbells
  };
  /// @param id  name in a snapshot: "virtio0" for the device in slot 0
  VirtioMmio(std::string id, Surroundings surroundings, std::unique_ptr<VirtioDevice> device);
  ~VirtioMmio() override;
  VirtioMmio(const VirtioMmio&) = delete;
  VirtioMmio& operator=(const VirtioMmio&) = delete;
  VirtioMmio(VirtioMmio&&) = delete;
  VirtioMmio& operator=(VirtioMmio&&) = delete;

  [[nodiscard]] std::string_view id() const override { return id_; }
  void read(std::uint64_t offset, std::span<std::byte> out) override;
  void write(std::uint64_t offset, std::span<const std::byte> in) override;
  /// Only while quiet. docs/devices.md has the layout.
  [[nodiscard]] DeviceState save() const override;
  /// All or nothing, only while quiet. Guest memory need not be there yet. Load after the irqchip's state.
  Status load(const DeviceState& state) override;

  /// The device's own, under its contract.
  Status quiesce(const Deadline& deadline);
  void resume();
  [[nodiscard]] VirtioDevice& device() { return *device_; }
  [[nodiscard]] const VirtioSignals& signals() const { return signals_; }  // thread: any

 private:
  struct QueueRegisters {
    Virtqueue::Rings rings;  // the size is 0 until the driver has chosen one
    bool ready = false;
  };
  /// Registers that the driver wrote. A value, so that load() can build a new one and then replace the old.
  struct State {
    std::uint32_t status = 0;  // without DEVICE_NEEDS_RESET, which is the signals'
    std::uint32_t device_features_select = 0;
    std::uint32_t driver_features_select = 0;
    std::uint64_t driver_features = 0;
    std::uint32_t queue_select = 0;
    std::vector<QueueRegisters> queues;
  };
  struct Saved {  // everything that a DeviceState holds
    State registers;
    VirtioSignals::State signals;
    std::vector<Virtqueue::Indices> indices;
    DeviceState device;
  };

  [[nodiscard]] std::uint64_t offered() const;
  [[nodiscard]] bool active() const;
  [[nodiscard]] bool features_settled() const;
  [[nodiscard]] std::uint32_t status() const;
  QueueRegisters* selected();
  [[nodiscard]] std::uint32_t read_register(std::uint64_t offset);
  void write_register(std::uint64_t offset, std::uint32_t value);
  void read_config(std::uint64_t offset, std::span<std::byte> out);
  void write_config(std::uint64_t offset, std::span<const std::byte> in);
  void write_driver_features(std::uint32_t value);
  void write_queue(std::uint64_t offset, std::uint32_t value);
  void write_queue_ready(std::uint32_t value);
  void stop_queue(unsigned index);
  void notify(std::uint32_t queue);
  void write_status(std::uint32_t value);
  void activate();
  void reset();
  void bind_doorbell(unsigned queue);
  void unbind_doorbell(unsigned queue);
  void unbind_doorbells();

  Result<Saved> parse(const DeviceState& state) const;
  Status check(const Saved& saved) const;
  void take(Saved saved);

  const std::string id_;
  const Surroundings around_;
  VirtioSignals signals_;
  State state_;                           // bus lock
  std::vector<Virtqueue> queues_;         // bus lock, or the device's thread: see virtio_device.h
  std::vector<int> bound_;                // bus lock; one eventfd a queue, -1: none
  bool quiet_ = true;                     // bus lock
  std::unique_ptr<VirtioDevice> device_;  // last: it uses the queues and the signals
};

}  // namespace fvmm::devices
