#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/template_format.h"
#include "memory/template_verify.h"

namespace fvmm::memory {
namespace {

constexpr std::size_t kBadPagesListedMax = 1000;
constexpr std::uint64_t kReadPages = 64;  // 256 KiB: stays in the cache between the read and the hash

/// One batch of entries and the pages that belong to them, which begin at `file_page`.
void check_batch(int pages, std::uint64_t file_page, std::span<const HashEntry> batch,
                 TemplateStore::VerifyReport& report) {
  std::vector<std::byte> buffer(kReadPages * kPageBytes);
  for (std::size_t at = 0; at < batch.size(); ++at) {
    const std::size_t in_chunk = at % kReadPages;
    if (in_chunk == 0) {
      const std::size_t count = std::min<std::size_t>(kReadPages, batch.size() - at);
      const auto chunk = std::span(buffer).first(count * kPageBytes);
      if (!read_all(pages, chunk, (file_page + at) * kPageBytes)) std::fill(chunk.begin(), chunk.end(), std::byte{0});
    }
    const std::span<std::byte, kPageBytes> bytes = std::span(buffer).subspan(in_chunk * kPageBytes).first<kPageBytes>();
    if (hash_page(bytes) == batch[at].hash) continue;
    const Status again = read_all(pages, bytes, (file_page + at) * kPageBytes);  // for the reason, if it has one
    if (again && hash_page(bytes) == batch[at].hash) continue;
    const std::string why = again ? "content differs from its hash" : again.error().message();
    if (report.detail.empty()) report.detail = fmt::format("page {}: {}", batch[at].page, why);
    if (report.bad.size() < kBadPagesListedMax) report.bad.push_back(batch[at].page);
    ++report.pages_bad;
  }
}

Result<TemplateStore::VerifyReport> scrub_pages(int pages, int hashes, const v1::TemplateManifest& manifest) {
  HashTableReader reader = FVMM_TRY(HashTableReader::open(hashes, manifest.memory_bytes(), manifest.hashes()));
  DigestChain chain(FVMM_TRY(Id::from_bytes(manifest.parent_digest())), manifest.memory_bytes());
  TemplateStore::VerifyReport report;
  for (;;) {
    const auto batch = FVMM_TRY(reader.next());
    if (batch.empty()) break;
    check_batch(pages, report.pages_checked, batch, report);
    for (const HashEntry& entry : batch) chain.add(entry.page, entry.hash);
    report.pages_checked += batch.size();
  }
  if (report.detail.empty() && !is_squashed(manifest) && chain.finish().raw() != manifest.digest()) {
    report.detail = fmt::format("digest {} computed, the manifest says {}", chain.finish().hex(),
                                to_hex(as_bytes(manifest.digest())));
  }
  return report;
}

}  // namespace

Result<TemplateStore::VerifyReport> verify_pages(int pages, int hashes, const v1::TemplateManifest& manifest) {
  Result<TemplateStore::VerifyReport> report = scrub_pages(pages, hashes, manifest);
  if (report || !is_finding(report.error())) return report;
  return TemplateStore::VerifyReport{.pages_checked = 0, .bad = {}, .pages_bad = 0, .detail = report.error().message()};
}

Result<std::string> check_folded(int delta, int hashes, const v1::TemplateManifest& manifest) {
  HashCursor before = FVMM_TRY(HashCursor::open(delta, manifest.memory_bytes(), manifest.delta()), "delta");
  HashCursor now = FVMM_TRY(HashCursor::open(hashes, manifest.memory_bytes(), manifest.hashes()));
  DigestChain chain(FVMM_TRY(Id::from_bytes(manifest.parent_digest())), manifest.memory_bytes());
  for (; before.entry(); FVMM_TRY(before.advance(), "delta")) {
    const HashEntry& entry = *before.entry();
    chain.add(entry.page, entry.hash);
    while (now.entry() && now.entry()->page < entry.page) FVMM_TRY(now.advance());
    const bool here = now.entry() && now.entry()->page == entry.page;
    const bool missing = !here && (is_squashed(manifest) || entry.hash != zero_page_hash());
    if (!missing && (!here || now.entry()->hash == entry.hash)) continue;
    return fmt::format("page {}: its hash is not the one of the delta that it was", entry.page);
  }
  if (chain.finish().raw() == manifest.digest()) return std::string();
  return fmt::format("digest {} computed from the delta, the manifest says {}", chain.finish().hex(),
                     to_hex(as_bytes(manifest.digest())));
}

}  // namespace fvmm::memory
