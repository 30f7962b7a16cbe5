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

std::string wrap(const Magic& magic, const std::string& body) {
  EnvelopeHeader header{.magic = magic,
                        .version = kTemplateVersion,
                        .body_bytes = static_cast<std::uint32_t>(body.size()),
                        .checksum = {}};
  header.checksum = envelope_checksum(header, body).bytes;
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header)) + body;
}

Result<std::string_view> unwrap(const Magic& magic, std::string_view file) {
  EnvelopeHeader header;
  if (file.size() < sizeof(header)) {
    return Error(Errc::kDataLoss, fmt::format("{} bytes are too short for a header", file.size()));
  }
  std::memcpy(&header, file.data(), sizeof(header));
  const std::string_view body = file.substr(sizeof(header));
  if (header.magic != magic) return Error(Errc::kDataLoss, "wrong magic");
  if (header.version != kTemplateVersion) {
    return Error(Errc::kFailedPrecondition, fmt::format("format version {} is not known; this program reads {}",
                                                        header.version, kTemplateVersion));
  }
  if (header.body_bytes != body.size()) {
    return Error(Errc::kDataLoss, fmt::format("header says {} bytes, file has {}", header.body_bytes, body.size()));
  }
  if (envelope_checksum(header, body).bytes != header.checksum) return Error(Errc::kDataLoss, "checksum differs");
  return body;
}

/// A checksum proves that the bytes are those written, not that the writer was right: every field is checked again.
Status check_manifest(const v1::TemplateManifest& manifest) {
  if (manifest.kind() != v1::TEMPLATE_BASE) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("template kind {} is not known", static_cast<int>(manifest.kind())));
  }
  const Id id = FVMM_TRY(Id::from_bytes(manifest.id()), "id");
  if (id.none()) return Error(Errc::kDataLoss, "id is none");
  FVMM_TRY(Id::from_bytes(manifest.parent_digest()), "parent digest");
  FVMM_TRY(Id::from_bytes(manifest.digest()), "digest");
  FVMM_TRY(Id::from_bytes(manifest.hashes().checksum()), "checksum of hashes");
  FVMM_TRY(Id::from_bytes(manifest.machine().checksum()), "checksum of machine");
  const Layout layout = FVMM_TRY(Layout::of(manifest.memory_bytes()));
  if (manifest.pages() > layout.pages()) return Error(Errc::kDataLoss, "more pages than memory");
  if (manifest.hashes().bytes() != hash_table_bytes(manifest.pages())) {
    return Error(Errc::kDataLoss, "length of hashes does not match the number of pages");
  }
  if (manifest.machine().bytes() > kMachineBytesMax) return Error(Errc::kDataLoss, "machine state too long");
  return {};
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

std::string encode_manifest(const v1::TemplateManifest& manifest) {
  return wrap(kManifestMagic, manifest.SerializeAsString());
}

Result<v1::TemplateManifest> decode_manifest(std::string_view file) {
  if (file.size() > kManifestBytesMax) return Error(Errc::kDataLoss, "manifest too long");
  const std::string_view body = FVMM_TRY(unwrap(kManifestMagic, file), "manifest");
  v1::TemplateManifest manifest;
  if (!manifest.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return Error(Errc::kDataLoss, "manifest: not the expected message");
  }
  Status status = check_manifest(manifest);
  if (!status && status.error().code() == Errc::kInvalidArgument) {  // a bad value in a file is damage, not a bad call
    return Error(Errc::kDataLoss, "manifest: " + status.error().message());
  }
  FVMM_TRY(std::move(status), "manifest");
  return manifest;
}

Result<std::string> encode_machine(const v1::MachineState& state) {
  if (state.ByteSizeLong() + sizeof(EnvelopeHeader) > kMachineBytesMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("machine state of {} bytes, limit {}", state.ByteSizeLong(), kMachineBytesMax));
  }
  return wrap(kMachineMagic, state.SerializeAsString());
}

Result<v1::MachineState> decode_machine(std::string_view file) {
  if (file.size() > kMachineBytesMax) return Error(Errc::kDataLoss, "machine state too long");
  const std::string_view body = FVMM_TRY(unwrap(kMachineMagic, file), "machine state");
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
