// What the store says about one sealed generation. docs/template-format.md has the words.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/id.h"
#include "memory/digest.h"
#include "proto/template.pb.h"

namespace fvmm::memory {

/// Generations that opening one may need, itself and the base at the bottom included.
inline constexpr std::uint32_t kChainMax = 256;
/// Overlay runs of a resolved chain that are mapped over its base; of more, the short ones are read instead.
inline constexpr std::uint64_t kMappableRunsMax = 1024;
/// Generations of a chain, base included, past which it is folded in the background: opening costs two descriptors
/// each.
inline constexpr std::uint32_t kFoldChainMax = 32;

/// A file that a disk is made of (docs/disk-format.md).
struct DiskLayerFile {
  Id id;
  std::filesystem::path file;
};
/// What a disk of a VM held at the instant of a template: sealed layers, the highest first.
struct DiskCut {
  std::uint32_t disk = 0;  // its place in the VM's configuration
  std::vector<DiskLayerFile> layers;
};

struct TemplateInfo {
  Id id;
  std::string name;
  std::uint64_t generation = 0;  // a label; the digest is the identity of the content
  Digest digest;
  std::uint64_t memory_bytes = 0;
  std::uint64_t pages = 0;         // of a base the non-zero pages, of a delta all that are stored
  std::uint64_t stored_bytes = 0;  // allocated blocks on disk
  std::uint32_t pins = 0;          // by list() and show(): open descriptors that pin it, all processes; else 0
  std::string created;             // RFC 3339, UTC
  v1::VmConfig config;             // of the VM it was taken from
  std::filesystem::path directory;
  std::vector<DiskCut> disks;           // of those that its VM wrote to
  std::filesystem::path resident_file;  // its memory on tmpfs; empty: it is only stored

  v1::TemplateKind kind = v1::TEMPLATE_BASE;
  Digest parent_digest;           // of the lineage; none(): no parent. A folded or squashed one keeps it
  Id parent_id;                   // the same
  std::string parent_name;        // its directory when this was sealed: a hint
  std::uint64_t delta_pages = 0;  // of a delta, also once it is folded or squashed
  Digest below_digest;            // of a delta what its pages lie over: the parent, or what it was squashed onto
  Id below_id;                    // the same
  std::string below_name;         // the same: a hint
  std::uint64_t runs = 0;         // overlay runs over the base: exact when opened, else at most (folds lower it)
  std::uint32_t chain = 1;        // generations that opening it needs, at most kChainMax; 0: its parent is missing

  [[nodiscard]] bool is_delta() const { return kind == v1::TEMPLATE_DELTA; }
  [[nodiscard]] bool is_mappable() const { return runs <= kMappableRunsMax; }  // all of its runs
};

/// The name that the store gives to a generation: "web", 4 -> "web@4"; "web@3", 4 -> "web@4". Users' names have no '@'.
std::string generation_name(std::string_view name, std::uint64_t generation);

}  // namespace fvmm::memory
