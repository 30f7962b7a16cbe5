#include "memory/hash_table.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "base/file.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

constexpr std::array<char, 8> kMagic = {'F', 'V', 'M', 'M', 'H', 'A', 'S', 'H'};
constexpr std::size_t kBatchEntries = 8192;  // 192 KiB

struct HashHeader {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t entry_bytes;
  std::uint64_t entries;
  std::uint64_t memory_bytes;
  std::array<std::byte, 16> checksum;  // XXH3-128 of the entries, then of the 32 bytes before it
};
static_assert(sizeof(HashHeader) == kHashHeaderBytes);

std::span<const std::byte> checked_part(const HashHeader& header) {
  return std::as_bytes(std::span(&header, 1)).first(offsetof(HashHeader, checksum));
}

HashHeader header_of(std::uint64_t entries, std::uint64_t memory_bytes) {
  return {.magic = kMagic,
          .version = kTemplateVersion,
          .entry_bytes = sizeof(HashEntry),
          .entries = entries,
          .memory_bytes = memory_bytes,
          .checksum = {}};
}

}  // namespace

HashTableWriter::HashTableWriter(int file, std::uint64_t memory_bytes) : file_(file), memory_bytes_(memory_bytes) {
  buffer_.reserve(kBatchEntries);
}

Status HashTableWriter::add(PageIndex page, const Digest& hash) {
  buffer_.push_back({.page = page, .hash = hash});
  return buffer_.size() == kBatchEntries ? flush() : Status{};
}

Status HashTableWriter::flush() {
  const auto bytes = std::as_bytes(std::span(buffer_));
  FVMM_TRY(write_all(file_, bytes, hash_table_bytes(entries_written_)));
  checksum_.update(bytes);
  entries_written_ += buffer_.size();
  buffer_.clear();
  return {};
}

Result<v1::StoredFile> HashTableWriter::finish() {
  FVMM_TRY(flush());
  HashHeader header = header_of(entries_written_, memory_bytes_);
  checksum_.update(checked_part(header));
  const Digest checksum = checksum_.finish();
  header.checksum = checksum.bytes;
  FVMM_TRY(write_all(file_, std::as_bytes(std::span(&header, 1)), 0));
  v1::StoredFile stored;
  stored.set_bytes(hash_table_bytes(entries_written_));
  stored.set_checksum(checksum.raw());
  return stored;
}

Result<HashTableReader> HashTableReader::open(int file, std::uint64_t memory_bytes, const v1::StoredFile& expected) {
  struct stat info {};
  if (::fstat(file, &info) != 0) return Error(Errc::kIo, "stat of hashes", errno);
  HashHeader header{};
  FVMM_TRY(read_all(file, std::as_writable_bytes(std::span(&header, 1)), 0), "hashes");
  if (header.magic != kMagic) return Error(Errc::kDataLoss, "hashes: wrong magic");
  if (header.version != kTemplateVersion) {
    return Error(Errc::kFailedPrecondition, fmt::format("hashes: format version {} is not known", header.version));
  }
  const std::uint64_t pages = memory_bytes / kPageBytes;
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (header.entry_bytes != sizeof(HashEntry) || header.memory_bytes != memory_bytes || header.entries > pages ||
      size != hash_table_bytes(header.entries) || expected.bytes() != size) {
    return Error(Errc::kDataLoss, "hashes: header does not match the template");
  }
  if (Id{.bytes = header.checksum}.raw() != expected.checksum()) {
    return Error(Errc::kDataLoss, "hashes: checksum is not the manifest's");
  }
  return HashTableReader(file, header.entries, memory_bytes, Digest{.bytes = header.checksum});
}

Result<std::span<const HashEntry>> HashTableReader::next() {
  batch_.resize(std::min<std::uint64_t>(kBatchEntries, entries_ - entries_read_));
  FVMM_TRY(read_all(file_, std::as_writable_bytes(std::span(batch_)), hash_table_bytes(entries_read_)), "hashes");
  checksum_.update(std::as_bytes(std::span(batch_)));
  FVMM_TRY(check_batch());
  entries_read_ += batch_.size();
  if (batch_.empty() && !ended_) FVMM_TRY(check_end());
  return std::span<const HashEntry>(batch_);
}

Status HashTableReader::check_batch() {
  for (const HashEntry& entry : batch_) {
    if (entry.page < next_page_ || entry.page >= memory_bytes_ / kPageBytes) {
      return Error(Errc::kDataLoss, fmt::format("hashes: page {} out of order or range", entry.page));
    }
    next_page_ = entry.page + 1;
  }
  return {};
}

Status HashTableReader::check_end() {
  const HashHeader header = header_of(entries_, memory_bytes_);  // open() compared every field
  checksum_.update(checked_part(header));
  if (checksum_.finish() != expected_) return Error(Errc::kDataLoss, "hashes: checksum differs");
  ended_ = true;
  return {};
}

Result<HashCursor> HashCursor::open(int file, std::uint64_t memory_bytes, const v1::StoredFile& expected) {
  HashCursor cursor(FVMM_TRY(HashTableReader::open(file, memory_bytes, expected)));
  FVMM_TRY(cursor.advance());
  return cursor;
}

Status HashCursor::advance() {
  if (batch_.empty()) batch_ = FVMM_TRY(reader_.next());
  entry_.reset();
  if (batch_.empty()) return {};
  entry_ = batch_.front();
  batch_ = batch_.subspan(1);
  return {};
}

}  // namespace fvmm::memory
