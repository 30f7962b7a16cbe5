// Resident templates: the resolved memory of a stored one, loaded once into a file on tmpfs. Guest memory maps that
// file in place of the stored ones: nothing is read from disk any more, and its pages can be write-protected.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#include "base/deadline_mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/open_template.h"
#include "memory/template_chain.h"
#include "memory/template_store.h"

namespace fvmm::memory {

inline constexpr std::uint64_t kResidentReserveBytes = 256 * kMiB;  // of available RAM that no load may take
inline constexpr std::chrono::minutes kLoadWait{10};                // for another load to end: one at a time

/// The resident files of one store: DIRECTORY/ID-DIGEST, mode 0400, made nameless and linked when whole, so that a
/// killed process leaves no half of one. Who maps a file holds flock(LOCK_SH) on it. Thread: any; one process at a
/// time.
class ResidentDirectory {
 public:
  /// Does not make the directory: the first load does. Takes over what an earlier process loaded.
  /// kFailedPrecondition when it is not on tmpfs, or another process has it; the message has the fix.
  static Result<std::shared_ptr<ResidentDirectory>> open(std::filesystem::path directory);
  ~ResidentDirectory();  // removes the directory when it is empty
  ResidentDirectory(const ResidentDirectory&) = delete;
  ResidentDirectory& operator=(const ResidentDirectory&) = delete;
  ResidentDirectory(ResidentDirectory&&) = delete;
  ResidentDirectory& operator=(ResidentDirectory&&) = delete;

  /// Where its file is; empty: it is not resident. A file of another length counts as none.
  [[nodiscard]] std::filesystem::path find(const TemplateInfo& info) const;
  /// Reads the chain, compares every page with its checksum, and makes the file. No-op when it is there.
  /// kResourceExhausted names what is needed and what is there; kDataLoss the first bad page; kCancelled, kAborted.
  Status load(Chain chain, const LoadRoom& room);
  /// kFailedPrecondition while a VM maps it, or when it is not resident.
  Status unload(const TemplateInfo& info);
  /// The template itself is gone. A file that somebody maps all the same goes with its last user.
  void drop(const TemplateInfo& info);
  /// Removes files that belong to none of these.
  void sweep(const std::vector<TemplateInfo>& known);
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  explicit ResidentDirectory(std::filesystem::path path) : path_(std::move(path)) {}
  Status take();  // opens and locks it
  const std::filesystem::path path_;
  DeadlineMutex loading_;
  UniqueFd lock_;  // loading_; empty until the directory exists
};

/// What guest memory maps: the resident file, pinned for as long as the image lives, or the stored ones when there is
/// none, or no longer, or it is another template's.
std::shared_ptr<const TemplateImage> resident_or_stored(const std::filesystem::path& resident_file,
                                                        const OpenTemplate& stored);

}  // namespace fvmm::memory
