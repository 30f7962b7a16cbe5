#include "base/units.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <limits>

namespace fvmm {
namespace {

struct Number {
  std::uint64_t value;
  std::string_view suffix;
};

Result<Number> split_number(std::string_view text, std::string_view what) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number.value);
  if (error != std::errc{}) {
    return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is not a {}", text, what));
  }
  number.suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  return number;
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  const Number number = FVMM_TRY(split_number(text, "size; write 512M or 8G"));
  std::string_view unit = number.suffix;
  if (unit.ends_with("iB")) unit.remove_suffix(2);
  if (unit.ends_with("B")) unit.remove_suffix(1);
  constexpr std::string_view kUnits = "KMGT";
  unsigned shift = 0;
  if (!unit.empty()) {
    const auto at = unit.size() == 1 ? kUnits.find(static_cast<char>(unit[0] & ~0x20)) : std::string_view::npos;
    if (at == std::string_view::npos) {
      return Error(Errc::kInvalidArgument, fmt::format("\"{}\" has an unknown unit; use K, M, G or T", text));
    }
    shift = static_cast<unsigned>(10 * (at + 1));
  }
  if (number.value > (std::numeric_limits<std::uint64_t>::max() >> shift)) {
    return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is more than 64 bits hold", text));
  }
  return number.value << shift;
}

Result<std::chrono::microseconds> parse_duration(std::string_view text) {
  const Number number = FVMM_TRY(split_number(text, "duration; write 5ms or 60s"));
  struct Unit {
    std::string_view name;
    std::uint64_t us;
  };
  constexpr std::array<Unit, 5> kUnits{{{"us", 1}, {"ms", 1000}, {"s", 1000000}, {"m", 60000000}, {"h", 3600000000}}};
  constexpr std::uint64_t kLongest = 366ULL * 24 * 3600 * 1000000;  // a year; longer is a typo
  for (const Unit& unit : kUnits) {
    if (unit.name != number.suffix) continue;
    if (number.value > kLongest / unit.us) {
      return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is longer than a year", text));
    }
    return std::chrono::microseconds(number.value * unit.us);
  }
  return Error(Errc::kInvalidArgument, fmt::format("\"{}\" needs a unit: us, ms, s, m or h", text));
}

Result<std::uint64_t> parse_bandwidth(std::string_view text) {
  const Number number = FVMM_TRY(split_number(text, "bandwidth; write 1Gbit or 100Mbit"));
  struct Unit {
    std::string_view name;
    std::uint64_t bits;
  };
  constexpr std::array<Unit, 3> kUnits{{{"Kbit", 1'000}, {"Mbit", 1'000'000}, {"Gbit", 1'000'000'000}}};
  constexpr std::uint64_t kMost = 1'000'000'000'000'000;  // a petabit; more is a typo
  for (const Unit& unit : kUnits) {
    if (unit.name != number.suffix) continue;
    if (number.value == 0 || number.value > kMost / unit.bits) {
      return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is not a bandwidth of any link", text));
    }
    return number.value * unit.bits / 8;
  }
  return Error(Errc::kInvalidArgument, fmt::format("\"{}\" needs a unit: Kbit, Mbit or Gbit", text));
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::array<std::string_view, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  const bool whole = value == static_cast<double>(static_cast<std::uint64_t>(value));
  return fmt::format("{:.{}f} {}", value, whole ? 0 : 1, kUnits[unit]);
}

}  // namespace fvmm
