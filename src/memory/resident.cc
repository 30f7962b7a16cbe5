#include "memory/resident.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/file.h"
#include "memory/hash_merge.h"
#include "memory/template_directory.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kBatchPages = 256;  // read, compared and written at a time

std::string name_of(const TemplateInfo& info) {
  return info.id.hex() + "-" + info.digest.hex();
}

/// Of the directory, or of what it would be made in.
Status check_tmpfs(fs::path path) {
  const std::string wanted = path.string();
  while (path.has_relative_path() && ::access(path.c_str(), F_OK) != 0) path = path.parent_path();
  struct statfs info {};
  if (::statfs(path.c_str(), &info) != 0) return Error(Errc::kIo, "statfs " + path.string(), errno);
  if (info.f_type == TMPFS_MAGIC) return {};
  return Error(
      Errc::kFailedPrecondition,
      fmt::format("{} is not on tmpfs, so resident templates cannot be there: give fvmmd a --resident-dir that "
                  "is, for example below /dev/shm",
                  wanted));
}

Result<UniqueFd> nameless(const fs::path& directory) {
  return open_file(directory, O_TMPFILE | O_RDWR, 0600);
}

/// The chain as what a VM would map, for reading. Takes the payload files.
TemplateImage image_of(Chain& chain, std::vector<OverlayRun> runs) {
  std::vector<UniqueFd> files;
  for (std::size_t i = chain.layers.size() - 1; i-- > 0;) files.push_back(std::move(chain.layers[i].payload));
  return {std::move(chain.layers.back().payload), std::move(files), std::move(runs),
          chain.layers.front().info.memory_bytes};
}

/// Pages with their hashes on their way from the stored files to the resident one.
class Loading {
 public:
  Loading(const TemplateImage& from, int to, const std::function<bool()>& stop) : from_(from), to_(to), stop_(stop) {}

  Status add(const HashEntry& entry) {
    const bool follows = !batch_.empty() && batch_.back().page + 1 == entry.page;
    if (!batch_.empty() && (!follows || batch_.size() == kBatchPages)) FVMM_TRY(flush());
    batch_.push_back(entry);
    return {};
  }

  Status flush() {
    if (batch_.empty()) return {};
    if (stop_ && stop_()) return Error(Errc::kCancelled, "given up");
    const auto bytes = std::span(buffer_).first(batch_.size() * kPageBytes);
    FVMM_TRY(from_.read_pages({.first = batch_.front().page, .count = batch_.size()}, bytes));
    for (std::size_t i = 0; i < batch_.size(); ++i) {
      if (hash_page(bytes.subspan(i * kPageBytes).first<kPageBytes>()) == batch_[i].hash) continue;
      return Error(Errc::kDataLoss, fmt::format("page {} does not have its checksum", batch_[i].page));
    }
    FVMM_TRY(write_all(to_, bytes, batch_.front().page * kPageBytes), "the resident file");
    batch_.clear();
    return {};
  }

 private:
  const TemplateImage& from_;
  const int to_;
  const std::function<bool()>& stop_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kBatchPages * kPageBytes);
  std::vector<HashEntry> batch_;  // consecutive pages
};

/// The hashes of the resolved memory, without pages of zeros: which are holes.
Result<v1::StoredFile> write_hashes(const Chain& chain, int file) {
  std::vector<HashCursor> tables;
  for (const ChainLayer& layer : chain.layers) {
    tables.push_back(FVMM_TRY(HashCursor::open(layer.hashes.get(), layer.info.memory_bytes, layer.manifest.hashes()),
                              layer.info.name));
  }
  HashTableWriter out(file, chain.layers.front().info.memory_bytes);
  return merge_hashes(std::move(tables), ZeroPages::kDrop, out);
}

Status check_room(const fs::path& directory, std::uint64_t bytes, std::uint64_t available) {
  if (bytes + kResidentReserveBytes > available) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("it needs {} of RAM and {} must stay free, this host has {} available: stop VMs, unload "
                             "other templates, or leave it stored",
                             format_bytes(bytes), format_bytes(kResidentReserveBytes), format_bytes(available)));
  }
  struct statfs info {};
  if (::statfs(directory.c_str(), &info) != 0) return Error(Errc::kIo, "statfs " + directory.string(), errno);
  const std::uint64_t free = static_cast<std::uint64_t>(info.f_bavail) * static_cast<std::uint64_t>(info.f_bsize);
  if (info.f_blocks == 0 || bytes <= free) return {};  // 0: a tmpfs without a limit
  return Error(Errc::kResourceExhausted,
               fmt::format("it needs {}, {} has {} free: unload other templates, or remount it with a larger size=",
                           format_bytes(bytes), directory.string(), format_bytes(free)));
}

Status write_pages(const TemplateImage& image, int hashes, const v1::StoredFile& list, int memory,
                   const std::function<bool()>& stop) {
  HashTableReader reader = FVMM_TRY(HashTableReader::open(hashes, image.memory_bytes(), list));
  Loading loading(image, memory, stop);
  for (;;) {
    const auto batch = FVMM_TRY(reader.next());
    if (batch.empty()) return loading.flush();
    for (const HashEntry& entry : batch) FVMM_TRY(loading.add(entry));
  }
}

}  // namespace

Result<std::shared_ptr<ResidentDirectory>> ResidentDirectory::open(fs::path directory) {
  FVMM_TRY(check_tmpfs(directory));
  std::shared_ptr<ResidentDirectory> opened(new ResidentDirectory(std::move(directory)));
  if (::access(opened->path_.c_str(), F_OK) == 0) FVMM_TRY(opened->take());
  return opened;
}

ResidentDirectory::~ResidentDirectory() {
  if (lock_) (void)::rmdir(path_.c_str());
}

Status ResidentDirectory::take() {
  if (lock_) return {};
  FVMM_TRY(make_directories(path_), "resident directory");
  UniqueFd fd = FVMM_TRY(open_file(path_, O_RDONLY | O_DIRECTORY), "resident directory");
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Error(Errc::kIo, "lock " + path_.string(), errno);
    return Error(Errc::kFailedPrecondition,
                 fmt::format("another fvmmd uses {}: give this one its own --resident-dir", path_.string()));
  }
  lock_ = std::move(fd);
  return {};
}

fs::path ResidentDirectory::find(const TemplateInfo& info) const {
  fs::path file = path_ / name_of(info);
  struct stat seen {};
  const bool whole = ::lstat(file.c_str(), &seen) == 0 && S_ISREG(seen.st_mode) &&
                     static_cast<std::uint64_t>(seen.st_size) == info.memory_bytes;
  return whole ? file : fs::path();
}

Status ResidentDirectory::load(Chain chain, const LoadRoom& room) {
  const TemplateInfo& info = chain.layers.front().info;
  const std::unique_lock lock(loading_, kLoadWait);
  if (!lock) return Error(Errc::kAborted, "another template is still being loaded: try again");
  FVMM_TRY(take());
  if (!find(info).empty()) return {};
  const UniqueFd hashes = FVMM_TRY(nameless(path_));
  const v1::StoredFile list = FVMM_TRY(write_hashes(chain, hashes.get()), "hashes");
  FVMM_TRY(check_room(path_, hash_entries_in(list.bytes()) * kPageBytes, room.available_bytes));
  const UniqueFd memory = FVMM_TRY(nameless(path_));
  if (::ftruncate(memory.get(), static_cast<off_t>(info.memory_bytes)) != 0) {
    return Error(Errc::kIo, "set the length of the resident file", errno);
  }
  const TemplateImage image = image_of(chain, FVMM_TRY(resolve(chain)));
  FVMM_TRY(write_pages(image, hashes.get(), list, memory.get(), room.stop));
  if (::fchmod(memory.get(), 0400) != 0) return Error(Errc::kIo, "chmod of the resident file", errno);
  seal_step("link-resident");
  const std::string from = fmt::format("/proc/self/fd/{}", memory.get());
  const fs::path place = path_ / name_of(info);
  (void)::unlink(place.c_str());  // of another length: no VM maps what find() does not show
  if (::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, place.c_str(), AT_SYMLINK_FOLLOW) == 0) return {};
  const int error = errno;
  return Error(error == ENOSPC ? Errc::kResourceExhausted : Errc::kIo, "link " + place.string(), error);
}

Status ResidentDirectory::unload(const TemplateInfo& info) {
  const fs::path place = find(info);
  if (place.empty()) return Error(Errc::kFailedPrecondition, "it is not resident");
  const UniqueFd file = FVMM_TRY(open_file(place, O_RDONLY));
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Error(Errc::kIo, "lock " + place.string(), errno);
    return Error(Errc::kFailedPrecondition, "VMs on this host map its resident memory: stop or migrate them first");
  }
  if (::unlink(place.c_str()) == 0 || errno == ENOENT) return {};
  return Error(Errc::kIo, "unlink " + place.string(), errno);
}

void ResidentDirectory::drop(const TemplateInfo& info) {
  (void)::unlink((path_ / name_of(info)).c_str());
}

void ResidentDirectory::sweep(const std::vector<TemplateInfo>& known) {
  std::vector<std::string> wanted;
  for (const TemplateInfo& info : known) {
    if (!find(info).empty()) wanted.push_back(name_of(info));
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::string name = entry.path().filename().string();
    if (std::ranges::find(wanted, name) != wanted.end()) continue;
    spdlog::info("resident templates: removing {}, of a template that is not here", entry.path().string());
    (void)::unlink(entry.path().c_str());
  }
}

std::shared_ptr<const TemplateImage> resident_or_stored(const fs::path& resident_file, const OpenTemplate& stored) {
  if (resident_file.empty() || resident_file.filename() != name_of(stored.info())) return stored.image();
  Result<UniqueFd> file = open_file(resident_file, O_RDONLY | O_NOFOLLOW);
  struct stat seen {};
  const bool pinned = file && ::flock(file->get(), LOCK_SH | LOCK_NB) == 0 && ::fstat(file->get(), &seen) == 0 &&
                      seen.st_nlink > 0 && static_cast<std::uint64_t>(seen.st_size) == stored.info().memory_bytes;
  if (!pinned) {
    spdlog::info("template {} is no longer resident: its stored memory is mapped", stored.info().name);
    return stored.image();
  }
  return std::make_shared<const TemplateImage>(std::move(*file), std::vector<UniqueFd>{}, std::vector<OverlayRun>{},
                                               stored.info().memory_bytes);
}

}  // namespace fvmm::memory
