// Bytes of a template's files. docs/template-format.md, version 1. Decoders trust nothing: lengths before allocations.
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

inline constexpr std::uint32_t kTemplateVersion = 1;
inline constexpr std::uint64_t kManifestBytesMax = 64 * kKiB;
inline constexpr std::uint64_t kMachineBytesMax = 16 * kMiB;
inline constexpr std::size_t kNameBytesMax = 64;

inline constexpr const char* kMemoryFile = "memory";
inline constexpr const char* kHashesFile = "hashes";
inline constexpr const char* kMachineFile = "machine";
inline constexpr const char* kManifestFile = "manifest";
inline constexpr const char* kPinFile = "pin";

/// [A-Za-z0-9._-]{1,64}, not starting with a dot (those are the store's own). kInvalidArgument names the text.
Status check_template_name(std::string_view name);

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
