#include "base/mac.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace fvmm {

bool is_station(const Mac& mac) {
  return (mac[0] & 1) == 0 && std::ranges::any_of(mac, [](std::uint8_t byte) { return byte != 0; });
}

Result<Mac> parse_mac(std::string_view text) {
  const Error bad(Errc::kInvalidArgument,
                  fmt::format("\"{}\" is no MAC address of a station, such as 02:11:22:33:44:55", text.substr(0, 32)));
  if (text.size() != 3 * kMacBytes - 1) return bad;
  Mac mac{};
  for (std::size_t i = 0; i < kMacBytes; ++i) {
    const std::string_view pair = text.substr(3 * i, 2);
    const auto [end, error] = std::from_chars(pair.data(), pair.data() + pair.size(), mac.at(i), 16);
    if (error != std::errc{} || end != pair.data() + pair.size()) return bad;
    if (i + 1 < kMacBytes && text[3 * i + 2] != ':') return bad;
  }
  if (!is_station(mac)) return bad;
  return mac;
}

Result<Mac> mac_from_bytes(std::string_view bytes) {
  Mac mac{};
  if (bytes.size() == mac.size()) std::ranges::copy(bytes, mac.begin());
  if (is_station(mac)) return mac;
  return Error(Errc::kInvalidArgument, fmt::format("{} bytes that are no MAC address of a station", bytes.size()));
}

std::string to_string(const Mac& mac) {
  return fmt::format("{:02x}", fmt::join(mac, ":"));
}

std::string to_bytes(const Mac& mac) {
  return {mac.begin(), mac.end()};
}

}  // namespace fvmm
