// What every fuzz target shares: one function that takes bytes somebody else has chosen, and a reader that turns them
// into decisions. libFuzzer calls the function (tools/fuzz), and so does tests/fuzz/replay.cc, with the corpus and with
// random bytes.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

/// One input from beginning to end. Returns 0; what must not happen ends the process (FVMM_CHECK, sanitizers).
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fvmm::testing {

/// What targets have made their devices do: answers to requests, bytes sent. None after many inputs: nothing is tested.
inline std::uint64_t fuzz_effects = 0;

/// Numbers from bytes; zeros once the bytes are used up. Small ranges take one byte, so that a mutation of one byte
/// changes one decision.
class FuzzInput {
 public:
  explicit FuzzInput(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  template <std::unsigned_integral T>
  T take() {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value |= std::uint64_t{byte()} << (8 * i);
    return static_cast<T>(value);
  }
  /// 0 to limit - 1; `limit` is at least 1.
  std::uint64_t below(std::uint64_t limit) {
    if (limit <= 0x100) return take<std::uint8_t>() % limit;
    if (limit <= 0x10000) return take<std::uint16_t>() % limit;
    return take<std::uint64_t>() % limit;
  }
  bool one_in(std::uint64_t n) { return below(n) == n - 1; }  // never once the bytes are used up
  template <typename T, std::size_t N>
  T any(const std::array<T, N>& of) {
    return of.at(below(N));
  }
  std::vector<std::byte> bytes(std::size_t count) {
    std::vector<std::byte> out(count);
    for (std::byte& each : out) each = std::byte{byte()};
    return out;
  }

 private:
  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }
  std::span<const std::uint8_t> bytes_;
};

}  // namespace fvmm::testing
