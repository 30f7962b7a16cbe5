#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/file.h"
#include "memory/resident.h"
#include "memory/template_chain.h"
#include "memory/template_directory.h"
#include "memory/template_format.h"
#include "memory/template_store.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

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

/// Anything else under that name is not ours to delete.
bool is_template(int directory) {
  return ::faccessat(directory, kManifestFile, F_OK, 0) == 0 || ::faccessat(directory, kMemoryFile, F_OK, 0) == 0;
}

/// Refuses while a delta lies on this one. Call with the exclusive pin held: whoever writes a delta pins its parent
/// until the delta is sealed, so no new one can appear. What cannot be read might be one, unless it is plain damage.
Status check_no_descendant(const fs::path& store, const Result<Inspected>& parent, const std::string& name) {
  for (const std::string& other : FVMM_TRY(stored_names(store))) {
    if (other == name) continue;
    const Result<Inspected> seen = inspect_path(store / other);
    if (!seen && (seen.error().code() == Errc::kNotFound || seen.error().code() == Errc::kDataLoss)) continue;
    if (!seen) return Error(seen.error()).with(fmt::format("is \"{}\" a delta on it?", other));
    const bool child = parent ? is_parent_of(parent->info, seen->info)
                              : seen->info.is_delta() && seen->info.below_name == name;  // damaged: all that is left
    if (child) return Error(Errc::kFailedPrecondition, fmt::format("\"{}\" descends from it", other));
  }
  return {};
}

}  // namespace

Status TemplateStore::remove(const std::string& name) {
  FVMM_TRY(check_stored_name(name));
  const fs::path path = directory_ / name;
  const std::string context = fmt::format("remove template \"{}\"", name);
  const UniqueFd directory = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY), context);
  if (!is_template(directory.get())) return Error(Errc::kNotFound, context + ": not a template");
  const auto pin = lock_for_removal(directory.get(), path);
  const Result<Inspected> seen = inspect(directory.get(), path);
  const bool in_use = !pin && pin.error().code() == Errc::kFailedPrecondition;
  // Also then: a delta on it says more than its pins do.
  if (pin || in_use) FVMM_TRY(check_no_descendant(directory_, seen, name), context);
  if (!pin) return Error(pin.error()).with(context);
  const fs::path trash = directory_ / (std::string(kTrashPrefix) + Id::random().hex());
  if (::rename(path.c_str(), trash.c_str()) != 0) {
    return Error(Errc::kIo, fmt::format("{}: rename to {}", context, trash.string()), errno);
  }
  FVMM_TRY(fsync_path(directory_), context);             // gone for good, before the first file goes
  if (residents_ && seen) residents_->drop(seen->info);  // damaged: the next sweep finds it
  remove_tree(trash);
  return {};
}

/// Newest first, so that a whole line goes in one pass: a parent after its children.
Result<TemplateStore::Collected> TemplateStore::gc(const std::function<bool(const TemplateInfo&)>& keep) {
  std::vector<TemplateInfo> all = FVMM_TRY(list());
  std::stable_sort(all.begin(), all.end(),
                   [](const TemplateInfo& a, const TemplateInfo& b) { return a.chain > b.chain; });
  Collected collected;
  for (TemplateInfo& info : all) {
    if (!is_generation_name(info.name) || info.pins != 0 || keep(info)) continue;
    const Status removed = remove(info.name);
    if (removed) {
      collected.bytes_freed += info.stored_bytes;
      collected.removed.push_back(std::move(info));
    } else if (removed.error().code() != Errc::kFailedPrecondition && removed.error().code() != Errc::kNotFound) {
      return Error(removed.error()).with("template gc");  // not: in use, has descendants, gone already
    }
  }
  return collected;
}

}  // namespace fvmm::memory
