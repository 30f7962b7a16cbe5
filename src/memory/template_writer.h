// Writes one generation of the store, page by page. docs/template-format.md.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/result.h"
#include "memory/hash_table.h"
#include "memory/layout.h"
#include "memory/template_info.h"
#include "proto/state.pb.h"

namespace fvmm::memory {

/// Writes one generation, base (TemplateStore::begin) or delta (begin_delta), into a staging directory; seal() makes it
/// whole, anything else removes it. Owner: one thread.
class TemplateWriter {
 public:
  ~TemplateWriter();
  TemplateWriter(TemplateWriter&&) noexcept;
  TemplateWriter& operator=(TemplateWriter&&) = delete;
  TemplateWriter(const TemplateWriter&) = delete;
  TemplateWriter& operator=(const TemplateWriter&) = delete;

  /// Adds pages in ascending order without overlap (kInvalidArgument otherwise, and nothing is written). Zero pages
  /// stay holes; of a base they are no pages at all, of a delta they are pages that became zero. Hashes as it writes,
  /// straight from `bytes`, which must not change meanwhile. When the disk is full (kResourceExhausted) or fails (kIo)
  /// everything written is removed at once and the writer is spent.
  Status add_pages(PageIndex first, std::span<const std::byte> bytes);
  /// Of a base, before anything is added: its memory file, for pages that are captured straight into it, each at its
  /// own place, in any order and as often as wanted. Each of them is then added by add_captured(). Of a delta: -1.
  /// Valid until this object ends; written to after seal() it is no template any more.
  [[nodiscard]] int capture_file() const;
  /// add_pages() for pages that lie in capture_file(): `bytes` shows them there. They are hashed and not written again;
  /// pages of zeros become holes.
  Status add_captured(PageIndex first, std::span<const std::byte> bytes);
  /// Of a base that was folded elsewhere (NewTemplate::folded): the hashes of its delta, ascending, in any pieces. The
  /// digest is computed from them; seal() refuses them (kDataLoss) when they are not those of the pages.
  Status add_delta_hashes(std::span<const HashEntry> entries);
  Status set_machine_state(const v1::MachineState& state);  // once at least: seal() wants one
  /// What a disk held at the instant: its layers, sealed, get a link in the template, on whose filesystem they are
  /// (kFailedPrecondition otherwise). Once for each disk.
  Status add_disk(const DiskCut& cut);
  /// Of a base: the memory file, read-only, complete once all pages are added: the still-paused source VM is rebased
  /// onto it. Valid until this object ends; whoever maps it keeps the mapping. Of a delta: -1.
  [[nodiscard]] int memory_file() const;
  /// fsync of files, manifest, rename into place, fsync of the directory. `expected`, when given, must equal the digest
  /// computed here (kDataLoss otherwise). kAlreadyExists when the name was taken meanwhile. kFailedPrecondition without
  /// a machine state. After any failure the template does not exist and the writer is spent; the one exception is a
  /// failed fsync of the store itself, whose message says that the template is there but may not survive a power cut.
  Result<TemplateInfo> seal(const Digest* expected = nullptr);

 private:
  friend class TemplateStore;
  struct State;
  enum class Bytes : std::uint8_t { kToWrite, kInPlace };
  Status add_checked(PageIndex first, std::span<const std::byte> bytes, Bytes where);
  explicit TemplateWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fvmm::memory
