// Bytes of a template's files. docs/template-format.md, version 4. Decoders trust nothing: lengths before allocations.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/units.h"
#include "memory/digest.h"
#include "proto/state.pb.h"
#include "proto/template.pb.h"

namespace fvmm::memory {

/// Of hashes, machine, and the manifest of a plain base: any program reads these.
inline constexpr std::uint32_t kTemplateVersion = 1;
/// Of the manifest of a delta and of a base folded from one.
inline constexpr std::uint32_t kDeltaVersion = 2;
/// Of the manifest of a squashed delta.
inline constexpr std::uint32_t kSquashedVersion = 3;
/// Of the manifest of whatever holds disks.
inline constexpr std::uint32_t kDisksVersion = 4;
inline constexpr int kTemplateDisksMax = 18;  // as many devices as a VM has
inline constexpr int kDiskLayersMax = 64;     // of one disk, as disk::kLayersMax
inline constexpr std::uint64_t kManifestBytesMax = 64 * kKiB;
inline constexpr std::uint64_t kMachineBytesMax = 16 * kMiB;
inline constexpr std::size_t kNameBytesMax = 64;     // of a name that a user gives
inline constexpr std::size_t kSuffixDigitsMax = 20;  // after the '@' of a name of ours

inline constexpr const char* kMemoryFile = "memory";
inline constexpr const char* kPagesFile = "pages";  // of a delta, in place of memory
inline constexpr const char* kDeltaFile =
    "delta";  // of what was folded or squashed: the hashes of the delta that it was
inline constexpr const char* kHashesFile = "hashes";
inline constexpr const char* kMachineFile = "machine";
inline constexpr const char* kManifestFile = "manifest";
inline constexpr const char* kPinFile = "pin";

/// [A-Za-z0-9._-]{1,64}, not starting with a dot (those are the store's own). kInvalidArgument names the text.
Status check_template_name(std::string_view name);
/// A name in the store: the same, or NAME@G with up to 20 digits (generation_name()).
Status check_stored_name(std::string_view name);
/// Whether the name is one of ours, NAME@G. Only these are candidates of gc().
bool is_generation_name(std::string_view name);

/// Whether the manifest is of a base that was a delta before it was folded.
inline bool is_folded(const v1::TemplateManifest& manifest) {
  return manifest.kind() == v1::TEMPLATE_BASE && manifest.has_delta();
}
/// Whether the manifest is of a delta whose pages are those of several generations: they lie on another than its
/// parent.
inline bool is_squashed(const v1::TemplateManifest& manifest) {
  return manifest.kind() == v1::TEMPLATE_DELTA && manifest.has_delta();
}
/// What the pages of a delta lie over: its parent, or what it was squashed onto.
v1::TemplateLink lies_on(const v1::TemplateManifest& manifest);
/// The file that holds the pages: `memory` or `pages`.
inline const char* payload_file(const v1::TemplateManifest& manifest) {
  return manifest.kind() == v1::TEMPLATE_DELTA ? kPagesFile : kMemoryFile;
}
/// Its exact length.
inline std::uint64_t payload_bytes(const v1::TemplateManifest& manifest) {
  return manifest.kind() == v1::TEMPLATE_DELTA ? manifest.pages() * kPageBytes : manifest.memory_bytes();
}

/// An envelope of 32 bytes (magic, version, length, XXH3-128) around a protobuf message.
/// Decoding errors: kDataLoss for anything damaged, kFailedPrecondition for a version this program does not know.
std::string encode_manifest(const v1::TemplateManifest& manifest);
Result<v1::TemplateManifest> decode_manifest(std::string_view file);
/// kResourceExhausted past kMachineBytesMax.
Result<std::string> encode_machine(const v1::MachineState& state);
Result<v1::MachineState> decode_machine(std::string_view file);

/// Length and checksum of a file's bytes, as the manifest records them.
v1::StoredFile stored_file(std::string_view file);

}  // namespace fvmm::memory
