// The bytes of a DeviceState: fixed fields, little endian, one after the other. The writer is a device's save(), the
// reader its load(); the reader never reads past the end and says afterwards whether the bytes were exactly enough.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fvmm::devices {

class StateWriter {
 public:
  template <std::unsigned_integral T>
  void put(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>((value >> (8 * i)) & 0xff));
  }
  void put(bool value) { put(static_cast<std::uint8_t>(value)); }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class StateReader {
 public:
  explicit StateReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T get() {
    if (bytes_.size() < sizeof(T)) return fail<T>();
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value = static_cast<T>(value | (static_cast<T>(std::to_integer<std::uint8_t>(bytes_[i])) << (8 * i)));
    }
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  /// 0 or 1; anything else fails, so that equal states have equal bytes.
  bool get_bool() {
    const auto value = get<std::uint8_t>();
    if (value > 1) good_ = false;
    return value == 1;
  }
  /// A count that says how many bytes of what is left follow; 0 and failed when it says more.
  template <std::unsigned_integral T>
  std::size_t get_count() {
    const auto count = get<T>();
    if (count > bytes_.size()) return fail<std::uint8_t>();
    return count;
  }
  /// Every field was there and nothing is left.
  [[nodiscard]] bool complete() const { return good_ && bytes_.empty(); }

 private:
  template <std::unsigned_integral T>
  T fail() {
    good_ = false;
    bytes_ = {};
    return 0;
  }

  std::span<const std::byte> bytes_;
  bool good_ = true;
};

}  // namespace fvmm::devices
