#include "memory/template_verify.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/template_directory.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

constexpr std::size_t kBadPagesListedMax = 1000;
constexpr std::uint64_t kReadPages = 64;  // 256 KiB: stays in the cache between the read and the hash

/// Walks memory and hashes side by side.
class Scrub {
 public:
  Scrub(int memory, HashTableReader reader, const v1::TemplateManifest& manifest)
      : memory_(memory),
        reader_(std::move(reader)),
        folded_(is_folded(manifest)),
        pages_(manifest.memory_bytes() / kPageBytes),
        chain_(Digest{}, manifest.memory_bytes()),
        buffer_(kReadPages * kPageBytes) {}

  Result<TemplateStore::VerifyReport> run(const Digest& digest);

 private:
  Status advance();               // to the next entry of hashes
  Result<PageIndex> next_data();  // first page at or after page_ that may hold anything
  Status check_chunk(std::uint64_t count);
  void check_page(std::span<const std::byte, kPageBytes> bytes);
  void bad(std::string_view why);

  int memory_;
  HashTableReader reader_;
  bool folded_;  // its digest is that of its delta: check_folded()
  std::uint64_t pages_;
  DigestChain chain_;
  std::vector<std::byte> buffer_;
  std::span<const HashEntry> batch_;
  std::optional<HashEntry> entry_;  // the next page that has a hash
  PageIndex page_ = 0;
  PageIndex data_end_ = 0;  // pages before it are in a data extent
  TemplateStore::VerifyReport report_;
};

Status Scrub::advance() {
  if (batch_.empty()) batch_ = FVMM_TRY(reader_.next());
  entry_.reset();
  if (batch_.empty()) return {};
  entry_ = batch_.front();
  batch_ = batch_.subspan(1);
  chain_.add(entry_->page, entry_->hash);
  return {};
}

Result<PageIndex> Scrub::next_data() {
  if (page_ < data_end_) return page_;
  const off_t data = ::lseek(memory_, static_cast<off_t>(page_ * kPageBytes), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return pages_;  // lseek(2): only a hole is left
  if (data < 0) return Error(Errc::kIo, "SEEK_DATA in memory", errno);
  const off_t end = ::lseek(memory_, data, SEEK_HOLE);
  if (end < 0) return Error(Errc::kIo, "SEEK_HOLE in memory", errno);
  data_end_ = std::min(pages_, (static_cast<std::uint64_t>(end) + kPageBytes - 1) / kPageBytes);
  return std::max(page_, static_cast<std::uint64_t>(data) / kPageBytes);
}

Result<TemplateStore::VerifyReport> Scrub::run(const Digest& digest) {
  FVMM_TRY(advance());
  while (page_ < pages_) {
    // A hashed page in a hole reads as zeros and is found bad; other holes are zero without being read.
    const PageIndex data = FVMM_TRY(next_data());
    page_ = entry_ ? std::min(data, entry_->page) : data;
    if (page_ >= pages_) break;
    const PageIndex end = page_ < data_end_ && page_ >= data ? data_end_ : page_ + 1;
    FVMM_TRY(check_chunk(std::min(kReadPages, end - page_)));
  }
  report_.pages_checked = pages_;
  if (report_.detail.empty() && !folded_ && chain_.finish() != digest) {
    report_.detail = fmt::format("digest {} computed, the manifest says {}", chain_.finish().hex(), digest.hex());
  }
  return std::move(report_);
}

Status Scrub::check_chunk(std::uint64_t count) {
  const std::span<std::byte> chunk(buffer_.data(), count * kPageBytes);
  const bool whole = read_all(memory_, chunk, page_ * kPageBytes).ok();
  for (std::uint64_t i = 0; i < count; ++i, ++page_) {
    const std::span<std::byte, kPageBytes> bytes = chunk.subspan(i * kPageBytes).first<kPageBytes>();
    const Status read = whole ? Status{} : read_all(memory_, bytes, page_ * kPageBytes);
    if (read) {
      check_page(bytes);
    } else {
      bad(read.error().message());
    }
    if (entry_ && entry_->page == page_) FVMM_TRY(advance());
  }
  return {};
}

void Scrub::check_page(std::span<const std::byte, kPageBytes> bytes) {
  if (entry_ && entry_->page == page_) {
    if (hash_page(bytes) != entry_->hash) bad("content differs from its hash");
  } else if (!is_zero_page(bytes)) {
    bad("should be zero");
  }
}

void Scrub::bad(std::string_view why) {
  if (report_.detail.empty()) report_.detail = fmt::format("page {}: {}", page_, why);
  if (report_.bad.size() < kBadPagesListedMax) report_.bad.push_back(page_);
  ++report_.pages_bad;
}

TemplateStore::VerifyReport only(const std::string& detail) {
  return {.pages_checked = 0, .bad = {}, .pages_bad = 0, .detail = detail};
}

}  // namespace

bool is_finding(const Error& error) {
  return error.code() == Errc::kDataLoss || error.code() == Errc::kNotFound ||
         error.code() == Errc::kFailedPrecondition;
}

Result<TemplateStore::VerifyReport> verify_memory(int memory, int hashes, const v1::TemplateManifest& manifest) {
  const Digest digest = FVMM_TRY(Id::from_bytes(manifest.digest()));
  Result<HashTableReader> reader = HashTableReader::open(hashes, manifest.memory_bytes(), manifest.hashes());
  if (reader) {
    Result<TemplateStore::VerifyReport> report = Scrub(memory, std::move(*reader), manifest).run(digest);
    if (report || !is_finding(report.error())) return report;
    return only(report.error().message());
  }
  if (!is_finding(reader.error())) return std::move(reader.error());
  return only(reader.error().message());
}

Result<TemplateStore::VerifyReport> TemplateStore::verify(const std::string& name) const {
  FVMM_TRY(check_stored_name(name));
  const OpenTemplate opened = FVMM_TRY(OpenTemplate::open(directory_ / name));
  return verify_open(opened);
}

Result<TemplateStore::VerifyReport> TemplateStore::verify_open(const OpenTemplate& opened) {
  const v1::TemplateManifest& manifest = opened.manifest_;
  const TemplateImage& image = *opened.image_;
  const int hashes = opened.hashes_.get();
  VerifyReport report =
      FVMM_TRY(opened.info_.is_delta() ? verify_pages(image.layer(image.layers() - 1), hashes, manifest)
                                       : verify_memory(image.base(), hashes, manifest));
  if (report.detail.empty() && opened.delta_) {
    Result<std::string> wrong = check_folded(opened.delta_.get(), hashes, manifest);
    if (!wrong && !is_finding(wrong.error())) return std::move(wrong.error());
    report.detail = wrong ? std::move(*wrong) : wrong.error().message();
  }
  const Result<v1::MachineState> machine = opened.machine_state();
  if (!machine && !is_finding(machine.error())) return machine.error();
  if (!machine && report.detail.empty()) report.detail = machine.error().message();
  return report;
}

}  // namespace fvmm::memory
