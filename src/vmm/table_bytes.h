// What the tables of firmware are put together from, MP and ACPI alike. Internal to vmm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace fvmm::vmm {

inline constexpr std::uint32_t kLocalApicAddress = 0xFEE00000;
inline constexpr std::uint32_t kIoapicAddress = 0xFEC00000;

template <class T>
void append(std::vector<std::byte>& bytes, const T& value) {
  const auto part = std::as_bytes(std::span(&value, 1));
  bytes.insert(bytes.end(), part.begin(), part.end());
}

/// What makes the bytes sum up to 0.
inline std::uint8_t checksum(std::span<const std::byte> bytes) {
  const auto sum = std::accumulate(bytes.begin(), bytes.end(), 0U, [](unsigned total, std::byte byte) {
    return total + std::to_integer<unsigned>(byte);
  });
  return static_cast<std::uint8_t>(-sum);
}

}  // namespace fvmm::vmm
