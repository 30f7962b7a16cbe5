// The transport's state, version 1: see docs/devices.md for the layout.
#include <fmt/format.h>

#include "base/check.h"
#include "devices/state_codec.h"
#include "devices/virtio_abi.h"
#include "devices/virtio_mmio.h"

namespace fvmm::devices {
using namespace virtio;

namespace {

Error bad(std::string_view why) {
  return {Errc::kInvalidArgument, fmt::format("virtio-mmio state: {}", why)};
}

void put(StateWriter& writer, const Virtqueue::Rings& rings, const Virtqueue::Indices& indices) {
  writer.put(rings.size);
  writer.put(rings.descriptors);
  writer.put(rings.driver);
  writer.put(rings.device);
  writer.put(indices.next_available);
  writer.put(indices.next_used);
  writer.put(indices.signalled_used);
}

/// Each step of the driver's life includes the ones before it.
bool in_order(std::uint32_t status) {
  const auto has = [&](std::uint32_t bit) { return (status & bit) != 0; };
  return (has(kStatusAcknowledge) || !has(kStatusDriver)) && (has(kStatusDriver) || !has(kStatusFeaturesOk)) &&
         (has(kStatusFeaturesOk) || !has(kStatusDriverOk));
}

}  // namespace

DeviceState VirtioMmio::save() const {
  FVMM_CHECK(quiet_, "a virtio device is saved only while quiet");
  const VirtioSignals::State signals = signals_.state();
  StateWriter writer;
  writer.put(device_->type());
  writer.put(state_.status);
  writer.put(state_.device_features_select);
  writer.put(state_.driver_features_select);
  writer.put(state_.driver_features);
  writer.put(state_.queue_select);
  writer.put(signals.interrupt_status);
  writer.put(signals.config_generation);
  writer.put(signals.needs_reset);
  writer.put(static_cast<std::uint8_t>(queues_.size()));
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    writer.put(state_.queues[i].ready);
    put(writer, state_.queues[i].rings, queues_[i].indices());
  }
  const DeviceState device = device_->save();
  writer.put(device.version);
  writer.put(static_cast<std::uint32_t>(device.bytes.size()));
  for (const std::byte byte : device.bytes) writer.put(std::to_integer<std::uint8_t>(byte));
  return {.version = kVirtioMmioStateVersion, .bytes = writer.take()};
}

Result<VirtioMmio::Saved> VirtioMmio::parse(const DeviceState& state) const {
  if (state.version != kVirtioMmioStateVersion) return bad(fmt::format("version {}, want 1", state.version));
  StateReader reader(state.bytes);
  const auto type = reader.get<std::uint32_t>();
  Saved saved;
  saved.registers.status = reader.get<std::uint32_t>();
  saved.registers.device_features_select = reader.get<std::uint32_t>();
  saved.registers.driver_features_select = reader.get<std::uint32_t>();
  saved.registers.driver_features = reader.get<std::uint64_t>();
  saved.registers.queue_select = reader.get<std::uint32_t>();
  saved.signals.interrupt_status = reader.get<std::uint32_t>();
  saved.signals.config_generation = reader.get<std::uint32_t>();
  saved.signals.needs_reset = reader.get_bool();
  const auto queues = reader.get<std::uint8_t>();
  if (type != device_->type() || queues != queues_.size()) {
    return bad(fmt::format("device type {} with {} queues, {} here is type {} with {}", type, queues, id_,
                           device_->type(), queues_.size()));
  }
  for (unsigned i = 0; i < queues; ++i) {
    QueueRegisters& queue = saved.registers.queues.emplace_back();
    Virtqueue::Indices& indices = saved.indices.emplace_back();
    queue.ready = reader.get_bool();
    queue.rings.size = reader.get<std::uint16_t>();
    queue.rings.descriptors = reader.get<std::uint64_t>();
    queue.rings.driver = reader.get<std::uint64_t>();
    queue.rings.device = reader.get<std::uint64_t>();
    indices.next_available = reader.get<std::uint16_t>();
    indices.next_used = reader.get<std::uint16_t>();
    indices.signalled_used = reader.get<std::uint16_t>();
  }
  saved.device.version = reader.get<std::uint32_t>();
  for (auto left = reader.get_count<std::uint32_t>(); left > 0; --left) {
    saved.device.bytes.push_back(static_cast<std::byte>(reader.get<std::uint8_t>()));
  }
  if (!reader.complete()) return bad("wrong length or a flag that is neither 0 nor 1");
  return saved;
}

// Only what a running transport can reach: a state that passes saves as the same bytes again.
Status VirtioMmio::check(const Saved& saved) const {
  const State& registers = saved.registers;
  constexpr std::uint32_t kStatusBits =
      kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk | kStatusFailed;
  if ((registers.status & ~kStatusBits) != 0 || !in_order(registers.status)) return bad("an impossible device status");
  if ((saved.signals.interrupt_status & ~(kInterruptUsed | kInterruptConfig)) != 0) {
    return bad("InterruptStatus has reserved bits");
  }
  const bool settled = (registers.status & kStatusFeaturesOk) != 0;
  const std::uint64_t features = registers.driver_features;
  if (settled && ((features & ~offered()) != 0 || (features & kFeatureVersion1) == 0)) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("{}: the guest uses features {:#x}, offered here are {:#x}", id_, features, offered()));
  }
  for (std::size_t i = 0; i < registers.queues.size(); ++i) {
    const QueueRegisters& queue = registers.queues[i];
    const Virtqueue::Indices& indices = saved.indices[i];
    if (!settled && (queue.ready || queue.rings != Virtqueue::Rings{}))
      return bad("a queue set up before the features");
    if (queue.rings.size > kQueueSizeMax) return bad("a queue is larger than any may be");
    if (!queue.ready && indices != Virtqueue::Indices{}) return bad("a queue that is not ready has indices");
    if (!queue.ready) continue;
    if (!Virtqueue::fits(around_.memory.layout(), queue.rings, device_->queue_sizes()[i])) {
      return bad("a ready queue has an impossible size or place");
    }
    const auto in_flight = static_cast<std::uint16_t>(indices.next_available - indices.next_used);
    if (in_flight > queue.rings.size) return bad("a queue has more requests in flight than entries");
  }
  return {};
}

void VirtioMmio::take(Saved saved) {
  for (Virtqueue& queue : queues_) queue.disable();
  state_ = std::move(saved.registers);
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    if (state_.queues[i].ready) queues_[i].enable(state_.queues[i].rings, state_.driver_features, saved.indices[i]);
  }
  signals_.load(saved.signals);
  if (active()) activate();
}

// The device's own part is the last that can be refused; it then has its old one back, and goes on as before.
Status VirtioMmio::load(const DeviceState& state) {
  FVMM_CHECK(quiet_, "a virtio device is loaded only while quiet");
  Saved saved = FVMM_TRY(parse(state));
  FVMM_TRY(check(saved));
  const DeviceState before = device_->save();
  unbind_doorbells();
  device_->reset();
  if (Status loaded = device_->load(saved.device); !loaded) {
    FVMM_CHECK(device_->load(before).ok(), "a device loads what it has just saved");
    if (active()) activate();
    return std::move(loaded.error()).with(id_);
  }
  take(std::move(saved));
  return {};
}

}  // namespace fvmm::devices
