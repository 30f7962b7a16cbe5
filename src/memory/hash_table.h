// File `hashes` of a template: one entry for each non-zero page of a base or for each page of a delta, ascending.
// Written and read as a stream, because for 64 GiB of memory it has 400 MB. docs/template-format.md.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "memory/digest.h"
#include "proto/template.pb.h"

namespace fvmm::memory {

/// On disk as in memory: little endian, 24 bytes.
struct HashEntry {
  std::uint64_t page;
  Digest hash;
};
static_assert(sizeof(HashEntry) == 24);

inline constexpr std::uint64_t kHashHeaderBytes = 48;
constexpr std::uint64_t hash_table_bytes(std::uint64_t entries) {
  return kHashHeaderBytes + entries * sizeof(HashEntry);
}
constexpr std::uint64_t hash_entries_in(std::uint64_t table_bytes) {
  return (table_bytes - kHashHeaderBytes) / sizeof(HashEntry);
}

/// Owner: one thread. The descriptor must outlive it and is not closed.
class HashTableWriter {
 public:
  HashTableWriter(int file, std::uint64_t memory_bytes);
  /// Ascending pages: the caller has checked. Errors: those of write_all().
  Status add(PageIndex page, const Digest& hash);
  /// Writes what is buffered, then the header. Nothing may be added after.
  Result<v1::StoredFile> finish();

 private:
  Status flush();
  int file_;
  std::uint64_t memory_bytes_;
  std::uint64_t entries_written_ = 0;
  std::vector<HashEntry> buffer_;
  StreamHash checksum_;
};

/// Reads in batches and checks order, range and, with the last entry, the checksum. kDataLoss for anything damaged,
/// kFailedPrecondition for an unknown version. The descriptor must outlive it and is not closed. Owner: one thread.
class HashTableReader {
 public:
  /// `expected`: length and checksum of the manifest.
  static Result<HashTableReader> open(int file, std::uint64_t memory_bytes, const v1::StoredFile& expected);
  /// The next entries; empty at the end. Valid until the next call.
  Result<std::span<const HashEntry>> next();
  [[nodiscard]] std::uint64_t entries() const { return entries_; }

 private:
  HashTableReader(int file, std::uint64_t entries, std::uint64_t memory_bytes, const Digest& expected)
      : file_(file), entries_(entries), memory_bytes_(memory_bytes), expected_(expected) {}
  Status check_batch();
  Status check_end();
  int file_;
  std::uint64_t entries_;
  std::uint64_t memory_bytes_;
  Digest expected_;
  std::uint64_t entries_read_ = 0;
  PageIndex next_page_ = 0;
  std::vector<HashEntry> batch_;
  StreamHash checksum_;
  bool ended_ = false;  // the checksum has been compared
};

/// A table entry by entry. Owner: one thread. The descriptor must outlive it.
class HashCursor {
 public:
  /// On the first entry. Errors: those of HashTableReader.
  static Result<HashCursor> open(int file, std::uint64_t memory_bytes, const v1::StoredFile& expected);
  [[nodiscard]] const std::optional<HashEntry>& entry() const { return entry_; }  // none: the end, checksum compared
  Status advance();

 private:
  explicit HashCursor(HashTableReader reader) : reader_(std::move(reader)) {}
  HashTableReader reader_;
  std::span<const HashEntry> batch_;
  std::optional<HashEntry> entry_;
};

}  // namespace fvmm::memory
