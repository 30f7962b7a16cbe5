// Sizes, durations and how people write them.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fvmm {

inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;

/// "512M", "8G", "4096" (bytes), "16MiB" -> bytes. Suffixes K, M, G, T are powers of 1024. kInvalidArgument names the
/// text.
Result<std::uint64_t> parse_bytes(std::string_view text);
/// "5ms", "60s", "250us", "2m" -> duration; a bare number is an error, because its unit would be a guess.
Result<std::chrono::microseconds> parse_duration(std::string_view text);
/// "1Gbit", "100Mbit", "500Kbit" (a second, powers of 1000, as links are sold) -> bytes a second. Not zero.
Result<std::uint64_t> parse_bandwidth(std::string_view text);
/// 8589934592 -> "8 GiB", 1536 -> "1.5 KiB".
std::string format_bytes(std::uint64_t bytes);

}  // namespace fvmm
