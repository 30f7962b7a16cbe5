// One host's filesystem in simulation: real files under one directory, and what of them a power cut takes away.
//
// The model: what is written to a file is safe once the file was synced; a name (created, linked, renamed, exchanged)
// once its directory was. A power cut keeps, of each directory, the first so many changes that were not synced, and
// damages any file that was not: cut short, zeroed in part, or whole by luck. A removal is at once for good, which is
// the worst case for what a rename that comes undone would need. support/sim_file_calls.h puts it under the C library.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "support/sim_scheduler.h"

namespace fvmm::testing {

/// Only the simulated threads of `hosts` come here, one at a time; the directory must not share its filesystem with
/// memfds. Several may live at once, each with hosts of its own, and longer than every thread of the simulation.
class SimFiles {
 public:
  SimFiles(std::filesystem::path root, std::set<int> hosts) : root_(std::move(root)), hosts_(std::move(hosts)) {
    struct stat info {};
    FVMM_CHECK(::stat(root_.c_str(), &info) == 0, "the directory exists");
    device_ = info.st_dev;
    all.insert(this);
  }
  ~SimFiles() { all.erase(this); }
  SimFiles(const SimFiles&) = delete;
  SimFiles& operator=(const SimFiles&) = delete;
  SimFiles(SimFiles&&) = delete;
  SimFiles& operator=(SimFiles&&) = delete;

  /// Time passes and others run before each step, and somebody may die: throws when it is the caller's process.
  std::function<void()> alive;
  int full_from = 0;  // numbers of steps that need room, from 1; 0: never
  int full_to = 0;
  std::function<bool(const std::string& path)> sync_lies;   // a planted fault: nothing becomes safe
  std::function<void(const std::string& name)> published;   // a directory got its name by rename
  std::function<void(const std::string& name)> taken_back;  // and a power cut undid that

  [[nodiscard]] int steps() const { return steps_; }  // that needed room, so far
  [[nodiscard]] bool watches() const { return sim_self != nullptr && hosts_.contains(sim_self->host) && busy_ == 0; }
  [[nodiscard]] bool has(int fd) const {
    struct stat info {};
    return ::fstat(fd, &info) == 0 && info.st_dev == device_;
  }
  [[nodiscard]] bool has(const char* path) const { return std::string_view(path).starts_with(root_.native()); }

  /// Before a step. 0: go on; else its errno. May throw only where `may_throw`.
  int before(bool needs_room, bool may_throw) {
    if (may_throw && std::uncaught_exceptions() == 0) {
      alive();
    } else {
      try {
        alive();
      } catch (const SimKilled&) {
        return EIO;  // the next step that may throws
      }
    }
    if (!needs_room) return 0;
    ++steps_;
    return full_from != 0 && steps_ >= full_from && steps_ <= full_to ? ENOSPC : 0;
  }

  void wrote(int fd) { unsynced_.insert(inode(fd)); }
  void synced(int fd) {
    struct stat info {};
    if (::fstat(fd, &info) != 0) return;
    if (sync_lies && sync_lies(std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string())) return;
    if (!S_ISDIR(info.st_mode)) {
      unsynced_.erase(info.st_ino);
      return;
    }
    for (Change& change : pending_[info.st_ino]) drop_backup(change);
    pending_.erase(info.st_ino);
  }
  void created(int directory, const std::string& name) {
    pending_[inode(directory)].push_back({Change::kCreated, name, "", ""});
  }
  void created(const std::filesystem::path& path) {
    pending_[inode(path.parent_path())].push_back({Change::kCreated, path.filename().string(), "", ""});
  }
  /// What a rename is about to replace is kept aside: only the sync of the directory makes it go.
  std::string back_up(const char* path) {
    const std::string backup = root_.string() + "/.replaced-" + std::to_string(backups_++);
    return ::link(path, backup.c_str()) == 0 ? backup : "";
  }
  void renamed(const std::filesystem::path& from, const std::filesystem::path& to, bool exchange, std::string backup) {
    FVMM_CHECK(from.parent_path() == to.parent_path(), "renames stay in one directory");
    pending_[inode(to.parent_path())].push_back({exchange ? Change::kExchanged : Change::kRenamed,
                                                 from.filename().string(), to.filename().string(), std::move(backup)});
    if (published && !exchange && std::filesystem::is_directory(to)) published(to.filename().string());
  }

  /// The host loses power now. Its processes must be known to be dead.
  void power_lost() {
    ++busy_;
    std::map<ino_t, std::filesystem::path> directories{{inode(root_), root_}};
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root_)) {
      const ino_t number = inode(entry.path());
      if (entry.is_directory()) directories[number] = entry.path();
      if (entry.is_regular_file() && unsynced_.contains(number)) damage(entry.path());
    }
    std::multimap<std::size_t, std::pair<ino_t, std::filesystem::path>, std::greater<>> deepest_first;
    for (const auto& [number, path] : directories) deepest_first.insert({path.native().size(), {number, path}});
    for (const auto& [length, directory] : deepest_first) undo(directory.first, directory.second);
    unsynced_.clear();
    pending_.clear();
    --busy_;
  }

  static inline std::set<SimFiles*> all;

 private:
  struct Change {
    enum Kind { kCreated, kRenamed, kExchanged } kind;
    std::string name;
    std::string to;
    std::string backup;
  };

  static ino_t inode(int fd) {
    struct stat info {};
    FVMM_CHECK(::fstat(fd, &info) == 0, "it is open");
    return info.st_ino;
  }
  static ino_t inode(const std::filesystem::path& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 ? info.st_ino : 0;
  }
  void drop_backup(const Change& change) {
    ++busy_;
    if (!change.backup.empty()) (void)::unlink(change.backup.c_str());
    --busy_;
  }
  static void damage(const std::filesystem::path& path) {
    SimScheduler& world = *SimScheduler::current;
    const auto size = std::filesystem::file_size(path);
    const auto kind = world.random() % 3;
    if (kind == 0 || size == 0) return;
    (void)::chmod(path.c_str(), 0600);
    const auto left = static_cast<off_t>(world.chance(2) ? 0 : world.random() % size);
    FVMM_CHECK(::truncate(path.c_str(), left) == 0, "it can be damaged");
    if (kind == 1) return;
    FVMM_CHECK(::truncate(path.c_str(), static_cast<off_t>(size)) == 0, "a hole reads as zeros");
  }
  void undo(ino_t number, const std::filesystem::path& path) {
    const auto found = pending_.find(number);
    if (found == pending_.end()) return;
    std::vector<Change>& changes = found->second;
    const std::size_t kept = SimScheduler::current->random() % (changes.size() + 1);
    for (std::size_t i = changes.size(); i-- > 0;) {
      if (i >= kept) undo(changes[i], path);
      drop_backup(changes[i]);
    }
  }
  void undo(const Change& change, const std::filesystem::path& path) {
    std::error_code ignored;
    const std::filesystem::path name = path / change.name;
    const std::filesystem::path to = path / change.to;
    switch (change.kind) {
      case Change::kCreated:
        std::filesystem::remove_all(name, ignored);
        return;
      case Change::kExchanged:
        (void)::renameat2(AT_FDCWD, name.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE);
        return;
      case Change::kRenamed:
        if (taken_back && std::filesystem::is_directory(to)) taken_back(change.to);
        (void)::rename(to.c_str(), name.c_str());
        if (!change.backup.empty()) (void)::link(change.backup.c_str(), to.c_str());
        return;
    }
  }

  const std::filesystem::path root_;
  const std::set<int> hosts_;
  dev_t device_ = 0;
  int busy_ = 0;  // own calls are not watched
  int steps_ = 0;
  int backups_ = 0;
  std::set<ino_t> unsynced_;                      // files
  std::map<ino_t, std::vector<Change>> pending_;  // by directory, in order
};

}  // namespace fvmm::testing
