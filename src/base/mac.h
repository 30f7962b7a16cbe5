// Ethernet addresses as people write them: 02:11:22:33:44:55.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fvmm {

inline constexpr std::size_t kMacBytes = 6;
using Mac = std::array<std::uint8_t, kMacBytes>;

/// Of one station, not of a group, and not all zeros: what a network device may have.
[[nodiscard]] bool is_station(const Mac& mac);
/// Six pairs of hexadecimal digits with colons between. kInvalidArgument names the text.
Result<Mac> parse_mac(std::string_view text);
/// From six bytes as a message carries them. kInvalidArgument for another length or no station's address.
Result<Mac> mac_from_bytes(std::string_view bytes);
[[nodiscard]] std::string to_string(const Mac& mac);
[[nodiscard]] std::string to_bytes(const Mac& mac);

}  // namespace fvmm
