#include "devices/virtio_mmio.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"
#include "devices/virtio_abi.h"

namespace fvmm::devices {
using namespace virtio;

namespace {

constexpr std::chrono::seconds kQueueStopWait{1};  // a driver that takes one queue away waits for its I/O so long
constexpr std::uint32_t kDriverStatusBits =
    kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk | kStatusFailed;

std::uint32_t half(std::uint64_t value, std::uint32_t select) {
  return select > 1 ? 0 : static_cast<std::uint32_t>(value >> (32 * select));
}

void set_half(std::uint64_t& value, bool high, std::uint32_t half) {
  const unsigned shift = high ? 32 : 0;
  value = (value & ~(0xffff'ffffULL << shift)) | (std::uint64_t{half} << shift);
}

std::uint32_t from_bytes(std::span<const std::byte> in) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i) value |= std::to_integer<std::uint32_t>(in[i]) << (8 * i);
  return value;
}

}  // namespace

void VirtioDevice::read_config(std::uint64_t, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
}

void VirtioDevice::write_config(std::uint64_t, std::span<const std::byte>) {}

int VirtioDevice::doorbell(unsigned) const {
  return -1;
}

VirtioMmio::VirtioMmio(std::string id, Surroundings surroundings, std::unique_ptr<VirtioDevice> device)
    : id_(std::move(id)), around_(surroundings), signals_(surroundings.line), device_(std::move(device)) {
  const auto sizes = device_->queue_sizes();
  FVMM_CHECK(sizes.size() <= kVirtioQueuesMax, "a virtio device has at most kVirtioQueuesMax queues");
  for (const std::uint16_t size : sizes) {
    FVMM_CHECK(std::has_single_bit(size) && size <= kQueueSizeMax, "a queue's size is a power of two");
    queues_.emplace_back(around_.memory, signals_);
  }
  FVMM_CHECK((device_->features() & kReservedFeatures) == 0, "a device offers only its own features");
  FVMM_CHECK(device_->config_bytes() <= kVirtioConfigBytesMax, "the configuration fits the window");
  state_.queues.resize(sizes.size());
  bound_.assign(sizes.size(), -1);
}

VirtioMmio::~VirtioMmio() {
  unbind_doorbells();
}

std::uint64_t VirtioMmio::offered() const {
  return device_->features() | kTransportFeatures;
}

bool VirtioMmio::features_settled() const {
  return (state_.status & kStatusFeaturesOk) != 0;
}

bool VirtioMmio::active() const {
  return (state_.status & kStatusDriverOk) != 0;
}

std::uint32_t VirtioMmio::status() const {
  return state_.status | (signals_.needs_reset() ? kStatusNeedsReset : 0);
}

VirtioMmio::QueueRegisters* VirtioMmio::selected() {
  return state_.queue_select < state_.queues.size() ? &state_.queues[state_.queue_select] : nullptr;
}

// Section 4.2.2.2: registers are 32 bits wide and accessed whole; the configuration has fields of every width.
void VirtioMmio::read(std::uint64_t offset, std::span<std::byte> out) {
  if (offset >= kConfig) return read_config(offset - kConfig, out);
  std::ranges::fill(out, std::byte{0});
  if (out.size() != sizeof(std::uint32_t) || offset % sizeof(std::uint32_t) != 0) {
    return signals_.count(GuestFault::kRegister);
  }
  const std::uint32_t value = read_register(offset);
  for (std::size_t i = 0; i < sizeof value; ++i) out[i] = static_cast<std::byte>(value >> (8 * i));
}

void VirtioMmio::write(std::uint64_t offset, std::span<const std::byte> in) {
  if (offset >= kConfig) return write_config(offset - kConfig, in);
  if (in.size() != sizeof(std::uint32_t) || offset % sizeof(std::uint32_t) != 0) {
    return signals_.count(GuestFault::kRegister);
  }
  write_register(offset, from_bytes(in));
}

void VirtioMmio::read_config(std::uint64_t offset, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
  const std::size_t size = device_->config_bytes();
  if (offset < size) device_->read_config(offset, out.first(std::min<std::uint64_t>(out.size(), size - offset)));
}

void VirtioMmio::write_config(std::uint64_t offset, std::span<const std::byte> in) {
  const std::size_t size = device_->config_bytes();
  if (offset < size) device_->write_config(offset, in.first(std::min<std::uint64_t>(in.size(), size - offset)));
}

std::uint32_t VirtioMmio::read_register(std::uint64_t offset) {
  switch (offset) {
    case kMagicValue:
      return kMagic;
    case kVersion:
      return kMmioVersion;
    case kDeviceId:
      return device_->type();
    case kVendorId:
      return kVendor;
    case kDeviceFeatures:
      return half(offered(), state_.device_features_select);
    case kQueueSizeMaxRegister:
      return selected() != nullptr ? device_->queue_sizes()[state_.queue_select] : 0;
    case kQueueReady:
      return selected() != nullptr && selected()->ready ? 1 : 0;
    case kInterruptStatus:
      return signals_.state().interrupt_status;
    case kStatus:
      return status();
    case kShmLenLow:
    case kShmLenHigh:
    case kShmBaseLow:
    case kShmBaseHigh:
      return 0xffff'ffff;  // no such region
    case kConfigGeneration:
      return signals_.state().config_generation;
    default:
      return 0;  // write only, reserved, or QueueReset, which needs a feature that is not offered
  }
}

void VirtioMmio::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case kDeviceFeaturesSel:
      state_.device_features_select = value;
      break;
    case kDriverFeaturesSel:
      state_.driver_features_select = value;
      break;
    case kDriverFeatures:
      write_driver_features(value);
      break;
    case kQueueSel:
      state_.queue_select = value;
      break;
    case kQueueReady:
      write_queue_ready(value);
      break;
    case kQueueSize:
    case kQueueDescLow:
    case kQueueDescHigh:
    case kQueueDriverLow:
    case kQueueDriverHigh:
    case kQueueDeviceLow:
    case kQueueDeviceHigh:
      write_queue(offset, value);
      break;
    case kQueueNotify:
      notify(value);
      break;
    case kInterruptAck:
      signals_.acknowledge(value);
      break;
    case kStatus:
      write_status(value);
      break;
    case kShmSel:
      break;  // there is no region to select
    default:
      signals_.count(GuestFault::kRegister);
  }
}

void VirtioMmio::write_driver_features(std::uint32_t value) {
  const std::uint32_t select = state_.driver_features_select;
  if (features_settled()) return signals_.count(GuestFault::kRegister);
  if (select <= 1) {
    set_half(state_.driver_features, select == 1, value);
  } else if (value != 0) {
    signals_.count(GuestFault::kRegister);  // bits that nobody offered
  }
}

void VirtioMmio::write_queue(std::uint64_t offset, std::uint32_t value) {
  QueueRegisters* const queue = selected();
  if (queue == nullptr || queue->ready || !features_settled() || active()) {
    return signals_.count(GuestFault::kRegister);
  }
  Virtqueue::Rings& rings = queue->rings;
  switch (offset) {
    case kQueueSize:
      rings.size = value <= kQueueSizeMax ? static_cast<std::uint16_t>(value) : 0;  // 0 is refused by QueueReady
      break;
    case kQueueDescLow:
    case kQueueDescHigh:
      set_half(rings.descriptors, offset == kQueueDescHigh, value);
      break;
    case kQueueDriverLow:
    case kQueueDriverHigh:
      set_half(rings.driver, offset == kQueueDriverHigh, value);
      break;
    default:
      set_half(rings.device, offset == kQueueDeviceHigh, value);
      break;
  }
}

void VirtioMmio::write_queue_ready(std::uint32_t value) {
  QueueRegisters* const queue = selected();
  if (queue == nullptr || value > 1 || !features_settled()) return signals_.count(GuestFault::kRegister);
  if (value == 0) return stop_queue(state_.queue_select);
  if (queue->ready || active()) return signals_.count(GuestFault::kRegister);
  const std::uint16_t size_max = device_->queue_sizes()[state_.queue_select];
  if (!Virtqueue::fits(around_.memory.layout(), queue->rings, size_max)) {
    return signals_.fault(GuestFault::kQueueSetup);
  }
  queue->ready = true;
  queues_[state_.queue_select].enable(queue->rings, state_.driver_features, {});
}

// A device that works on its own thread gives the queue back first.
void VirtioMmio::stop_queue(unsigned index) {
  if (!state_.queues[index].ready) return;
  const bool running = active() && !quiet_;
  if (running && !device_->quiesce(Deadline::after(kQueueStopWait))) return signals_.fault(GuestFault::kQueueSetup);
  unbind_doorbell(index);
  queues_[index].disable();
  state_.queues[index] = {};
  if (running) device_->resume();
}

// While quiet nothing is served: resume() looks at every queue.
void VirtioMmio::notify(std::uint32_t queue) {
  const bool there = queue < queues_.size() && queues_[queue].enabled() && active();
  if (!there) return signals_.count(GuestFault::kNotify);
  if (!quiet_ && !signals_.needs_reset()) device_->notify(queue);
}

// Section 3.1.1: each step needs the one before it; bits only go away by a reset. What the driver may not set it finds
// unset when it reads the register back.
void VirtioMmio::write_status(std::uint32_t value) {
  if (value == 0) return reset();
  value &= ~kStatusNeedsReset;  // ours; a driver writes back what it has read
  if ((value & ~kDriverStatusBits) != 0 || (state_.status & ~value) != 0) return signals_.count(GuestFault::kRegister);
  const std::uint32_t before = state_.status;
  const auto step = [&](std::uint32_t bit, bool allowed) {
    if ((value & ~state_.status & bit) == 0) return;
    if (allowed) {
      state_.status |= bit;
    } else {
      signals_.count(GuestFault::kRegister);
    }
  };
  const std::uint64_t features = state_.driver_features;
  step(kStatusAcknowledge, true);
  step(kStatusDriver, (state_.status & kStatusAcknowledge) != 0);
  step(kStatusFeaturesOk,
       (state_.status & kStatusDriver) != 0 && (features & ~offered()) == 0 && (features & kFeatureVersion1) != 0);
  step(kStatusDriverOk, features_settled());
  step(kStatusFailed, true);
  if (((state_.status & ~before) & kStatusDriverOk) != 0) activate();
}

void VirtioMmio::activate() {
  for (unsigned i = 0; i < queues_.size(); ++i) bind_doorbell(i);
  device_->activate(
      {.features = state_.driver_features, .queues = queues_, .signals = &signals_, .memory = &around_.memory});
}

void VirtioMmio::reset() {
  unbind_doorbells();
  device_->reset();
  for (Virtqueue& queue : queues_) queue.disable();
  state_ = {};
  state_.queues.resize(queues_.size());
  signals_.reset();
}

void VirtioMmio::bind_doorbell(unsigned queue) {
  const int event = device_->doorbell(queue);
  if (around_.doorbells == nullptr || event < 0 || !queues_[queue].enabled()) return;
  const Status bound = around_.doorbells->bind(around_.address + kQueueNotify, queue, event);
  if (bound) {
    bound_[queue] = event;
  } else {
    spdlog::warn("{}: notifications of queue {} stop the vCPU: {}", id_, queue, bound.error().message());
  }
}

void VirtioMmio::unbind_doorbell(unsigned queue) {
  if (bound_[queue] < 0) return;
  around_.doorbells->unbind(around_.address + kQueueNotify, queue, std::exchange(bound_[queue], -1));
}

void VirtioMmio::unbind_doorbells() {
  for (unsigned i = 0; i < bound_.size(); ++i) unbind_doorbell(i);
}

Status VirtioMmio::quiesce(const Deadline& deadline) {
  if (quiet_) return {};
  FVMM_TRY(device_->quiesce(deadline), id_);
  quiet_ = true;
  return {};
}

void VirtioMmio::resume() {
  if (!quiet_) return;
  quiet_ = false;
  device_->resume();
}

}  // namespace fvmm::devices
