// A FileIo over real files whose operations end in any order, short, or interrupted, from a seed; and what a loss of
// power leaves of a file: what was synced, and of the rest each sector or not.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "disk/cluster_map.h"
#include "disk/file_io.h"
#include "disk/request.h"

namespace fvmm::testing {

class FaultyIo final : public disk::FileIo {
 public:
  /// What the disk under one file keeps without power.
  struct Durable {
    std::vector<std::byte> synced;
    std::set<std::uint64_t> unsynced;  // sectors written since
  };

  explicit FaultyIo(std::uint32_t seed) : random_(seed) {}

  /// From now on the file's writes are lost with the power until synced.
  void watch(int fd) {
    struct stat status {};
    (void)::fstat(fd, &status);
    durable_[fd].synced.resize(static_cast<std::size_t>(status.st_size));
    (void)!::pread(fd, durable_[fd].synced.data(), durable_[fd].synced.size(), 0);
  }
  /// Writes to `to` what the file behind `fd` holds after a loss of power.
  void lose_power(int fd, int to) {
    Durable& durable = durable_.at(fd);
    for (const std::uint64_t sector : durable.unsynced) {
      if (random_() % 2 == 0) continue;
      (void)!::pread(fd, durable.synced.data() + sector * disk::kSectorBytes, disk::kSectorBytes,
                     static_cast<off_t>(sector * disk::kSectorBytes));
    }
    (void)!::pwrite(to, durable.synced.data(), durable.synced.size(), 0);
  }

  unsigned fail_every = 0;  // of writes and syncs, one in so many fails; 0: none
  int fail_with = EIO;
  std::uint64_t punched = 0;

  std::size_t operations_max() const override { return 4; }
  void read(int fd, std::span<const iovec> into, std::uint64_t offset, std::uint64_t token) override {
    queue_.push_back({token, fd, Kind::kRead, {into.begin(), into.end()}, offset, 0, 0});
  }
  void write(int fd, std::span<const iovec> from, std::uint64_t offset, std::uint64_t token) override {
    queue_.push_back({token, fd, Kind::kWrite, {from.begin(), from.end()}, offset, 0, 0});
  }
  void sync(int fd, std::uint64_t token) override {  // promises what was written before it, nothing later
    queue_.push_back({token, fd, Kind::kSync, {}, 0, 0, 0});
    if (const auto found = durable_.find(fd); found != durable_.end()) queue_.back().covered = found->second.unsynced;
  }
  void allocate(int fd, int mode, std::uint64_t offset, std::uint64_t bytes, std::uint64_t token) override {
    queue_.push_back({token, fd, Kind::kAllocate, {}, offset, bytes, mode});
  }
  Status submit() override { return {}; }
  int wait_fd() const override { return -1; }

  /// Ends one operation, any of those queued.
  Status poll(const Deadline&, const Ended& ended) override {
    if (queue_.empty()) return {};
    const std::size_t pick = random_() % queue_.size();
    const Operation operation = std::move(queue_[pick]);
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(pick));
    ended(operation.token, run(operation));
    return {};
  }

 private:
  enum class Kind { kRead, kWrite, kSync, kAllocate };
  struct Operation {
    std::uint64_t token;
    int fd;
    Kind kind;
    std::vector<iovec> parts;
    std::uint64_t offset;
    std::uint64_t bytes;
    int mode;
    std::set<std::uint64_t> covered = {};  // sectors, of a sync
  };

  int run(const Operation& operation) {
    if (random_() % 16 == 0) return random_() % 2 == 0 ? -EINTR : -EAGAIN;
    if (operation.kind != Kind::kRead && fail_every != 0 && random_() % fail_every == 0) return -fail_with;
    const std::vector<iovec> parts = shorter(operation);
    switch (operation.kind) {
      case Kind::kRead:
        return static_cast<int>(
            ::preadv(operation.fd, parts.data(), static_cast<int>(parts.size()), static_cast<off_t>(operation.offset)));
      case Kind::kWrite:
        return written(operation, ::pwritev(operation.fd, parts.data(), static_cast<int>(parts.size()),
                                            static_cast<off_t>(operation.offset)));
      case Kind::kSync:
        synced(operation);
        return 0;
      case Kind::kAllocate:
        if (::fallocate(operation.fd, operation.mode, static_cast<off_t>(operation.offset),
                        static_cast<off_t>(operation.bytes)) != 0) {
          return -errno;
        }
        if (operation.mode & FALLOC_FL_PUNCH_HOLE) ++punched;
        return written(operation, static_cast<ssize_t>(operation.bytes)) < 0 ? -EIO : 0;
    }
    return -EINVAL;
  }

  /// Sometimes only the first part of what was asked.
  std::vector<iovec> shorter(const Operation& operation) {
    if (random_() % 4 != 0) return operation.parts;
    std::uint64_t bytes = 0;
    for (const iovec& part : operation.parts) bytes += part.iov_len;
    const std::uint64_t sectors = std::max<std::uint64_t>(1, bytes / disk::kSectorBytes);
    return disk::slice(operation.parts, 0, (1 + random_() % sectors) * disk::kSectorBytes);
  }

  int written(const Operation& operation, ssize_t bytes) {
    if (bytes < 0) return -errno;
    if (const auto found = durable_.find(operation.fd); found != durable_.end()) {
      for (std::uint64_t at = operation.offset; at < operation.offset + static_cast<std::uint64_t>(bytes);
           at += disk::kSectorBytes) {
        found->second.unsynced.insert(at / disk::kSectorBytes);
      }
    }
    return static_cast<int>(bytes);
  }

  void synced(const Operation& operation) {
    const auto found = durable_.find(operation.fd);
    if (found == durable_.end()) return;
    for (const std::uint64_t sector : operation.covered) {
      (void)!::pread(operation.fd, found->second.synced.data() + sector * disk::kSectorBytes, disk::kSectorBytes,
                     static_cast<off_t>(sector * disk::kSectorBytes));
      found->second.unsynced.erase(sector);
    }
  }

  std::mt19937 random_;
  std::vector<Operation> queue_;
  std::map<int, Durable> durable_;
};

}  // namespace fvmm::testing
