// Files of ours with a few of their bytes changed, for tests of decoders. FVMM_FUZZ_SEED and FVMM_FUZZ_ROUNDS change a
// run.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

namespace fvmm::testing {

using Random = std::mt19937_64;

inline std::uint64_t fuzz_setting(const char* name, std::uint64_t fallback) {
  const char* text = ::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : fallback;
}

/// One to four changes: a bit, a byte, a cut, an insertion, a block moved, a number at its extreme.
inline std::string mutate(std::string bytes, Random& random, std::size_t from = 0) {
  for (std::uint64_t changes = 1 + random() % 4; changes > 0 && bytes.size() > from; --changes) {
    const std::size_t at = from + random() % (bytes.size() - from);
    switch (random() % 6) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.insert(at, 1 + random() % 40, static_cast<char>(random()));
        break;
      case 4:
        bytes.insert(at, bytes.substr(from + random() % (bytes.size() - from), random() % 64));
        break;
      default:
        bytes.replace(at, std::min<std::size_t>(8, bytes.size() - at), 8, static_cast<char>(random() % 2 ? -1 : 0));
    }
  }
  return bytes;
}

}  // namespace fvmm::testing
