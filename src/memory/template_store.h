// The template store: one directory per template, sealed generations, pins. docs/template-format.md is the format.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "base/units.h"
#include "memory/digest.h"
#include "memory/layout.h"
#include "memory/open_template.h"
#include "memory/template_info.h"
#include "memory/template_writer.h"
#include "proto/template.pb.h"

namespace fvmm::memory {

/// How a long copy within the store goes about its work.
struct Rewriting {
  std::function<bool()> stop{};  // asked every kRewritePieceBytes: kCancelled, and the template is as it was
  bool gentle = false;           // waits for the disk after each piece, so that other writers do not queue behind it
};
inline constexpr std::uint64_t kRewritePieceBytes = 16 * kMiB;

/// What making a template resident may use, and who may end it.
struct LoadRoom {
  std::uint64_t available_bytes = 0;  // of this host's RAM
  std::function<bool()> stop{};       // asked for each MiB: kCancelled
};

class ResidentDirectory;

/// All templates of one host. Thread: any; the directory is the truth, nothing is cached.
/// Several processes (fvmmd and its workers) may hold the same store open.
class TemplateStore {
 public:
  /// Creates the directory if needed. Does not sweep.
  static Result<TemplateStore> open(std::filesystem::path directory);
  /// Removes everything unsealed that no living process writes (staging directories carry a flock). Called by fvmmd at
  /// start.
  Status sweep();

  /// The delta that a base was before it was folded elsewhere: its digest is the delta's.
  struct FoldedFrom {
    Digest parent_digest{};
    Id parent_id{};
    std::string parent_name{};
  };
  struct NewTemplate {
    Id id;             // none(): a random one
    std::string name;  // [A-Za-z0-9._-]{1,64}, or generation_name(); who asks people refuses '@' before
    std::uint64_t generation = 0;
    std::uint64_t memory_bytes = 0;
    v1::VmConfig config;
    std::uint64_t bytes_expected = 0;    // of non-zero pages, for the check of free space; 0: all of memory_bytes
    std::optional<FoldedFrom> folded{};  // set: all hashes of the delta must come by add_delta_hashes()
  };
  /// kAlreadyExists for a taken name; kResourceExhausted when the filesystem lacks room.
  Result<TemplateWriter> begin(const NewTemplate& wanted);

  struct NewDelta {
    std::string parent{};          // its name here; empty: whatever has parent_digest
    Digest parent_digest{};        // must be the parent's; none(): not compared
    Id id{};                       // none(): a random one
    std::string name{};            // empty: generation_name(parent, generation)
    std::uint64_t generation = 0;  // 0: one more than the parent's
    v1::VmConfig config{};
    std::uint64_t pages_expected = 0;  // for the check of free space; 0: unknown, not checked
  };
  /// A delta over a sealed generation of this store, which stays pinned until the writer ends. Errors as for begin();
  /// those of OpenTemplate::open() for the parent; kFailedPrecondition when the parent has another digest or its chain
  /// is kChainMax long: fold it first.
  Result<TemplateWriter> begin_delta(const NewDelta& wanted);
  /// Sorted by name; only sealed ones. A damaged manifest is logged and left out: find() and verify() say what is
  /// wrong.
  Result<std::vector<TemplateInfo>> list() const;
  /// The same without the pins, whose counting costs milliseconds of every CPU: for programs.
  Result<std::vector<TemplateInfo>> scan() const;
  Result<TemplateInfo> find(const std::string& name) const;  // kNotFound names it; pins are not counted
  /// The same with its pins counted, which costs milliseconds: for people.
  Result<TemplateInfo> show(const std::string& name) const;
  Result<TemplateInfo> find(const Id& id,
                            const Digest& digest) const;  // kNotFound, or kFailedPrecondition: same id, other content
  /// The first by name with this content. kNotFound.
  Result<TemplateInfo> find_by_digest(const Digest& digest) const;
  /// kFailedPrecondition while pinned ("in use by N ...") or while a delta lies on it (named), kNotFound. Its resident
  /// file goes with it.
  Status remove(const std::string& name);

  /// Makes a base of a delta: same name, id, generation, digest, state and time of creation, no parent needed any more.
  /// Files that anybody maps do not change: a new directory takes the old one's place in one step, pins carry over, and
  /// a crash leaves either. No-op for a base. Blocks are shared with the base where the filesystem can (reflink), else
  /// copied. Errors: those of OpenTemplate::open(); kResourceExhausted; kAborted while somebody else folds it;
  /// kCancelled.
  Result<TemplateInfo> fold(const std::string& name, const Rewriting& how = {});

  /// Makes one delta of all deltas down to the first generation that a person named (no '@'), or to the base: their
  /// union, which is all that it costs. Same name, id, generation, digest, state, time of creation, and the same swap
  /// as in fold(); what lay between is needed no longer. No-op for a base and for what lies directly on such a
  /// generation. Errors: those of fold().
  Result<TemplateInfo> squash(const std::string& name);

  /// From here on templates may be resident in that directory, which must be on tmpfs; what an earlier process loaded
  /// for templates of this store is taken over, the rest removed. Errors: those of ResidentDirectory::open().
  Status use_residents(std::filesystem::path directory);
  /// Makes it resident: all of its memory checked and in RAM, in TemplateInfo::resident_file. No-op when it is. Errors:
  /// those of OpenTemplate::open() and ResidentDirectory::load(); kFailedPrecondition without use_residents().
  Result<TemplateInfo> load(const std::string& name, const LoadRoom& room);
  /// Stored only, again. kFailedPrecondition while a VM maps the resident file, or when it is not resident.
  Result<TemplateInfo> unload(const std::string& name);

  struct Collected {
    std::vector<TemplateInfo> removed;
    std::uint64_t bytes_freed = 0;  // blocks of what was removed; those that another store links stay
  };
  /// Removes generations of ours (NAME@G) that nothing pins, no delta lies on, and `keep` does not want, newest first.
  /// Templates that people named stay. Stops at the first failure, with what it removed before gone.
  Result<Collected> gc(const std::function<bool(const TemplateInfo&)>& keep);

  struct VerifyReport {
    std::uint64_t pages_checked = 0;
    std::vector<PageIndex> bad;  // at most 1000 listed
    std::uint64_t pages_bad = 0;
    std::string detail;  // empty when good; else what is wrong first
  };
  /// Reads every page back and compares with its stored hash, holes with zero, the digest with the chain. What a
  /// mapping would show is what is read: pages in the page cache do not come from the disk again. A template that
  /// cannot even be opened is an error (those of OpenTemplate::open); everything found after that is in the report.
  /// Of a delta its own pages are read: those below have a verify of their own. Pinned meanwhile.
  Result<VerifyReport> verify(const std::string& name) const;
  /// Takes over a sealed template of another store on the same filesystem by hard links, after verifying it: same name,
  /// id and digest, pins of its own. kAlreadyExists when the name or the id is taken here (whatever the content),
  /// kFailedPrecondition on another filesystem or when a delta's parent (id and digest) is not here, kDataLoss when the
  /// verification finds anything.
  Result<TemplateInfo> import_linked(const std::filesystem::path& template_directory);
  [[nodiscard]] const std::filesystem::path& directory() const { return directory_; }

 private:
  explicit TemplateStore(std::filesystem::path directory) : directory_(std::move(directory)) {}
  static Result<VerifyReport> verify_open(const OpenTemplate& opened);
  Result<TemplateInfo> marked(Result<TemplateInfo> info) const;
  std::filesystem::path directory_;
  std::shared_ptr<ResidentDirectory> residents_;  // null: there are none
};

/// Test hook: called with the name of each step of seal() just before it ("fsync-memory", "write-manifest", "rename",
/// ...). A test kills its process there. Null in production. Set while no thread seals.
void set_seal_step_hook(std::function<void(std::string_view step)> hook);

}  // namespace fvmm::memory
