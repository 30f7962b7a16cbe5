#include "memory/template_writer.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <optional>

#include "base/clock.h"
#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/sparse_copy.h"
#include "memory/template_directory.h"
#include "memory/template_disks.h"
#include "memory/template_format.h"
#include "memory/template_room.h"
#include "memory/template_store.h"
#include "memory/template_verify.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kRunPagesMax = 256;           // 1 MiB a pwrite: the pages are still in the cache from hashing
constexpr std::uint64_t kWritebackBytes = 32 * kMiB;  // then the disk starts, so that the last fsync finds little

std::string now_rfc3339() {
  const auto seconds = static_cast<std::time_t>(system_clock().realtime_ns() / 1'000'000'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(seconds));
}

std::span<const std::byte, kPageBytes> page_at(std::span<const std::byte> bytes, std::uint64_t index) {
  return bytes.subspan(index * kPageBytes).first<kPageBytes>();
}

Status check_name(const std::filesystem::path& store, const std::string& name) {
  FVMM_TRY(check_stored_name(name));
  std::error_code error;
  if (!std::filesystem::exists(store / name, error)) return {};
  return Error(Errc::kAlreadyExists, fmt::format("a template \"{}\" exists already", name));
}

v1::TemplateManifest manifest_of(v1::TemplateKind kind, const Id& id, const std::string& name, const Digest& parent) {
  v1::TemplateManifest manifest;
  manifest.set_kind(kind);
  manifest.set_id((id.none() ? Id::random() : id).raw());
  manifest.set_name(name);
  manifest.set_parent_digest(parent.raw());
  return manifest;
}

/// File `delta` of a base that was folded elsewhere, while it is written.
struct DeltaList {
  UniqueFd file;
  HashTableWriter table;
  PageIndex next = 0;  // first page that may follow

  DeltaList(UniqueFd fd, std::uint64_t memory_bytes) : file(std::move(fd)), table(file.get(), memory_bytes) {}
};

}  // namespace

struct TemplateWriter::State {
  v1::TemplateManifest manifest;       // what is known at the start
  std::optional<OpenTemplate> parent;  // of a delta: pinned until this one is sealed
  std::filesystem::path store;
  StagingDirectory staging;
  UniqueFd payload;  // for writing
  UniqueFd view;     // read-only: what a VM maps cannot be written through
  UniqueFd hashes_file;
  HashTableWriter hashes;
  DigestChain chain;
  std::unique_ptr<DeltaList> folded;  // of a base that was folded elsewhere: the digest is of its list
  std::uint64_t hashed_pages = 0;     // entries of `hashes`
  std::string machine_file;
  std::vector<OverlayRun> runs;       // of a delta
  PageIndex next = 0;                 // first page that may be added
  std::uint64_t unflushed_bytes = 0;  // written since writeback was last started
  bool spent = false;                 // failed or sealed

  State(v1::TemplateManifest start, std::optional<OpenTemplate> below, std::filesystem::path directory,
        StagingDirectory stage, UniqueFd payload_fd, UniqueFd view_fd, UniqueFd hashes_fd)
      : manifest(std::move(start)),
        parent(std::move(below)),
        store(std::move(directory)),
        staging(std::move(stage)),
        payload(std::move(payload_fd)),
        view(std::move(view_fd)),
        hashes_file(std::move(hashes_fd)),
        hashes(hashes_file.get(), manifest.memory_bytes()),
        chain(Digest{}, manifest.memory_bytes()) {}

  static Result<TemplateWriter> create(v1::TemplateManifest start, std::optional<OpenTemplate> below,
                                       const std::filesystem::path& directory);
  Status add(PageIndex first, std::span<const std::byte> bytes, Bytes where);
  Status punch_zeros(PageIndex first, std::span<const std::byte> bytes);
  Status write_run(std::uint64_t file_page, std::span<const std::byte> bytes);
  void extend_runs(PageRange pages, std::uint64_t file_page);
  Status finish_files(const Digest* expected);
  Status finish_delta();
  Result<TemplateInfo> seal(const Digest* expected);
};

Result<TemplateWriter> TemplateWriter::State::create(v1::TemplateManifest start, std::optional<OpenTemplate> below,
                                                     const std::filesystem::path& directory) {
  const std::string context = fmt::format("template \"{}\"", start.name());
  const char* const file = payload_file(start);
  StagingDirectory staging = FVMM_TRY(StagingDirectory::create(directory), context);
  UniqueFd payload = FVMM_TRY(staging.create_file(file), context);
  const off_t bytes = below ? 0 : static_cast<off_t>(start.memory_bytes());  // of a delta it is set by the seal
  if (::ftruncate(payload.get(), bytes) != 0) return Error(Errc::kIo, context + ": set the length of memory", errno);
  UniqueFd view = FVMM_TRY(open_in(staging.fd(), file, O_RDONLY), context);
  UniqueFd hashes = FVMM_TRY(staging.create_file(kHashesFile), context);
  const Digest parent_digest = FVMM_TRY(Id::from_bytes(start.parent_digest()));
  auto state = std::make_unique<State>(std::move(start), std::move(below), directory, std::move(staging),
                                       std::move(payload), std::move(view), std::move(hashes));
  const v1::TemplateManifest& manifest = state->manifest;
  state->chain.start(parent_digest, manifest.memory_bytes());
  if (!state->parent && !parent_digest.none()) {
    UniqueFd delta = FVMM_TRY(state->staging.create_file(kDeltaFile), context);
    state->folded = std::make_unique<DeltaList>(std::move(delta), manifest.memory_bytes());
  }
  return TemplateWriter(std::move(state));
}

/// Zero test, hash and large writes, page after page; a run of writes ends at a zero page or at its limit.
Status TemplateWriter::State::add(PageIndex first, std::span<const std::byte> bytes, Bytes where) {
  const std::uint64_t count = bytes.size() / kPageBytes;
  const std::uint64_t file_page = parent ? hashed_pages : first;  // where bytes[0] goes
  std::uint64_t run = 0;                                          // pages of the open run, which ends just before `i`
  for (std::uint64_t i = 0; i <= count; ++i) {
    const bool stored = i < count && !is_zero_page(page_at(bytes, i));
    if (run > 0 && (!stored || run == kRunPagesMax)) {
      const auto written = bytes.subspan((i - run) * kPageBytes, run * kPageBytes);
      if (where == Bytes::kToWrite) FVMM_TRY(write_run(file_page + i - run, written));
      run = 0;
    }
    if (i == count || (!stored && !parent)) continue;
    const Digest hash = stored ? hash_page(page_at(bytes, i)) : zero_page_hash();
    if (!folded) chain.add(first + i, hash);
    FVMM_TRY(hashes.add(first + i, hash));
    ++hashed_pages;
    if (stored) ++run;
  }
  if (parent && count > 0) extend_runs({.first = first, .count = count}, file_page);
  next = first + count;
  return where == Bytes::kInPlace ? punch_zeros(first, bytes) : Status();
}

/// Zeros that were captured give their blocks back: what is a hole is neither read nor sent.
Status TemplateWriter::State::punch_zeros(PageIndex first, std::span<const std::byte> bytes) {
  const std::uint64_t count = bytes.size() / kPageBytes;
  for (std::uint64_t i = 0, zeros = 0; i <= count; ++i) {
    if (i < count && is_zero_page(page_at(bytes, i))) {
      ++zeros;
    } else if (zeros > 0) {
      FVMM_TRY(punch_hole(payload.get(), (first + i - zeros) * kPageBytes, zeros * kPageBytes));
      zeros = 0;
    }
  }
  return {};
}

Status TemplateWriter::State::write_run(std::uint64_t file_page, std::span<const std::byte> bytes) {
  FVMM_TRY(write_all(payload.get(), bytes, file_page * kPageBytes), payload_file(manifest));
  unflushed_bytes += bytes.size();
  if (unflushed_bytes < kWritebackBytes) return {};
  unflushed_bytes = 0;
  // Only a start, and only a hint: its failure shows in the fsync that counts. Length 0: from 0 to the end.
  (void)::sync_file_range(payload.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  return {};
}

void TemplateWriter::State::extend_runs(PageRange pages, std::uint64_t file_page) {
  if (!runs.empty() && runs.back().pages.first + runs.back().pages.count == pages.first) {
    runs.back().pages.count += pages.count;
  } else {
    runs.push_back({.pages = pages, .layer = 0, .file_page = file_page});
  }
}

/// All but the manifest on disk, and the manifest complete.
Status TemplateWriter::State::finish_files(const Digest* expected) {
  const Digest digest = chain.finish();
  if (expected != nullptr && digest != *expected) {
    return Error(Errc::kDataLoss, fmt::format("digest {} computed, {} expected", digest.hex(), expected->hex()));
  }
  const std::string file = payload_file(manifest);
  seal_step("write-hashes");
  *manifest.mutable_hashes() = FVMM_TRY(hashes.finish(), "hashes");
  if (parent && ::ftruncate(payload.get(), static_cast<off_t>(hashed_pages * kPageBytes)) != 0) {
    return Error(Errc::kIo, "set the length of " + file, errno);
  }
  if (::fchmod(payload.get(), 0400) != 0) return Error(Errc::kIo, "chmod " + file, errno);
  seal_step("fsync-" + file);
  FVMM_TRY(fsync_fd(payload.get(), file));
  seal_step("fsync-hashes");
  FVMM_TRY(fsync_fd(hashes_file.get(), "hashes"));
  manifest.set_digest(digest.raw());
  if (folded) FVMM_TRY(finish_delta());
  FVMM_TRY(staging.write_file(kMachineFile, machine_file));
  *manifest.mutable_machine() = stored_file(machine_file);
  manifest.set_pages(hashed_pages);
  manifest.set_created(now_rfc3339());
  if (parent) manifest.set_runs(overlay(runs, parent->runs()).size());
  return {};
}

Status TemplateWriter::State::finish_delta() {
  seal_step("write-delta");
  *manifest.mutable_delta() = FVMM_TRY(folded->table.finish(), "delta");
  seal_step("fsync-delta");
  FVMM_TRY(fsync_fd(folded->file.get(), kDeltaFile));
  const std::string wrong = FVMM_TRY(check_folded(folded->file.get(), hashes_file.get(), manifest));
  if (!wrong.empty()) return Error(Errc::kDataLoss, wrong);
  return {};
}

Result<TemplateInfo> TemplateWriter::State::seal(const Digest* expected) {
  if (machine_file.empty()) return Error(Errc::kFailedPrecondition, "a template needs a machine state");
  FVMM_TRY(finish_files(expected));
  FVMM_TRY(staging.publish(manifest.name(), encode_manifest(manifest)));
  TemplateInfo info = FVMM_TRY(inspect(staging.fd(), store / manifest.name())).info;
  info.chain = parent ? parent->info().chain + 1 : 1;
  return info;
}

TemplateWriter::TemplateWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
TemplateWriter::TemplateWriter(TemplateWriter&&) noexcept = default;
TemplateWriter::~TemplateWriter() = default;

Status TemplateWriter::add_pages(PageIndex first, std::span<const std::byte> bytes) {
  return add_checked(first, bytes, Bytes::kToWrite);
}

Status TemplateWriter::add_captured(PageIndex first, std::span<const std::byte> bytes) {
  if (capture_file() < 0) return Error(Errc::kFailedPrecondition, "a delta has no file that pages are captured into");
  return add_checked(first, bytes, Bytes::kInPlace);
}

int TemplateWriter::capture_file() const {
  return state_->manifest.kind() == v1::TEMPLATE_DELTA ? -1 : state_->payload.get();
}

Status TemplateWriter::add_checked(PageIndex first, std::span<const std::byte> bytes, Bytes where) {
  State& state = *state_;
  if (state.spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  const std::uint64_t count = bytes.size() / kPageBytes;
  const std::uint64_t pages = state.manifest.memory_bytes() / kPageBytes;
  if (bytes.size() % kPageBytes != 0 || first < state.next || first > pages || count > pages - first) {
    return Error(Errc::kInvalidArgument, fmt::format("{} bytes at page {}: pages {} to {} may follow, in whole pages",
                                                     bytes.size(), first, state.next, pages));
  }
  Status status = state.add(first, bytes, where);
  if (status) return {};
  state.spent = true;
  state.staging.discard();
  return std::move(status.error()).with(fmt::format("template \"{}\"", state.manifest.name()));
}

Status TemplateWriter::add_delta_hashes(std::span<const HashEntry> entries) {
  State& state = *state_;
  if (state.spent || !state.folded) {
    return Error(Errc::kFailedPrecondition, "this template has failed, is sealed, or was not folded from a delta");
  }
  for (const HashEntry& entry : entries) {
    if (entry.page < state.folded->next || entry.page >= state.manifest.memory_bytes() / kPageBytes) {
      return Error(Errc::kInvalidArgument, fmt::format("hash of page {} out of order or range", entry.page));
    }
    state.folded->next = entry.page + 1;
    state.chain.add(entry.page, entry.hash);
    FVMM_TRY(state.folded->table.add(entry.page, entry.hash), "delta");
  }
  return {};
}

Status TemplateWriter::set_machine_state(const v1::MachineState& state) {
  if (state_->spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  state_->machine_file = FVMM_TRY(encode_machine(state));
  return {};
}

Status TemplateWriter::add_disk(const DiskCut& cut) {
  if (state_->spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  return link_disk(cut, state_->staging, state_->manifest);
}

int TemplateWriter::memory_file() const {
  return state_->manifest.kind() == v1::TEMPLATE_DELTA ? -1 : state_->view.get();
}

Result<TemplateInfo> TemplateWriter::seal(const Digest* expected) {
  State& state = *state_;
  if (state.spent) return Error(Errc::kFailedPrecondition, "this template has failed or is sealed");
  state.spent = true;
  Result<TemplateInfo> info = state.seal(expected);
  state.staging.discard();  // nothing left to discard when it was published
  state.parent.reset();
  if (!info) return std::move(info.error()).with(fmt::format("seal template \"{}\"", state.manifest.name()));
  return info;
}

Result<TemplateWriter> TemplateStore::begin(const NewTemplate& wanted) {
  FVMM_TRY(check_name(directory_, wanted.name));
  FVMM_TRY(Layout::of(wanted.memory_bytes));
  FVMM_TRY(
      check_room(directory_, wanted.name, wanted.bytes_expected != 0 ? wanted.bytes_expected : wanted.memory_bytes));
  const FoldedFrom from = wanted.folded.value_or(FoldedFrom{});
  if (wanted.folded && (from.parent_digest.none() || from.parent_id.none())) {
    return Error(Errc::kInvalidArgument, "a folded template needs its parent's id and digest");
  }
  if (wanted.folded) FVMM_TRY(check_stored_name(from.parent_name), "parent");
  v1::TemplateManifest start = manifest_of(v1::TEMPLATE_BASE, wanted.id, wanted.name, from.parent_digest);
  if (wanted.folded) start.set_parent_id(from.parent_id.raw());
  if (wanted.folded) start.set_parent_name(from.parent_name);
  start.set_generation(wanted.generation);
  start.set_memory_bytes(wanted.memory_bytes);
  *start.mutable_config() = wanted.config;
  return TemplateWriter::State::create(std::move(start), std::nullopt, directory_);
}

Result<TemplateWriter> TemplateStore::begin_delta(const NewDelta& wanted) {
  if (!wanted.parent.empty()) FVMM_TRY(check_stored_name(wanted.parent));
  const std::filesystem::path place =
      wanted.parent.empty() ? FVMM_TRY(find_by_digest(wanted.parent_digest)).directory : directory_ / wanted.parent;
  OpenTemplate parent = FVMM_TRY(OpenTemplate::open(place), "delta");
  const TemplateInfo& below = parent.info();
  const std::uint64_t generation = wanted.generation != 0 ? wanted.generation : below.generation + 1;
  const std::string name = wanted.name.empty() ? generation_name(below.name, generation) : wanted.name;
  if (!wanted.parent_digest.none() && below.digest != wanted.parent_digest) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("delta \"{}\": its parent \"{}\" has digest {} here, not {}", name, below.name,
                             below.digest.hex(), wanted.parent_digest.hex()));
  }
  FVMM_TRY(check_name(directory_, name));
  if (below.chain >= kChainMax) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("delta \"{}\": the chain of \"{}\" has {} generations, the limit; fold it first", name,
                             below.name, below.chain));
  }
  FVMM_TRY(check_room(directory_, name, wanted.pages_expected * kPageBytes));
  v1::TemplateManifest start = manifest_of(v1::TEMPLATE_DELTA, wanted.id, name, below.digest);
  start.set_parent_id(below.id.raw());
  start.set_parent_name(below.name);
  start.set_generation(generation);
  start.set_memory_bytes(below.memory_bytes);
  *start.mutable_config() = wanted.config;
  return TemplateWriter::State::create(std::move(start), std::move(parent), directory_);
}

}  // namespace fvmm::memory
