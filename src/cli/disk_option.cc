#include "cli/disk_option.h"

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/words.h"

namespace fvmm::cli {
namespace {

Status take_word(std::string_view word, v1::DiskConfig& disk) {
  if (word == "readonly") return disk.set_readonly(true), Status{};
  if (word == "shared") return disk.set_shared(true), Status{};
  const auto equals = word.find('=');
  const std::string_view key = word.substr(0, equals);
  const std::string value(equals == std::string_view::npos ? "" : word.substr(equals + 1));
  std::string* const place = key == "path"   ? disk.mutable_path()
                             : key == "base" ? disk.mutable_base()
                             : key == "id"   ? disk.mutable_id()
                                             : nullptr;
  if (place == nullptr || equals == std::string_view::npos) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("\"{}\"; there are path=FILE, base=FILE, readonly, shared and id=NAME", word));
  }
  if (value.empty()) return Error(Errc::kInvalidArgument, fmt::format("{}= has no value", key));
  if (!place->empty()) return Error(Errc::kInvalidArgument, fmt::format("{}= is there twice", key));
  *place = key == "id" ? value : absolute_path(value);
  return {};
}

}  // namespace

Result<v1::DiskConfig> parse_disk(std::string_view text) {
  v1::DiskConfig disk;
  FVMM_TRY(for_each_word(text, [&](std::string_view word) { return take_word(word, disk); }), "--disk");
  if (disk.path().empty()) return Error(Errc::kInvalidArgument, "--disk: path=FILE is missing");
  return disk;
}

std::string disk_text(const v1::DiskConfig& disk) {
  return fmt::format("{}{}{}{}{}{}", disk.path(), disk.base().empty() ? "" : " over ", disk.base(),
                     disk.readonly() ? ", readonly" : "", disk.shared() ? ", shared" : "",
                     disk.id().empty() ? "" : ", id " + disk.id());
}

}  // namespace fvmm::cli
