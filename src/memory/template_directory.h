// Directories of the store on their way in and out: staging, seal, pin. Internal to the store's own files.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/template_info.h"

namespace fvmm::memory {

inline constexpr std::string_view kStagingPrefix = ".staging-";
inline constexpr std::string_view kTrashPrefix = ".trash-";

/// Calls the test hook, if any, with the step that is about to be taken.
void seal_step(std::string_view step);

/// A new template's directory before it has a name. flock'ed by its writer, so that a sweep can tell it from what a
/// dead process left. Ends as a template (publish) or not at all (destructor). Owner: one thread.
class StagingDirectory {
 public:
  static Result<StagingDirectory> create(const std::filesystem::path& store);
  ~StagingDirectory() { discard(); }
  StagingDirectory(StagingDirectory&& other) noexcept
      : store_(std::move(other.store_)), path_(std::exchange(other.path_, {})), fd_(std::move(other.fd_)) {}
  StagingDirectory& operator=(StagingDirectory&&) = delete;
  StagingDirectory(const StagingDirectory&) = delete;
  StagingDirectory& operator=(const StagingDirectory&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  Result<UniqueFd> create_file(const char* name) const;  // O_RDWR, must not exist
  /// Creates the file, with one seal step before the write and one before its fsync.
  Status write_file(const char* name, std::string_view content) const;
  /// Writes pin and manifest, then renames into place: from here on the template exists. kAlreadyExists: name taken.
  Status publish(const std::string& name, std::string_view manifest_file);
  /// The same in place of the template of that name, in one exchange; `pin` is linked already. Whoever has the old one
  /// open keeps its files. From here on discard() removes the old one.
  Status replace(const std::string& name, std::string_view manifest_file);
  /// Removes everything, now. After publish() it does nothing.
  void discard();

 private:
  StagingDirectory(std::filesystem::path store, std::filesystem::path path, UniqueFd fd)
      : store_(std::move(store)), path_(std::move(path)), fd_(std::move(fd)) {}
  Status write_seal(std::string_view manifest_file) const;
  std::filesystem::path store_;
  std::filesystem::path path_;  // empty once published or discarded
  UniqueFd fd_;
};

/// Opens NAME in the directory. kNotFound when absent.
Result<UniqueFd> open_in(int directory, const char* name, int flags, unsigned mode = 0);
/// A whole file as a string; kDataLoss when longer than `bytes_max`.
Result<std::string> read_whole(int file, const char* name, std::uint64_t bytes_max);
Result<std::string> read_in(int directory, const char* name, std::uint64_t bytes_max);
/// Whether the path still leads to the open directory: false once it was removed or replaced.
bool is_same_directory(int directory, const std::filesystem::path& path);
/// Best effort: what remains is swept later.
void remove_tree(const std::filesystem::path& path);

/// What a sealed directory says about itself, lengths compared with the files. Does not pin.
struct Inspected {
  v1::TemplateManifest manifest;
  TemplateInfo info;
};
Result<Inspected> inspect(int directory, const std::filesystem::path& path);
Result<Inspected> inspect_path(const std::filesystem::path& path);

/// Names in the store, sorted, that `wanted` accepts.
Result<std::vector<std::string>> names_in(const std::filesystem::path& store,
                                          const std::function<bool(const std::string&)>& wanted);
/// Those that a template may have.
Result<std::vector<std::string>> stored_names(const std::filesystem::path& store);

/// Shared locks on the template's pin file, from /proc/locks; 0 where the kernel does not show them.
std::uint32_t count_pins(int directory);

}  // namespace fvmm::memory
