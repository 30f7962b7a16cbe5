// The template store: one directory per template, sealed generations, pins. docs/template-format.md is the format.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/digest.h"
#include "memory/dirty.h"
#include "memory/layout.h"
#include "proto/state.pb.h"
#include "proto/template.pb.h"

namespace fvmm::memory {

// Digest and hash_page() are in digest.h. A template's digest: XXH3-128 chain of the parent's digest, then (page index,
// XXH3-128 of the page) of each non-zero page, ascending.

struct TemplateInfo {
  Id id;
  std::string name;
  std::uint64_t generation = 0;  // a label; the digest is the identity of the content
  Digest digest;
  std::uint64_t memory_bytes = 0;
  std::uint64_t pages = 0;         // non-zero pages
  std::uint64_t stored_bytes = 0;  // allocated blocks on disk
  std::uint32_t pins = 0;          // by list() and find(): open descriptors that pin it, all processes; else 0
  std::string created;             // RFC 3339, UTC
  v1::VmConfig config;             // of the VM it was taken from
  std::filesystem::path directory;
};

/// A sealed template, opened and pinned: while this object lives (in any process), the template cannot be removed.
/// The pin is a shared flock on the template's pin file, so a dead process leaves none behind.
class OpenTemplate {
 public:
  /// Reads the manifest and compares lengths; never reads the memory. kNotFound when there is no sealed template (or it
  /// is being removed), kDataLoss when it is damaged, kFailedPrecondition for a format version of the future.
  static Result<OpenTemplate> open(const std::filesystem::path& template_directory);
  [[nodiscard]] const TemplateInfo& info() const { return info_; }
  [[nodiscard]] int memory_file() const { return memory_.get(); }  // read-only, mappable, memory_bytes long
  Result<v1::MachineState> machine_state() const;                  // checked against the manifest's checksum

 private:
  friend class TemplateStore;
  OpenTemplate() = default;
  TemplateInfo info_;
  v1::TemplateManifest manifest_;
  UniqueFd directory_;
  UniqueFd memory_;
  UniqueFd pin_;
};

/// Writes one base generation into a staging directory; seal() makes it whole, anything else removes it.
/// Owner: one thread.
class TemplateWriter {
 public:
  ~TemplateWriter();
  TemplateWriter(TemplateWriter&&) noexcept;
  TemplateWriter& operator=(TemplateWriter&&) = delete;
  TemplateWriter(const TemplateWriter&) = delete;
  TemplateWriter& operator=(const TemplateWriter&) = delete;

  /// Adds pages in ascending order without overlap (kInvalidArgument otherwise, and nothing is written); zero pages
  /// stay holes. Hashes as it writes, straight from `bytes`, which must not change meanwhile. When the disk is full
  /// (kResourceExhausted) or fails (kIo) everything written is removed at once and the writer is spent.
  Status add_pages(PageIndex first, std::span<const std::byte> bytes);
  Status set_machine_state(const v1::MachineState& state);  // once at least: seal() wants one
  /// The memory file, read-only, complete once all pages are added: the still-paused source VM is rebased onto it.
  /// Valid until this object ends; whoever maps it keeps the mapping.
  [[nodiscard]] int memory_file() const;
  /// fsync of files, manifest, rename into place, fsync of the directory. `expected`, when given, must equal the digest
  /// computed here (kDataLoss otherwise). kAlreadyExists when the name was taken meanwhile. kFailedPrecondition without
  /// a machine state. After any failure the template does not exist and the writer is spent; the one exception is a
  /// failed fsync of the store itself, whose message says that the template is there but may not survive a power cut.
  Result<TemplateInfo> seal(const Digest* expected = nullptr);

 private:
  friend class TemplateStore;
  struct State;
  explicit TemplateWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// All templates of one host. Thread: any; the directory is the truth, nothing is cached.
/// Several processes (fvmmd and its workers) may hold the same store open.
class TemplateStore {
 public:
  /// Creates the directory if needed. Does not sweep.
  static Result<TemplateStore> open(std::filesystem::path directory);
  /// Removes everything unsealed that no living process writes (staging directories carry a flock). Called by fvmmd at
  /// start.
  Status sweep();

  struct NewTemplate {
    Id id;             // none(): a random one
    std::string name;  // [A-Za-z0-9._-]{1,64}
    std::uint64_t generation = 0;
    std::uint64_t memory_bytes = 0;
    v1::VmConfig config;
    std::uint64_t bytes_expected = 0;  // of non-zero pages, for the check of free space; 0: all of memory_bytes
  };
  /// kAlreadyExists for a taken name; kResourceExhausted when the filesystem lacks room.
  Result<TemplateWriter> begin(const NewTemplate& wanted);
  /// Sorted by name; only sealed ones. A damaged manifest is logged and left out: find() and verify() say what is
  /// wrong.
  Result<std::vector<TemplateInfo>> list() const;
  Result<TemplateInfo> find(const std::string& name) const;  // kNotFound names it; pins are not counted
  /// The same with its pins counted, which costs milliseconds: for people.
  Result<TemplateInfo> show(const std::string& name) const;
  Result<TemplateInfo> find(const Id& id,
                            const Digest& digest) const;  // kNotFound, or kFailedPrecondition: same id, other content
  /// kFailedPrecondition while pinned ("in use by N ..."), kNotFound.
  Status remove(const std::string& name);

  struct VerifyReport {
    std::uint64_t pages_checked = 0;
    std::vector<PageIndex> bad;  // at most 1000 listed
    std::uint64_t pages_bad = 0;
    std::string detail;  // empty when good; else what is wrong first
  };
  /// Reads every page back and compares with its stored hash, holes with zero, the digest with the chain. What a
  /// mapping would show is what is read: pages in the page cache do not come from the disk again. A template that
  /// cannot even be opened is an error (those of OpenTemplate::open); everything found after that is in the report.
  /// Pinned meanwhile.
  Result<VerifyReport> verify(const std::string& name) const;
  /// Takes over a sealed template of another store on the same filesystem by hard links, after verifying it: same name,
  /// id and digest, pins of its own. kAlreadyExists when the name or the id is taken here (whatever the content),
  /// kFailedPrecondition on another filesystem, kDataLoss when the verification finds anything.
  Result<TemplateInfo> import_linked(const std::filesystem::path& template_directory);
  [[nodiscard]] const std::filesystem::path& directory() const { return directory_; }

 private:
  explicit TemplateStore(std::filesystem::path directory) : directory_(std::move(directory)) {}
  static Result<VerifyReport> verify_open(const OpenTemplate& opened);
  std::filesystem::path directory_;
};

/// Test hook: called with the name of each step of seal() just before it ("fsync-memory", "write-manifest", "rename",
/// ...). A test kills its process there. Null in production. Set while no thread seals.
void set_seal_step_hook(std::function<void(std::string_view step)> hook);

}  // namespace fvmm::memory
