#include "migration/page_table.h"

#include <endian.h>
#include <fmt/format.h>

#include <cstring>

namespace fvmm::migration {
namespace {

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

void encode_run(const PageRun& run, std::span<std::byte, net::kTableEntryBytes> out) {
  const std::uint64_t first = htole64(run.range.first);
  const std::uint32_t count = htole32(static_cast<std::uint32_t>(run.range.count));
  const std::uint32_t encoding = htole32(static_cast<std::uint32_t>(run.encoding));
  std::memcpy(out.data(), &first, 8);
  std::memcpy(out.data() + 8, &count, 4);
  std::memcpy(out.data() + 12, &encoding, 4);
}

Result<std::vector<PageRun>> decode_table(std::span<const std::byte> table, std::uint64_t guest_pages,
                                          std::uint32_t payload_bytes) {
  std::vector<PageRun> runs;
  runs.reserve(table.size() / net::kTableEntryBytes);
  std::uint64_t raw_bytes = 0;
  for (std::size_t at = 0; at + net::kTableEntryBytes <= table.size(); at += net::kTableEntryBytes) {
    const std::uint64_t first = le64toh(load<std::uint64_t>(table.data() + at));
    const std::uint32_t count = le32toh(load<std::uint32_t>(table.data() + at + 8));
    const std::uint32_t encoding = le32toh(load<std::uint32_t>(table.data() + at + 12));
    if (encoding > static_cast<std::uint32_t>(Encoding::kZero) || count == 0 || count > kRunPagesMax ||
        first >= guest_pages || guest_pages - first < count) {
      return Error(Errc::kDataLoss, fmt::format("page table entry {}: pages {}+{} encoding {} of a guest of {} pages",
                                                runs.size(), first, count, encoding, guest_pages));
    }
    runs.push_back({{first, count}, static_cast<Encoding>(encoding)});
    if (runs.back().encoding == Encoding::kRaw) raw_bytes += std::uint64_t{count} * kPageBytes;
  }
  if (raw_bytes != payload_bytes) {
    return Error(Errc::kDataLoss,
                 fmt::format("page table says {} payload bytes, the header says {}", raw_bytes, payload_bytes));
  }
  return runs;
}

bool is_zero_page(const std::byte* page) {
  // The first words decide for almost every page that is not zero.
  if ((load<std::uint64_t>(page) | load<std::uint64_t>(page + 8) | load<std::uint64_t>(page + 2048)) != 0) return false;
  return std::memcmp(page, page + 8, kPageBytes - 8) == 0;
}

}  // namespace fvmm::migration
