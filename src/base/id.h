// 128-bit identities: VMs, templates, sessions.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fvmm {

/// A random 128-bit identity, written as 32 lower-case hex digits. All zero means "none".
struct Id {
  std::array<std::byte, 16> bytes{};

  static Id random();                                  // getrandom(2); aborts only if the kernel has no randomness
  static Result<Id> parse(std::string_view hex);       // kInvalidArgument names the text
  static Result<Id> from_bytes(std::string_view raw);  // 16 raw bytes, as protobuf carries them
  [[nodiscard]] std::string hex() const;
  [[nodiscard]] std::string raw() const;  // 16 raw bytes, for protobuf
  [[nodiscard]] bool none() const { return *this == Id{}; }
  auto operator<=>(const Id&) const = default;
};

std::string to_hex(std::span<const std::byte> bytes);

}  // namespace fvmm
