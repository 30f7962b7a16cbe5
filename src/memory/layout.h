// Where guest RAM lies in guest-physical space, and the linear RAM page index that everything else counts in.
#pragma once

#include <cstdint>
#include <optional>

#include "base/result.h"
#include "base/units.h"

namespace fvmm::memory {

/// Linear index of a RAM page: 0 is guest-physical 0; pages above the hole follow those below without a gap.
/// Templates, deltas, dirty bitmaps and the wire count in it; only layout.h knows guest-physical addresses.
using PageIndex = std::uint64_t;

inline constexpr std::uint64_t kHoleStart = 3 * kGiB;  // MMIO, LAPIC, IOAPIC live in [3 GiB, 4 GiB)
inline constexpr std::uint64_t kHoleEnd = 4 * kGiB;
inline constexpr std::uint64_t kRamBytesMin = 16 * kMiB;
inline constexpr std::uint64_t kRamBytesMax = 64 * kGiB;

struct Slot {
  std::uint64_t guest_address;  // bytes
  std::uint64_t ram_offset;     // bytes into linear RAM
  std::uint64_t bytes;
};

/// Split of RAM around the hole below 4 GiB. Immutable.
class Layout {
 public:
  /// kInvalidArgument for a size that is no multiple of 4096, below 16 MiB or above 64 GiB.
  static Result<Layout> of(std::uint64_t ram_bytes);

  [[nodiscard]] std::uint64_t ram_bytes() const { return ram_bytes_; }
  [[nodiscard]] std::uint64_t pages() const { return ram_bytes_ / kPageBytes; }
  [[nodiscard]] unsigned slot_count() const { return ram_bytes_ > kHoleStart ? 2 : 1; }
  [[nodiscard]] Slot slot(unsigned index) const;
  /// Linear offset of [address, address + bytes) when all of it is RAM in one slot.
  [[nodiscard]] std::optional<std::uint64_t> ram_offset(std::uint64_t guest_address, std::uint64_t bytes) const;

 private:
  explicit Layout(std::uint64_t ram_bytes) : ram_bytes_(ram_bytes) {}
  std::uint64_t ram_bytes_;
};

}  // namespace fvmm::memory
