#include "cli/net_option.h"

#include <fmt/format.h>

#include <string_view>

#include "base/mac.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/words.h"

namespace fvmm::cli {
namespace {

constexpr std::string_view kForm = "tap=NAME or unix=PATH, then perhaps mac=02:..";

Status take_word(std::string_view word, v1::NetConfig& net) {
  const auto equals = word.find('=');
  const std::string_view key = word.substr(0, equals);
  const std::string value(equals == std::string_view::npos ? "" : word.substr(equals + 1));
  const auto bad = [&](std::string_view why) {
    return Error(Errc::kInvalidArgument, fmt::format("--net: \"{}\": {}", word, why));
  };
  if (value.empty()) return bad(kForm);
  if (key == "tap" || key == "unix") {
    if (net.backend_case() != v1::NetConfig::BACKEND_NOT_SET) return bad("a network has one tap or socket");
    if (key == "tap") {
      net.set_tap(value);
    } else {
      net.set_socket(absolute_path(value));
    }
    return {};
  }
  if (key == "mac") {
    net.set_mac(to_bytes(FVMM_TRY(parse_mac(value), "--net")));
    return {};
  }
  if (key == "queues") return value == "1" ? Status() : bad("there is one pair of queues; multiqueue is not offered");
  return bad(kForm);
}

}  // namespace

Result<v1::NetConfig> parse_net(const std::string& text) {
  v1::NetConfig net;
  FVMM_TRY(for_each_word(text, [&](std::string_view word) { return take_word(word, net); }));
  if (net.backend_case() != v1::NetConfig::BACKEND_NOT_SET) return net;
  return Error(Errc::kInvalidArgument, fmt::format("--net {}: {}", text, kForm));
}

Result<v1::NetPlace> parse_net_place(const std::string& text) {
  const auto colon = text.find(':');
  if (colon == std::string::npos || colon == 0) {
    return Error(Errc::kInvalidArgument, fmt::format("--net {}: which network, and where: net0:tap=NAME", text));
  }
  v1::NetPlace place;
  place.set_id(text.substr(0, colon));
  *place.mutable_net() = FVMM_TRY(parse_net(text.substr(colon + 1)));
  return place;
}

std::string net_text(const v1::NetConfig& net, const v1::NetInfo* live) {
  const auto mac = mac_from_bytes(live != nullptr ? live->mac() : net.mac());
  std::string text = net.has_tap() ? "tap=" + net.tap() : "unix=" + net.socket();
  if (mac) text += ", mac " + to_string(*mac);
  if (live == nullptr) return text;
  text += fmt::format(", link {}, received {} frames ({}), sent {} ({})", live->link_up() ? "up" : "down",
                      live->received_frames(), format_bytes(live->received_bytes()), live->sent_frames(),
                      format_bytes(live->sent_bytes()));
  const std::uint64_t dropped = live->receive_dropped() + live->send_dropped();
  if (dropped > 0) text += fmt::format(", dropped {}", dropped);
  return text;
}

}  // namespace fvmm::cli
