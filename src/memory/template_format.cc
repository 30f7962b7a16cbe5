#include "memory/template_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/layout.h"

namespace fvmm::memory {
namespace {

using Magic = std::array<char, 8>;
constexpr Magic kManifestMagic = {'F', 'V', 'M', 'M', 'T', 'M', 'P', 'L'};
constexpr Magic kMachineMagic = {'F', 'V', 'M', 'M', 'M', 'A', 'C', 'H'};

struct EnvelopeHeader {
  Magic magic;
  std::uint32_t version;
  std::uint32_t body_bytes;
  std::array<std::byte, 16> checksum;  // XXH3-128 of the 16 bytes before it, then of the body
};
static_assert(sizeof(EnvelopeHeader) == 32);
constexpr std::size_t kCheckedHeaderBytes = offsetof(EnvelopeHeader, checksum);

Digest envelope_checksum(const EnvelopeHeader& header, std::string_view body) {
  StreamHash hash;
  hash.update(std::as_bytes(std::span(&header, 1)).first(kCheckedHeaderBytes));
  hash.update(as_bytes(body));
  return hash.finish();
}

std::string wrap(const Magic& magic, std::uint32_t version, const std::string& body) {
  EnvelopeHeader header{
      .magic = magic, .version = version, .body_bytes = static_cast<std::uint32_t>(body.size()), .checksum = {}};
  header.checksum = envelope_checksum(header, body).bytes;
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header)) + body;
}

struct Envelope {
  std::uint32_t version;
  std::string_view body;
};

Result<Envelope> unwrap(const Magic& magic, std::uint32_t version_max, std::string_view file) {
  EnvelopeHeader header;
  if (file.size() < sizeof(header)) {
    return Error(Errc::kDataLoss, fmt::format("{} bytes are too short for a header", file.size()));
  }
  std::memcpy(&header, file.data(), sizeof(header));
  const std::string_view body = file.substr(sizeof(header));
  if (header.magic != magic) return Error(Errc::kDataLoss, "wrong magic");
  if (header.version == 0 || header.version > version_max) {
    return Error(Errc::kFailedPrecondition, fmt::format("format version {} is not known; this program reads 1 to {}",
                                                        header.version, version_max));
  }
  if (header.body_bytes != body.size()) {
    return Error(Errc::kDataLoss, fmt::format("header says {} bytes, file has {}", header.body_bytes, body.size()));
  }
  if (envelope_checksum(header, body).bytes != header.checksum) return Error(Errc::kDataLoss, "checksum differs");
  return Envelope{.version = header.version, .body = body};
}

std::uint32_t memory_version_of(const v1::TemplateManifest& manifest) {
  if (is_squashed(manifest)) return kSquashedVersion;
  return manifest.kind() == v1::TEMPLATE_BASE && !manifest.has_delta() ? kTemplateVersion : kDeltaVersion;
}

std::uint32_t version_of(const v1::TemplateManifest& manifest) {
  return manifest.disks_size() != 0 ? kDisksVersion : memory_version_of(manifest);
}

Status check_disk(const v1::DiskOfTemplate& disk, const v1::VmConfig& config) {
  if (disk.disk() >= static_cast<std::uint32_t>(config.disks_size()) || disk.layers_size() == 0 ||
      disk.layers_size() > kDiskLayersMax) {
    return Error(Errc::kDataLoss, "a disk that its VM does not have, or of too few or many layers");
  }
  for (const v1::LayerOfDisk& layer : disk.layers()) {
    if (FVMM_TRY(Id::from_bytes(layer.id()), "id of a layer").none())
      return Error(Errc::kDataLoss, "a layer without id");
  }
  return {};
}

Status check_disks(const v1::TemplateManifest& manifest) {
  if (manifest.disks_size() > kTemplateDisksMax) return Error(Errc::kDataLoss, "more disks than a VM can have");
  std::uint32_t next = 0;
  for (const v1::DiskOfTemplate& disk : manifest.disks()) {
    FVMM_TRY(check_disk(disk, manifest.config()));
    if (disk.disk() < next) return Error(Errc::kDataLoss, "its disks are not in their order");
    next = disk.disk() + 1;
  }
  return {};
}

Status check_delta_list(const v1::TemplateManifest& manifest) {
  FVMM_TRY(Id::from_bytes(manifest.delta().checksum()), "checksum of delta");
  const std::uint64_t bytes = manifest.delta().bytes();
  if (bytes >= hash_table_bytes(0) && bytes <= hash_table_bytes(manifest.memory_bytes() / kPageBytes) &&
      (bytes - hash_table_bytes(0)) % sizeof(HashEntry) == 0) {
    return {};
  }
  return Error(Errc::kDataLoss, fmt::format("delta cannot have {} bytes", bytes));
}

Status check_squashed(const v1::TemplateManifest& manifest) {
  const v1::TemplateLink& below = manifest.lies_on();
  FVMM_TRY(Id::from_bytes(below.digest()), "digest of what it lies on");
  if (FVMM_TRY(Id::from_bytes(below.id()), "id of what it lies on").none()) {
    return Error(Errc::kDataLoss, "a squashed delta that lies on nothing");
  }
  if (!check_stored_name(below.name())) return Error(Errc::kDataLoss, "the name of what it lies on is none");
  if (manifest.delta().bytes() <= manifest.hashes().bytes()) return {};
  return Error(Errc::kDataLoss, "a squashed delta has fewer pages than the delta that it was");
}

Status check_lineage(const v1::TemplateManifest& manifest) {
  const Digest parent = FVMM_TRY(Id::from_bytes(manifest.parent_digest()), "parent digest");
  if (memory_version_of(manifest) == kTemplateVersion) {
    return parent.none() ? Status{} : Error(Errc::kDataLoss, "a base that was no delta has a parent");
  }
  if (parent.none()) return Error(Errc::kDataLoss, "a delta without a parent's digest");
  if (FVMM_TRY(Id::from_bytes(manifest.parent_id()), "parent id").none()) {
    return Error(Errc::kDataLoss, "a delta without a parent's id");
  }
  if (!check_stored_name(manifest.parent_name())) return Error(Errc::kDataLoss, "the parent's name is none");
  if (manifest.runs() > manifest.memory_bytes() / kPageBytes) return Error(Errc::kDataLoss, "more runs than memory");
  if (manifest.has_lies_on() != is_squashed(manifest)) {
    return Error(Errc::kDataLoss, "what is squashed lies on a generation, and nothing else does");
  }
  if (manifest.has_delta()) FVMM_TRY(check_delta_list(manifest));
  return is_squashed(manifest) ? check_squashed(manifest) : Status{};
}

/// A checksum proves that the bytes are those written, not that the writer was right: every field is checked again.
Status check_manifest(const v1::TemplateManifest& manifest) {
  if (manifest.kind() != v1::TEMPLATE_BASE && manifest.kind() != v1::TEMPLATE_DELTA) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("template kind {} is not known", static_cast<int>(manifest.kind())));
  }
  const Id id = FVMM_TRY(Id::from_bytes(manifest.id()), "id");
  if (id.none()) return Error(Errc::kDataLoss, "id is none");
  FVMM_TRY(Id::from_bytes(manifest.digest()), "digest");
  FVMM_TRY(Id::from_bytes(manifest.hashes().checksum()), "checksum of hashes");
  FVMM_TRY(Id::from_bytes(manifest.machine().checksum()), "checksum of machine");
  const Layout layout = FVMM_TRY(Layout::of(manifest.memory_bytes()));
  if (manifest.pages() > layout.pages()) return Error(Errc::kDataLoss, "more pages than memory");
  if (manifest.hashes().bytes() != hash_table_bytes(manifest.pages())) {
    return Error(Errc::kDataLoss, "length of hashes does not match the number of pages");
  }
  if (manifest.machine().bytes() > kMachineBytesMax) return Error(Errc::kDataLoss, "machine state too long");
  FVMM_TRY(check_disks(manifest));
  return check_lineage(manifest);
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

}  // namespace

Status check_template_name(std::string_view name) {
  const bool good = !name.empty() && name.size() <= kNameBytesMax && name.front() != '.' &&
                    std::all_of(name.begin(), name.end(), is_name_character);
  if (good) return {};
  return Error(Errc::kInvalidArgument,
               fmt::format("\"{}\" is not a template name: 1 to {} letters, digits, '.', '_', '-', no dot in front",
                           name.substr(0, kNameBytesMax + 1), kNameBytesMax));
}

bool is_generation_name(std::string_view name) {
  const std::size_t at = name.find('@');
  if (at == std::string_view::npos) return false;
  const std::string_view suffix = name.substr(at + 1);
  return !suffix.empty() && suffix.size() <= kSuffixDigitsMax && std::all_of(suffix.begin(), suffix.end(), is_digit);
}

Status check_stored_name(std::string_view name) {
  return check_template_name(is_generation_name(name) ? name.substr(0, name.find('@')) : name);
}

std::string generation_name(std::string_view name, std::uint64_t generation) {
  return fmt::format("{}@{}", name.substr(0, name.find('@')), generation);
}

v1::TemplateLink lies_on(const v1::TemplateManifest& manifest) {
  if (manifest.has_lies_on()) return manifest.lies_on();
  v1::TemplateLink parent;
  parent.set_name(manifest.parent_name());
  parent.set_id(manifest.parent_id());
  parent.set_digest(manifest.parent_digest());
  return parent;
}

std::string encode_manifest(const v1::TemplateManifest& manifest) {
  return wrap(kManifestMagic, version_of(manifest), manifest.SerializeAsString());
}

Result<v1::TemplateManifest> decode_manifest(std::string_view file) {
  if (file.size() > kManifestBytesMax) return Error(Errc::kDataLoss, "manifest too long");
  const auto [version, body] = FVMM_TRY(unwrap(kManifestMagic, kDisksVersion, file), "manifest");
  v1::TemplateManifest manifest;
  if (!manifest.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return Error(Errc::kDataLoss, "manifest: not the expected message");
  }
  Status status = check_manifest(manifest);
  if (!status && status.error().code() == Errc::kInvalidArgument) {  // a bad value in a file is damage, not a bad call
    return Error(Errc::kDataLoss, "manifest: " + status.error().message());
  }
  FVMM_TRY(std::move(status), "manifest");
  if (version_of(manifest) != version) return Error(Errc::kDataLoss, "manifest: its kind is not of its version");
  return manifest;
}

Result<std::string> encode_machine(const v1::MachineState& state) {
  if (state.ByteSizeLong() + sizeof(EnvelopeHeader) > kMachineBytesMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("machine state of {} bytes, limit {}", state.ByteSizeLong(), kMachineBytesMax));
  }
  return wrap(kMachineMagic, kTemplateVersion, state.SerializeAsString());
}

Result<v1::MachineState> decode_machine(std::string_view file) {
  if (file.size() > kMachineBytesMax) return Error(Errc::kDataLoss, "machine state too long");
  const std::string_view body = FVMM_TRY(unwrap(kMachineMagic, kTemplateVersion, file), "machine state").body;
  v1::MachineState state;
  if (!state.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return Error(Errc::kDataLoss, "machine state: not the expected message");
  }
  return state;
}

v1::StoredFile stored_file(std::string_view file) {
  v1::StoredFile stored;
  stored.set_bytes(file.size());
  stored.set_checksum(hash_bytes(as_bytes(file)).raw());
  return stored;
}

}  // namespace fvmm::memory
