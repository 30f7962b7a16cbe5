#include "devices/bus.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace fvmm::devices {

void Bus::add(std::uint64_t base, std::uint64_t length, Device& device, std::uint64_t offset) {
  FVMM_CHECK(length > 0, "a device claims at least one address");
  FVMM_CHECK(base <= std::numeric_limits<std::uint64_t>::max() - (length - 1), "a range ends inside the address space");
  const Guard guard(mutex_);
  FVMM_CHECK(ranges_.size() < kBusRangesMax, "a bus has at most kBusRangesMax ranges");
  const Device* const same_id = find_device(device.id());
  FVMM_CHECK(same_id == nullptr || same_id == &device, "an id names one device of a bus");

  const Range range{.base = base, .last = base + (length - 1), .device = &device, .offset = offset};
  const auto next = std::ranges::upper_bound(ranges_, base, {}, &Range::base);
  FVMM_CHECK(next == ranges_.end() || range.last < next->base, "ranges of a bus do not overlap");
  FVMM_CHECK(next == ranges_.begin() || std::prev(next)->last < base, "ranges of a bus do not overlap");
  ranges_.insert(next, range);
  if (same_id == nullptr) devices_.push_back(&device);
}

const Bus::Range* Bus::find(std::uint64_t address, std::size_t width) const {
  if (width == 0) return nullptr;
  const auto next = std::ranges::upper_bound(ranges_, address, {}, &Range::base);
  if (next == ranges_.begin()) return nullptr;
  const Range& range = *std::prev(next);
  const bool whole = address <= range.last && width - 1 <= range.last - address;
  return whole ? &range : nullptr;
}

Device* Bus::find_device(std::string_view id) const {
  const auto found = std::ranges::find(devices_, id, &Device::id);
  return found == devices_.end() ? nullptr : *found;
}

void Bus::read(std::uint64_t address, std::span<std::byte> out) {
  const Guard guard(mutex_);
  read_locked(address, out);
}

void Bus::write(std::uint64_t address, std::span<const std::byte> in) {
  const Guard guard(mutex_);
  write_locked(address, in);
}

void Bus::read_repeated(std::uint64_t address, std::size_t width, std::span<std::byte> out) {
  FVMM_CHECK(width > 0 && out.size() % width == 0, "a string access is made of whole accesses");
  const Guard guard(mutex_);
  for (; !out.empty(); out = out.subspan(width)) read_locked(address, out.first(width));
}

void Bus::write_repeated(std::uint64_t address, std::size_t width, std::span<const std::byte> in) {
  FVMM_CHECK(width > 0 && in.size() % width == 0, "a string access is made of whole accesses");
  const Guard guard(mutex_);
  for (; !in.empty(); in = in.subspan(width)) write_locked(address, in.first(width));
}

void Bus::read_locked(std::uint64_t address, std::span<std::byte> out) {
  if (const Range* range = find(address, out.size())) {
    range->device->read(address - range->base + range->offset, out);
    return;
  }
  std::ranges::fill(out, std::byte{0xff});  // nobody drives the data lines
  unclaimed_reads_.fetch_add(1, std::memory_order_relaxed);
  log_unclaimed("read", address, out.size());
}

void Bus::write_locked(std::uint64_t address, std::span<const std::byte> in) {
  if (const Range* range = find(address, in.size())) {
    range->device->write(address - range->base + range->offset, in);
    return;
  }
  unclaimed_writes_.fetch_add(1, std::memory_order_relaxed);
  log_unclaimed("write", address, in.size());
}

void Bus::log_unclaimed(const char* verb, std::uint64_t address, std::size_t width) {
  if (logged_.size() >= kUnclaimedLoggedMax) return;
  const auto place = std::ranges::lower_bound(logged_, address);
  if (place != logged_.end() && *place == address) return;
  logged_.insert(place, address);
  spdlog::info("{} bus: unclaimed {} of {} bytes at {:#x}{}", name_, verb, width, address,
               logged_.size() == kUnclaimedLoggedMax ? "; further addresses are not logged" : "");
}

bool Bus::has(std::string_view id) const {
  const Guard guard(mutex_);
  return find_device(id) != nullptr;
}

std::vector<NamedState> Bus::save_all() const {
  const Guard guard(mutex_);
  std::vector<NamedState> states;
  states.reserve(devices_.size());
  for (const Device* device : devices_) states.push_back({std::string(device->id()), device->save()});
  return states;
}

Status Bus::check_records(std::span<const NamedState> states) const {
  for (const NamedState& record : states) {
    if (find_device(record.id) == nullptr) {
      return Error(Errc::kInvalidArgument, fmt::format("{} bus has no device '{}'", name_, record.id));
    }
    if (std::ranges::count(states, record.id, &NamedState::id) != 1) {
      return Error(Errc::kInvalidArgument, fmt::format("two states of device '{}'", record.id));
    }
  }
  for (const Device* device : devices_) {
    if (std::ranges::find(states, device->id(), &NamedState::id) == states.end()) {
      return Error(Errc::kInvalidArgument, fmt::format("no state of device '{}'", device->id()));
    }
  }
  return {};
}

Status Bus::load_all(std::span<const NamedState> states) {
  const Guard guard(mutex_);
  FVMM_TRY(check_records(states));
  std::vector<std::pair<Device*, DeviceState>> undo;
  for (const NamedState& record : states) {
    Device* const device = find_device(record.id);
    undo.emplace_back(device, device->save());
    if (Status loaded = device->load(record.state); !loaded) {
      undo.pop_back();  // this one kept its old state by itself
      for (const auto& [earlier, old_state] : undo) {
        FVMM_CHECK(earlier->load(old_state).ok(), "a device loads what it has just saved");
      }
      return std::move(loaded.error()).with(fmt::format("state of device '{}'", record.id));
    }
  }
  return {};
}

}  // namespace fvmm::devices
