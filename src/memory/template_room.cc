#include "memory/template_room.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <cerrno>

#include "memory/hash_table.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kMachineBytesExpected = 1 * kMiB;  // generous: machine state, manifest, metadata

}  // namespace

Status check_room(const std::filesystem::path& store, std::string_view name, std::uint64_t page_bytes) {
  struct statvfs room {};
  if (::statvfs(store.c_str(), &room) != 0) return Error(Errc::kIo, fmt::format("statvfs {}", store.string()), errno);
  const std::uint64_t available = static_cast<std::uint64_t>(room.f_bavail) * room.f_frsize;
  const std::uint64_t needed = page_bytes + hash_table_bytes(page_bytes / kPageBytes) + kMachineBytesExpected;
  if (needed <= available) return {};
  return Error(Errc::kResourceExhausted,
               fmt::format("template \"{}\" may need {} bytes, {} has {} free: remove templates (\"fvmmctl template "
                           "gc\", \"template rm\") or make the disk larger",
                           name, needed, store.string(), available));
}

}  // namespace fvmm::memory
