// A sealed template, opened for use: pinned, its chain resolved.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/hash_table.h"
#include "memory/template_image.h"
#include "memory/template_info.h"
#include "proto/state.pb.h"

namespace fvmm::memory {

/// While this object lives (in any process), neither the template nor a generation below it can be removed.
/// A pin is a shared flock on a generation's pin file, so a dead process leaves none behind. Two descriptors for each
/// generation of the chain. Owner: one thread.
class OpenTemplate {
 public:
  /// Reads the manifests of the chain, compares lengths, and reads the hash lists of its deltas (0.6 % of their pages);
  /// never reads the memory. kNotFound when there is no sealed template (or it is being removed), kDataLoss when it or
  /// a generation below is damaged, kFailedPrecondition for a format version of the future, a parent that is not here,
  /// or a chain longer than kChainMax. The message names the generation.
  static Result<OpenTemplate> open(const std::filesystem::path& template_directory);
  [[nodiscard]] const TemplateInfo& info() const { return info_; }
  /// Of a base: read-only, mappable, memory_bytes long. Of a delta -1, because no file has its whole memory: image().
  [[nodiscard]] int memory_file() const { return info_.is_delta() ? -1 : image_->base(); }
  /// What guest memory maps and keeps: GuestMemory::map_template().
  [[nodiscard]] std::shared_ptr<const TemplateImage> image() const { return image_; }
  [[nodiscard]] std::span<const OverlayRun> runs() const { return image_->runs(); }
  /// Resolved content without a mapping: TemplateImage::read_pages(), but a bad range is kOutOfRange.
  Status read_pages(PageRange range, std::span<std::byte> out) const;
  /// The hash list of the delta, also of one that was folded or squashed: page numbers and hashes, whose chain from
  /// parent_digest is the digest. Their content is what read_pages() shows. Must not outlive this object.
  /// kFailedPrecondition: no delta.
  Result<HashCursor> delta_hashes() const;
  Result<v1::MachineState> machine_state() const;  // checked against the manifest's checksum

 private:
  friend class TemplateStore;
  OpenTemplate() = default;
  TemplateInfo info_;
  v1::TemplateManifest manifest_;
  UniqueFd directory_;
  UniqueFd hashes_;
  UniqueFd delta_;    // of what was folded or squashed
  UniqueFd machine_;  // open, because a fold may take the directory away meanwhile
  std::shared_ptr<const TemplateImage> image_;
  std::vector<UniqueFd> pins_;  // its own first, then down the chain
};

}  // namespace fvmm::memory
