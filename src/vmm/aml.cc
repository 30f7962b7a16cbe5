#include "vmm/aml.h"

#include "base/check.h"

namespace fvmm::vmm::aml {
namespace {

enum Opcode : std::uint8_t {
  kNamePrefix = 0x08,
  kByte = 0x0A,
  kWord = 0x0B,
  kDword = 0x0C,
  kString = 0x0D,
  kQword = 0x0E,
  kScope = 0x10,
  kBuffer = 0x11,
  kPackage = 0x12,
  kMethod = 0x14,
  kDual = 0x2E,
  kMulti = 0x2F,
  kExtended = 0x5B,
  kRoot = 0x5C,
  kNotify = 0x86,
  kExtendedDevice = 0x82,
};
constexpr std::size_t kSegmentChars = 4;

void append(Bytes& out, const Bytes& part) {
  out.insert(out.end(), part.begin(), part.end());
}

Bytes little_endian(std::uint64_t value, unsigned bytes) {
  Bytes out;
  for (unsigned i = 0; i < bytes; ++i) out.push_back(static_cast<std::uint8_t>(value >> 8 * i));
  return out;
}

/// PkgLength (20.2.4) in front of what it counts, itself included: 1 byte up to 63, else 4 bits and whole bytes.
Bytes with_length(const Bytes& body) {
  Bytes out;
  if (body.size() + 1 <= 0x3F) {
    out.push_back(static_cast<std::uint8_t>(body.size() + 1));
  } else {
    unsigned more = 1;
    while (body.size() + 1 + more >= std::size_t{1} << (4 + 8 * more)) ++more;
    FVMM_CHECK(more <= 3, "a package of less than 256 MiB");
    const std::size_t length = body.size() + 1 + more;
    out.push_back(static_cast<std::uint8_t>(more << 6 | (length & 0xF)));
    append(out, little_endian(length >> 4, more));
  }
  append(out, body);
  return out;
}

}  // namespace

Bytes join(std::initializer_list<Bytes> parts) {
  Bytes out;
  for (const Bytes& part : parts) append(out, part);
  return out;
}

Bytes integer(std::uint64_t value) {
  if (value <= 1) return {static_cast<std::uint8_t>(value)};  // ZeroOp, OneOp
  if (value <= 0xFF) return join({{kByte}, little_endian(value, 1)});
  if (value <= 0xFFFF) return join({{kWord}, little_endian(value, 2)});
  if (value <= 0xFFFFFFFF) return join({{kDword}, little_endian(value, 4)});
  return join({{kQword}, little_endian(value, 8)});
}

Bytes string(std::string_view text) {
  Bytes out{kString};
  out.insert(out.end(), text.begin(), text.end());
  out.push_back(0);
  return out;
}

/// Compressed as 5 bits a letter and 4 a digit, most significant byte first (ACPI 6.5, 19.3.4).
Bytes eisa_id(std::string_view name) {
  FVMM_CHECK(name.size() == 7, "three letters and four digits");
  std::uint32_t id = 0;
  for (const char letter : name.substr(0, 3)) id = id << 5 | (static_cast<std::uint32_t>(letter - 'A' + 1) & 0x1F);
  for (const char digit : name.substr(3)) {
    id = id << 4 | static_cast<std::uint32_t>(digit <= '9' ? digit - '0' : digit - 'A' + 10);
  }
  Bytes out{kDword};
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(id >> shift));
  return out;
}

Bytes path(std::string_view path) {
  Bytes out;
  if (path.starts_with('\\')) {
    out.push_back(kRoot);
    path.remove_prefix(1);
  }
  std::vector<std::string_view> segments;
  for (; path.size() > kSegmentChars; path.remove_prefix(kSegmentChars + 1)) {
    FVMM_CHECK(path[kSegmentChars] == '.', "segments of four characters");
    segments.push_back(path.substr(0, kSegmentChars));
  }
  FVMM_CHECK(path.size() == kSegmentChars, "segments of four characters");
  segments.push_back(path);
  if (segments.size() == 2) out.push_back(kDual);
  if (segments.size() > 2) append(out, {kMulti, static_cast<std::uint8_t>(segments.size())});
  for (const auto& segment : segments) out.insert(out.end(), segment.begin(), segment.end());
  return out;
}

Bytes name(std::string_view segment, const Bytes& value) {
  return join({{kNamePrefix}, path(segment), value});
}

Bytes scope(std::string_view at, const Bytes& terms) {
  return join({{kScope}, with_length(join({path(at), terms}))});
}

Bytes device(std::string_view segment, const Bytes& terms) {
  return join({{kExtended, kExtendedDevice}, with_length(join({path(segment), terms}))});
}

Bytes method(std::string_view segment, unsigned arguments, const Bytes& terms) {
  return join({{kMethod}, with_length(join({path(segment), {static_cast<std::uint8_t>(arguments)}, terms}))});
}

Bytes notify(std::string_view target, std::uint8_t value) {
  return join({{kNotify}, path(target), integer(value)});
}

Bytes package(const std::vector<Bytes>& elements) {
  Bytes body{static_cast<std::uint8_t>(elements.size())};
  for (const Bytes& element : elements) append(body, element);
  return join({{kPackage}, with_length(body)});
}

Bytes resources(std::initializer_list<Bytes> descriptors) {
  Bytes list = join(descriptors);
  append(list, {0x79, 0});  // end tag, without a checksum
  return join({{kBuffer}, with_length(join({integer(list.size()), list}))});
}

Bytes memory32_fixed(std::uint32_t base, std::uint32_t bytes) {
  return join({{0x86, 9, 0, 1}, little_endian(base, 4), little_endian(bytes, 4)});
}

Bytes io_ports(std::uint16_t base, std::uint8_t count) {
  constexpr std::uint8_t kDecodes16Bits = 1;
  return join({{0x47, kDecodes16Bits}, little_endian(base, 2), little_endian(base, 2), {1, count}});
}

Bytes interrupt(const Interrupt& line) {
  constexpr std::uint8_t kConsumer = 1;
  constexpr std::uint8_t kEdge = 2;
  const auto flags = static_cast<std::uint8_t>(kConsumer | (line.edge ? kEdge : 0));
  return join({{0x89, 6, 0, flags, 1}, little_endian(line.gsi, 4)});
}

}  // namespace fvmm::vmm::aml
