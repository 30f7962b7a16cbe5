// Compressed kernels, unpacked on the host: gzip, xz, zstd and LZ4's legacy form, as the kernel's build makes them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fvmm::vmm {

/// Name of the format by its first bytes; empty when it is none of the four.
std::string_view compression_of(std::span<const std::byte> packed);

/// The content of one stream; bytes behind its end are left alone (the build appends the size). kInvalidArgument: an
/// unknown format, damaged, or cut short. kResourceExhausted: more than `bytes_max` come out, and no more than that is
/// ever allocated. Thread: any.
Result<std::string> unpack(std::span<const std::byte> packed, std::uint64_t bytes_max);

}  // namespace fvmm::vmm
