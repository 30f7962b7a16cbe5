// How a guest reads the tables of firmware: bytes, sums, fields at offsets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace fvmm::testing {

inline std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
/// 0 for a table that is whole.
inline unsigned sum_of(std::string_view bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), 0U,
                         [](unsigned total, char c) { return total + static_cast<std::uint8_t>(c); }) &
         0xFF;
}
template <class T>
T field_at(std::string_view bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

}  // namespace fvmm::testing
