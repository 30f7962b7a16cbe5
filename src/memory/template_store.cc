#include "memory/template_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>

#include "base/file.h"
#include "memory/resident.h"
#include "memory/template_chain.h"
#include "memory/template_directory.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

enum class Pins { kSkip, kCount };  // counting reads /proc/locks, which stops every CPU for some milliseconds

/// What the manifest says, and how often it is pinned. The chain is not counted.
Result<Inspected> look(const fs::path& path, Pins pins) {
  const UniqueFd directory = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY));
  Inspected seen = FVMM_TRY(inspect(directory.get(), path));
  if (pins == Pins::kCount) seen.info.pins = count_pins(directory.get());
  return seen;
}

/// The sealed template of that name.
Result<TemplateInfo> look_up(const fs::path& store, const std::string& name, Pins pins) {
  FVMM_TRY(check_stored_name(name));
  Result<Inspected> seen = look(store / name, pins);
  if (seen) {
    seen->info.chain = chain_length(store, seen->manifest);
    return std::move(seen->info);
  }
  if (seen.error().code() == Errc::kNotFound)
    return Error(Errc::kNotFound,
                 fmt::format("no template \"{}\" here (\"fvmmctl template list\" shows those there are)", name));
  return std::move(seen.error()).with(fmt::format("template \"{}\"", name));
}

/// The lock of a staging directory whose writer is gone (its lock went with it). Kept while the directory is removed: a
/// writer that has just made the directory is then refused, instead of losing its files one by one.
std::optional<UniqueFd> lock_abandoned(const fs::path& path) {
  Result<UniqueFd> fd = open_file(path, O_RDONLY | O_DIRECTORY);
  if (!fd || ::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) return std::nullopt;
  return std::move(*fd);
}

Status remove_leftover(const fs::path& path) {
  spdlog::info("template store: removing {}, left unfinished", path.string());
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return Error(Errc::kIo, fmt::format("remove {}", path.string()), error.value());
  return {};
}

using Identity = std::pair<Id, Digest>;

/// Counts the chains of all at once: each generation is asked for its parent's once.
void count_chains(std::vector<TemplateInfo>& all) {
  std::map<Identity, const TemplateInfo*> known;
  for (const TemplateInfo& info : all) known.emplace(Identity{info.id, info.digest}, &info);
  for (TemplateInfo& info : all) {
    const TemplateInfo* at = &info;
    std::uint32_t length = 1;
    for (; at != nullptr && at->is_delta() && length <= kChainMax; ++length) {
      const auto parent = known.find({at->below_id, at->below_digest});
      at = parent == known.end() ? nullptr : parent->second;
    }
    info.chain = at != nullptr && length <= kChainMax ? length : 0;
  }
}

Result<std::vector<TemplateInfo>> sealed(const fs::path& store, Pins pins) {
  std::vector<TemplateInfo> found;
  for (const std::string& name : FVMM_TRY(stored_names(store))) {
    Result<Inspected> seen = look(store / name, pins);
    if (seen) {
      found.push_back(std::move(seen->info));
    } else if (seen.error().code() != Errc::kNotFound) {  // not found: no template, or removed meanwhile
      spdlog::warn("template store: {} left out: {}", (store / name).string(), seen.error().message());
    }
  }
  count_chains(found);
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
  auto all = FVMM_TRY(sealed(directory_, Pins::kCount));
  for (TemplateInfo& info : all) {
    if (residents_) info.resident_file = residents_->find(info);
  }
  return all;
}

Result<TemplateInfo> TemplateStore::marked(Result<TemplateInfo> info) const {
  if (info && residents_) info->resident_file = residents_->find(*info);
  return info;
}

Result<std::vector<TemplateInfo>> TemplateStore::scan() const {
  return sealed(directory_, Pins::kSkip);
}

Result<TemplateInfo> TemplateStore::find(const std::string& name) const {
  return marked(look_up(directory_, name, Pins::kSkip));
}

Result<TemplateInfo> TemplateStore::show(const std::string& name) const {
  return marked(look_up(directory_, name, Pins::kCount));
}

Result<TemplateInfo> TemplateStore::find(const Id& id, const Digest& digest) const {
  std::string other;  // name of one with this id and other content
  for (TemplateInfo& info : FVMM_TRY(sealed(directory_, Pins::kSkip))) {
    if (info.id != id) continue;
    if (info.digest == digest) return marked(std::move(info));
    other = info.name;
  }
  if (other.empty()) return Error(Errc::kNotFound, fmt::format("no template {}", id.hex()));
  return Error(Errc::kFailedPrecondition, fmt::format("template {} (\"{}\") has other content here than digest {}",
                                                      id.hex(), other, digest.hex()));
}

Result<TemplateInfo> TemplateStore::find_by_digest(const Digest& digest) const {
  for (TemplateInfo& info : FVMM_TRY(sealed(directory_, Pins::kSkip))) {
    if (info.digest == digest) return marked(std::move(info));
  }
  return Error(Errc::kNotFound, fmt::format("no template with digest {}", digest.hex()));
}

Status TemplateStore::use_residents(fs::path directory) {
  residents_ = FVMM_TRY(ResidentDirectory::open(std::move(directory)));
  residents_->sweep(FVMM_TRY(list()));
  return {};
}

Result<TemplateInfo> TemplateStore::load(const std::string& name, const LoadRoom& room) {
  const std::string context = fmt::format("load template \"{}\"", name);
  FVMM_TRY(check_stored_name(name));
  if (!residents_) {
    return Error(Errc::kFailedPrecondition, context +
                                                ": this fvmmd has no --resident-dir on tmpfs, for example below "
                                                "/dev/shm");
  }
  FVMM_TRY(residents_->load(FVMM_TRY(open_chain(directory_ / name), context), room), context);
  return find(name);
}

Result<TemplateInfo> TemplateStore::unload(const std::string& name) {
  const TemplateInfo info = FVMM_TRY(find(name));
  const std::string context = fmt::format("unload template \"{}\"", name);
  if (!residents_) return Error(Errc::kFailedPrecondition, context + ": it is not resident");
  FVMM_TRY(residents_->unload(info), context);
  return find(name);
}

}  // namespace fvmm::memory
