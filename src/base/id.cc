#include "base/id.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <cstring>

#include "base/check.h"

namespace fvmm {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

Id Id::random() {
  Id id;
  const auto got = ::getrandom(id.bytes.data(), id.bytes.size(), 0);
  FVMM_CHECK(got == static_cast<ssize_t>(id.bytes.size()), "getrandom gives up to 256 bytes at once");
  return id;
}

Result<Id> Id::parse(std::string_view hex) {
  Id id;
  bool good = hex.size() == 2 * id.bytes.size();
  for (std::size_t i = 0; good && i < id.bytes.size(); ++i) {
    const int high = hex_digit(hex[2 * i]);
    const int low = hex_digit(hex[2 * i + 1]);
    good = high >= 0 && low >= 0;
    if (good) id.bytes[i] = static_cast<std::byte>(high * 16 + low);
  }
  if (!good) return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is not an id of 32 hex digits", hex));
  return id;
}

Result<Id> Id::from_bytes(std::string_view raw) {
  Id id;
  if (raw.size() != id.bytes.size()) {
    return Error(Errc::kInvalidArgument, fmt::format("an id has 16 bytes, not {}", raw.size()));
  }
  std::memcpy(id.bytes.data(), raw.data(), raw.size());
  return id;
}

std::string Id::hex() const {
  return to_hex(bytes);
}

std::string Id::raw() const {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string to_hex(std::span<const std::byte> bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const std::byte b : bytes) fmt::format_to(std::back_inserter(out), "{:02x}", static_cast<unsigned>(b));
  return out;
}

}  // namespace fvmm
