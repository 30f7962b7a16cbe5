// The table of a page frame: runs of pages with one encoding. docs/wire-protocol.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "memory/dirty.h"
#include "net/frame.h"

namespace fvmm::migration {

enum class Encoding : std::uint32_t {
  kRaw = 0,   // 4096 bytes a page in the payload
  kZero = 1,  // no payload
};

/// One table entry: u64 first page, u32 pages, u32 encoding, little endian.
struct PageRun {
  memory::PageRange range{};
  Encoding encoding = Encoding::kRaw;
  bool operator==(const PageRun&) const = default;
};

inline constexpr std::uint32_t kRunPagesMax = 1U << 20;  // 4 GiB of zeros in one entry

void encode_run(const PageRun& run, std::span<std::byte, net::kTableEntryBytes> out);

/// Parses and checks a whole table against the guest's size and the payload that follows. kDataLoss names the entry.
/// After this every range may be used as an index without another check.
Result<std::vector<PageRun>> decode_table(std::span<const std::byte> table, std::uint64_t guest_pages,
                                          std::uint32_t payload_bytes);

/// True when the page's 4096 bytes are zero. Cost on incompressible data: a few ns.
bool is_zero_page(const std::byte* page);

}  // namespace fvmm::migration
