#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <optional>

#include "base/clock.h"
#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/template_directory.h"
#include "memory/template_format.h"
#include "memory/template_store.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kRunPagesMax = 256;           // 1 MiB a pwrite: the pages are still in the cache from hashing
constexpr std::uint64_t kWritebackBytes = 32 * kMiB;  // then the disk starts, so that the last fsync finds little
constexpr std::uint64_t kMachineBytesExpected = 1 * kMiB;  // generous: machine state, manifest, metadata

std::string now_rfc3339() {
  const auto seconds = static_cast<std::time_t>(system_clock().realtime_ns() / 1'000'000'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(seconds));
}

Status check_room(const std::filesystem::path& store, const TemplateStore::NewTemplate& wanted) {
  struct statvfs room {};
  if (::statvfs(store.c_str(), &room) != 0) return Error(Errc::kIo, fmt::format("statvfs {}", store.string()), errno);
  const std::uint64_t available = static_cast<std::uint64_t>(room.f_bavail) * room.f_frsize;
  const std::uint64_t memory = wanted.bytes_expected != 0 ? wanted.bytes_expected : wanted.memory_bytes;
  const std::uint64_t needed = memory + hash_table_bytes(memory / kPageBytes) + kMachineBytesExpected;
  if (needed <= available) return {};
  return Error(Errc::kResourceExhausted, fmt::format("template \"{}\" may need {} bytes, {} has {} free", wanted.name,
                                                     needed, store.string(), available));
}

std::span<const std::byte, kPageBytes> page_at(std::span<const std::byte> bytes, std::uint64_t index) {
  return bytes.subspan(index * kPageBytes).first<kPageBytes>();
}

}  // namespace

struct TemplateWriter::State {
  TemplateStore::NewTemplate wanted;
  std::filesystem::path store;
  StagingDirectory staging;
  UniqueFd memory;       // for writing
  UniqueFd memory_view;  // read-only: what a VM maps cannot be written through
  UniqueFd hashes_file;
  HashTableWriter hashes;
  DigestChain chain;
  std::string machine_file;
  PageIndex next = 0;                 // first page that may be added
  std::uint64_t unflushed_bytes = 0;  // written since writeback was last started
  bool spent = false;                 // failed or sealed

  State(TemplateStore::NewTemplate new_template, std::filesystem::path directory, StagingDirectory stage,
        UniqueFd memory_file, UniqueFd view, UniqueFd hash_file)
      : wanted(std::move(new_template)),
        store(std::move(directory)),
        staging(std::move(stage)),
        memory(std::move(memory_file)),
        memory_view(std::move(view)),
        hashes_file(std::move(hash_file)),
        hashes(hashes_file.get(), wanted.memory_bytes),
        chain(Digest{}, wanted.memory_bytes) {}

  Status add(PageIndex first, std::span<const std::byte> bytes);
  Status write_run(PageIndex first, std::span<const std::byte> bytes);
  Result<v1::TemplateManifest> finish_files(const Digest* expected);
  Result<TemplateInfo> seal(const Digest* expected);
};

/// Zero test, hash and large writes, page after page; a run ends at a zero page or at its limit.
Status TemplateWriter::State::add(PageIndex first, std::span<const std::byte> bytes) {
  const std::uint64_t count = bytes.size() / kPageBytes;
  std::uint64_t run = 0;  // pages of the open run, which ends just before `i`
  for (std::uint64_t i = 0; i <= count; ++i) {
    const bool stored = i < count && !is_zero_page(page_at(bytes, i));
    if (run > 0 && (!stored || run == kRunPagesMax)) {
      FVMM_TRY(write_run(first + i - run, bytes.subspan((i - run) * kPageBytes, run * kPageBytes)));
      run = 0;
    }
    if (!stored) continue;
    const Digest hash = hash_page(page_at(bytes, i));
    chain.add(first + i, hash);
    FVMM_TRY(hashes.add(first + i, hash));
    ++run;
  }
  next = first + count;
  return {};
}

Status TemplateWriter::State::write_run(PageIndex first, std::span<const std::byte> bytes) {
  const std::uint64_t offset = first * kPageBytes;
  FVMM_TRY(write_all(memory.get(), bytes, offset), "memory");
  unflushed_bytes += bytes.size();
  if (unflushed_bytes < kWritebackBytes) return {};
  unflushed_bytes = 0;
  // Only a start, and only a hint: its failure shows in the fsync that counts. Length 0: from 0 to the end.
  (void)::sync_file_range(memory.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  return {};
}

Result<v1::TemplateManifest> TemplateWriter::State::finish_files(const Digest* expected) {
  const Digest digest = chain.finish();
  if (expected != nullptr && digest != *expected) {
    return Error(Errc::kDataLoss, fmt::format("digest {} computed, {} expected", digest.hex(), expected->hex()));
  }
  seal_step("write-hashes");
  const v1::StoredFile stored_hashes = FVMM_TRY(hashes.finish(), "hashes");
  if (::fchmod(memory.get(), 0400) != 0) return Error(Errc::kIo, "chmod memory", errno);
  seal_step("fsync-memory");
  FVMM_TRY(fsync_fd(memory.get(), "memory"));
  seal_step("fsync-hashes");
  FVMM_TRY(fsync_fd(hashes_file.get(), "hashes"));
  FVMM_TRY(staging.write_file(kMachineFile, machine_file));

  v1::TemplateManifest manifest;
  manifest.set_kind(v1::TEMPLATE_BASE);
  manifest.set_id(wanted.id.raw());
  manifest.set_name(wanted.name);
  manifest.set_generation(wanted.generation);
  manifest.set_parent_digest(Digest{}.raw());
  manifest.set_digest(digest.raw());
  manifest.set_memory_bytes(wanted.memory_bytes);
  manifest.set_pages(chain.pages());
  manifest.set_created(now_rfc3339());
  *manifest.mutable_config() = wanted.config;
  *manifest.mutable_hashes() = stored_hashes;
  *manifest.mutable_machine() = stored_file(machine_file);
  return manifest;
}

Result<TemplateInfo> TemplateWriter::State::seal(const Digest* expected) {
  if (machine_file.empty()) return Error(Errc::kFailedPrecondition, "a template needs a machine state");
  const v1::TemplateManifest manifest = FVMM_TRY(finish_files(expected));
  const std::string manifest_file = encode_manifest(manifest);
  if (manifest_file.size() > kManifestBytesMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("manifest of {} bytes, limit {}", manifest_file.size(), kManifestBytesMax));
  }
  FVMM_TRY(staging.publish(wanted.name, manifest_file));
  return FVMM_TRY(inspect(staging.fd(), store / wanted.name)).info;
}

TemplateWriter::TemplateWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
TemplateWriter::TemplateWriter(TemplateWriter&&) noexcept = default;
TemplateWriter::~TemplateWriter() = default;

Status TemplateWriter::add_pages(PageIndex first, std::span<const std::byte> bytes) {
  State& state = *state_;
  if (state.spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  const std::uint64_t count = bytes.size() / kPageBytes;
  const std::uint64_t pages = state.wanted.memory_bytes / kPageBytes;
  if (bytes.size() % kPageBytes != 0 || first < state.next || first > pages || count > pages - first) {
    return Error(Errc::kInvalidArgument, fmt::format("{} bytes at page {}: pages {} to {} may follow, in whole pages",
                                                     bytes.size(), first, state.next, pages));
  }
  Status status = state.add(first, bytes);
  if (status) return {};
  state.spent = true;
  state.staging.discard();
  return std::move(status.error()).with(fmt::format("template \"{}\"", state.wanted.name));
}

Status TemplateWriter::set_machine_state(const v1::MachineState& state) {
  if (state_->spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  state_->machine_file = FVMM_TRY(encode_machine(state));
  return {};
}

int TemplateWriter::memory_file() const {
  return state_->memory_view.get();
}

Result<TemplateInfo> TemplateWriter::seal(const Digest* expected) {
  State& state = *state_;
  if (state.spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  state.spent = true;
  Result<TemplateInfo> info = state.seal(expected);
  state.staging.discard();  // nothing left to discard when it was published
  if (!info) return std::move(info.error()).with(fmt::format("seal template \"{}\"", state.wanted.name));
  return info;
}

Result<TemplateWriter> TemplateStore::begin(const NewTemplate& wanted) {
  FVMM_TRY(check_template_name(wanted.name));
  FVMM_TRY(Layout::of(wanted.memory_bytes));
  std::error_code error;
  if (std::filesystem::exists(directory_ / wanted.name, error)) {
    return Error(Errc::kAlreadyExists, fmt::format("a template \"{}\" exists already", wanted.name));
  }
  FVMM_TRY(check_room(directory_, wanted));

  NewTemplate complete = wanted;
  if (complete.id.none()) complete.id = Id::random();
  const std::string context = fmt::format("template \"{}\"", wanted.name);
  StagingDirectory staging = FVMM_TRY(StagingDirectory::create(directory_), context);
  UniqueFd memory = FVMM_TRY(staging.create_file(kMemoryFile), context);
  if (::ftruncate(memory.get(), static_cast<off_t>(wanted.memory_bytes)) != 0) {
    return Error(Errc::kIo, context + ": set the length of memory", errno);
  }
  UniqueFd view = FVMM_TRY(open_in(staging.fd(), kMemoryFile, O_RDONLY), context);
  UniqueFd hashes = FVMM_TRY(staging.create_file(kHashesFile), context);
  return TemplateWriter(std::make_unique<TemplateWriter::State>(std::move(complete), directory_, std::move(staging),
                                                                std::move(memory), std::move(view), std::move(hashes)));
}

}  // namespace fvmm::memory
