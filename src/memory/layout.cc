#include "memory/layout.h"

#include <fmt/format.h>

#include "base/check.h"

namespace fvmm::memory {

Result<Layout> Layout::of(std::uint64_t ram_bytes) {
  if (ram_bytes % kPageBytes != 0 || ram_bytes < kRamBytesMin || ram_bytes > kRamBytesMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("guest RAM of {} bytes: must be a multiple of {} from {} to {}", ram_bytes, kPageBytes,
                             format_bytes(kRamBytesMin), format_bytes(kRamBytesMax)));
  }
  return Layout(ram_bytes);
}

Slot Layout::slot(unsigned index) const {
  FVMM_CHECK(index < slot_count(), "no such RAM slot");
  if (index == 0) {
    return {.guest_address = 0, .ram_offset = 0, .bytes = ram_bytes_ < kHoleStart ? ram_bytes_ : kHoleStart};
  }
  return {.guest_address = kHoleEnd, .ram_offset = kHoleStart, .bytes = ram_bytes_ - kHoleStart};
}

std::optional<std::uint64_t> Layout::ram_offset(std::uint64_t guest_address, std::uint64_t bytes) const {
  for (unsigned i = 0; i < slot_count(); ++i) {
    const Slot candidate = slot(i);
    if (guest_address < candidate.guest_address) continue;
    const std::uint64_t within = guest_address - candidate.guest_address;
    if (within > candidate.bytes || bytes > candidate.bytes - within) continue;  // no sum: it could wrap
    return candidate.ram_offset + within;
  }
  return std::nullopt;
}

}  // namespace fvmm::memory
