#include "cli/vsock_option.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/words.h"

namespace fvmm::cli {
namespace {

Status take_word(std::string_view word, v1::VsockConfig& vsock) {
  const auto bad = [&](std::string_view why) {
    return Error(Errc::kInvalidArgument, fmt::format("--vsock: \"{}\": {}", word, why));
  };
  const auto equals = word.find('=');
  const std::string_view key = word.substr(0, equals);
  const std::string_view value = equals == std::string_view::npos ? "" : word.substr(equals + 1);
  if (key == "path" && !value.empty()) {
    vsock.set_path(absolute_path(std::string(value)));
    return {};
  }
  if (key != "cid") return bad("path=SOCKET or cid=N");
  std::uint32_t cid = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), cid);
  if (error != std::errc{} || end != value.data() + value.size() || cid < 3 || cid == 0xffff'ffff) {
    return bad("a guest's cid is a number from 3 to 4294967294");
  }
  vsock.set_cid(cid);
  return {};
}

}  // namespace

Result<v1::VsockConfig> parse_vsock(const std::string& text) {
  v1::VsockConfig vsock;
  if (text.empty()) return vsock;
  FVMM_TRY(for_each_word(text, [&](std::string_view word) { return take_word(word, vsock); }));
  return vsock;
}

std::string vsock_text(const v1::VsockInfo& vsock) {
  std::string text = fmt::format("{}, cid {}, {} connections", vsock.path(), vsock.cid(), vsock.connections());
  if (vsock.opened() + vsock.refused() == 0) return text;
  text += fmt::format(" ({} opened, {} refused), received {}, sent {}", vsock.opened(), vsock.refused(),
                      format_bytes(vsock.received_bytes()), format_bytes(vsock.sent_bytes()));
  return text;
}

}  // namespace fvmm::cli
