#include "memory/template_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "base/file.h"
#include "memory/template_directory.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

/// Names in the store that `wanted` accepts.
template <class Wanted>
Result<std::vector<std::string>> names_in(const fs::path& directory, Wanted wanted) {
  std::error_code error;
  std::vector<std::string> names;
  fs::directory_iterator it(directory, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    if (wanted(name)) names.push_back(std::move(name));
  }
  if (error) return Error(Errc::kIo, fmt::format("read directory {}", directory.string()), error.value());
  std::sort(names.begin(), names.end());
  return names;
}

enum class Pins { kSkip, kCount };  // counting reads /proc/locks, which stops every CPU for some milliseconds

/// What the manifest says, and how often it is pinned.
Result<TemplateInfo> look(const fs::path& path, Pins pins) {
  const UniqueFd directory = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY));
  TemplateInfo info = FVMM_TRY(inspect(directory.get(), path)).info;
  if (pins == Pins::kCount) info.pins = count_pins(directory.get());
  return info;
}

/// The sealed template of that name.
Result<TemplateInfo> look_up(const fs::path& store, const std::string& name, Pins pins) {
  FVMM_TRY(check_template_name(name));
  Result<TemplateInfo> info = look(store / name, pins);
  if (info) return info;
  if (info.error().code() == Errc::kNotFound) return Error(Errc::kNotFound, fmt::format("no template \"{}\"", name));
  return std::move(info.error()).with(fmt::format("template \"{}\"", name));
}

/// The exclusive lock of a removal, on the template that has this path now.
Result<UniqueFd> lock_for_removal(int directory, const fs::path& path) {
  // Created when damage took it away: what cannot be used must still be removable.
  UniqueFd pin = FVMM_TRY(open_in(directory, kPinFile, O_RDONLY | O_CREAT | O_NOFOLLOW, 0600));
  if (::flock(pin.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Error(Errc::kIo, "lock the pin file", errno);
    return Error(Errc::kFailedPrecondition,
                 fmt::format("in use by {} VMs or transfers", std::max(1U, count_pins(directory))));
  }
  if (!is_same_directory(directory, path)) return Error(Errc::kNotFound, "removed by somebody else");
  return pin;
}

/// The lock of a staging directory whose writer is gone (its lock went with it). Kept while the directory is removed: a
/// writer that has just made the directory is then refused, instead of losing its files one by one.
std::optional<UniqueFd> lock_abandoned(const fs::path& path) {
  Result<UniqueFd> fd = open_file(path, O_RDONLY | O_DIRECTORY);
  if (!fd || ::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) return std::nullopt;
  return std::move(*fd);
}

/// Anything else under that name is not ours to delete.
bool is_template(int directory) {
  return ::faccessat(directory, kManifestFile, F_OK, 0) == 0 || ::faccessat(directory, kMemoryFile, F_OK, 0) == 0;
}

Status remove_leftover(const fs::path& path) {
  spdlog::info("template store: removing {}, left unfinished", path.string());
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return Error(Errc::kIo, fmt::format("remove {}", path.string()), error.value());
  return {};
}

Result<std::vector<TemplateInfo>> sealed(const fs::path& store, Pins pins) {
  std::vector<TemplateInfo> found;
  const auto names = FVMM_TRY(names_in(store, [](const std::string& name) { return check_template_name(name).ok(); }));
  for (const std::string& name : names) {
    Result<TemplateInfo> info = look(store / name, pins);
    if (info) {
      found.push_back(std::move(*info));
    } else if (info.error().code() != Errc::kNotFound) {  // not found: no template, or removed meanwhile
      spdlog::warn("template store: {} left out: {}", (store / name).string(), info.error().message());
    }
  }
  return found;
}

}  // namespace

Result<TemplateStore> TemplateStore::open(fs::path directory) {
  std::error_code error;
  directory = fs::absolute(directory / "", error).parent_path().lexically_normal();
  if (error) return Error(Errc::kIo, fmt::format("template store {}", directory.string()), error.value());
  FVMM_TRY(make_directories(directory), "template store");
  return TemplateStore(std::move(directory));
}

Status TemplateStore::sweep() {
  const auto leftovers = FVMM_TRY(names_in(directory_, [](const std::string& name) {
    return name.starts_with(kStagingPrefix) || name.starts_with(kTrashPrefix);
  }));
  for (const std::string& name : leftovers) {
    const fs::path path = directory_ / name;
    if (name.starts_with(kStagingPrefix)) {
      const std::optional<UniqueFd> lock = lock_abandoned(path);
      if (lock) FVMM_TRY(remove_leftover(path));
    } else {
      FVMM_TRY(remove_leftover(path));  // trash: its remover, if alive, does not mind
    }
  }
  return fsync_path(directory_);
}

Result<std::vector<TemplateInfo>> TemplateStore::list() const {
  return sealed(directory_, Pins::kCount);
}

Result<TemplateInfo> TemplateStore::find(const std::string& name) const {
  return look_up(directory_, name, Pins::kSkip);
}

Result<TemplateInfo> TemplateStore::show(const std::string& name) const {
  return look_up(directory_, name, Pins::kCount);
}

Result<TemplateInfo> TemplateStore::find(const Id& id, const Digest& digest) const {
  std::string other;  // name of one with this id and other content
  for (TemplateInfo& info : FVMM_TRY(sealed(directory_, Pins::kSkip))) {
    if (info.id != id) continue;
    if (info.digest == digest) return std::move(info);
    other = info.name;
  }
  if (other.empty()) return Error(Errc::kNotFound, fmt::format("no template {}", id.hex()));
  return Error(Errc::kFailedPrecondition, fmt::format("template {} (\"{}\") has other content here than digest {}",
                                                      id.hex(), other, digest.hex()));
}

Status TemplateStore::remove(const std::string& name) {
  FVMM_TRY(check_template_name(name));
  const fs::path path = directory_ / name;
  const std::string context = fmt::format("remove template \"{}\"", name);
  const UniqueFd directory = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY), context);
  if (!is_template(directory.get())) return Error(Errc::kNotFound, context + ": not a template");
  const UniqueFd pin = FVMM_TRY(lock_for_removal(directory.get(), path), context);
  const fs::path trash = directory_ / (std::string(kTrashPrefix) + Id::random().hex());
  if (::rename(path.c_str(), trash.c_str()) != 0) {
    return Error(Errc::kIo, fmt::format("{}: rename to {}", context, trash.string()), errno);
  }
  FVMM_TRY(fsync_path(directory_), context);  // gone for good, before the first file goes
  remove_tree(trash);
  return {};
}

}  // namespace fvmm::memory
