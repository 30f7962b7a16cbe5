#include "memory/dirty.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kWordBits = 64;
constexpr std::uint64_t kAllOnes = ~std::uint64_t{0};

std::uint64_t words_for(std::uint64_t pages) {
  return pages / kWordBits + (pages % kWordBits != 0 ? 1 : 0);
}

std::uint64_t bit_of(PageIndex page) {
  return std::uint64_t{1} << (page % kWordBits);
}

/// Bits [first, first + count) of one word; count is 1 to 64 and does not leave the word.
std::uint64_t mask_of(std::uint64_t first, std::uint64_t count) {
  return (kAllOnes >> (kWordBits - count)) << first;
}

void check_range(PageRange range, std::uint64_t pages) {
  FVMM_CHECK(range.first <= pages && range.count <= pages - range.first, "pages lie outside the bitmap");
}

/// Calls `visit(word index, mask)` for each word that the range touches.
template <class Visit>
void for_each_word(PageRange range, Visit visit) {
  PageIndex page = range.first;
  const PageIndex end = range.first + range.count;
  while (page < end) {
    const std::uint64_t within = page % kWordBits;
    const std::uint64_t count = std::min(kWordBits - within, end - page);
    visit(page / kWordBits, mask_of(within, count));
    page += count;
  }
}

/// First page at or after `from` whose bit equals `wanted`; `pages` when there is none.
PageIndex find_next(std::span<const std::uint64_t> words, std::uint64_t pages, PageIndex from, bool wanted) {
  const std::uint64_t flip = wanted ? 0 : kAllOnes;
  std::uint64_t index = from / kWordBits;
  if (index >= words.size()) return pages;
  std::uint64_t word = (words[index] ^ flip) & (kAllOnes << (from % kWordBits));
  while (word == 0) {
    if (++index == words.size()) return pages;
    word = words[index] ^ flip;
  }
  return std::min(pages, index * kWordBits + static_cast<unsigned>(std::countr_zero(word)));
}

}  // namespace

Bitmap::Bitmap(std::uint64_t pages) : pages_(pages), words_(words_for(pages)) {}

void Bitmap::set(PageIndex page) {
  FVMM_CHECK(page < pages_, "page lies outside the bitmap");
  words_[page / kWordBits] |= bit_of(page);
}

void Bitmap::set_range(PageRange range) {
  check_range(range, pages_);
  for_each_word(range, [this](std::uint64_t index, std::uint64_t mask) { words_[index] |= mask; });
}

void Bitmap::clear(PageIndex page) {
  FVMM_CHECK(page < pages_, "page lies outside the bitmap");
  words_[page / kWordBits] &= ~bit_of(page);
}

void Bitmap::clear_all() {
  std::fill(words_.begin(), words_.end(), 0);
}

void Bitmap::set_all() {
  set_range({.first = 0, .count = pages_});
}

bool Bitmap::test(PageIndex page) const {
  FVMM_CHECK(page < pages_, "page lies outside the bitmap");
  return (words_[page / kWordBits] & bit_of(page)) != 0;
}

std::uint64_t Bitmap::count() const {
  std::uint64_t total = 0;
  for (const std::uint64_t word : words_) total += static_cast<unsigned>(std::popcount(word));
  return total;
}

bool Bitmap::any() const {
  return std::any_of(words_.begin(), words_.end(), [](std::uint64_t word) { return word != 0; });
}

void Bitmap::merge(const Bitmap& other) {
  FVMM_CHECK(pages_ == other.pages_, "bitmaps of different sizes");
  for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
}

std::vector<PageRange> Bitmap::ranges(std::uint64_t pages_max) const {
  FVMM_CHECK(pages_max > 0, "a run has at least one page");
  std::vector<PageRange> out;
  PageIndex page = find_next(words_, pages_, 0, true);
  while (page < pages_) {
    const PageIndex end = find_next(words_, pages_, page, false);
    for (; page < end; page += std::min(pages_max, end - page)) {
      out.push_back({.first = page, .count = std::min(pages_max, end - page)});
    }
    page = find_next(words_, pages_, end, true);
  }
  return out;
}

AtomicBitmap::AtomicBitmap(std::uint64_t pages) : pages_(pages), words_(words_for(pages)) {}

void AtomicBitmap::set(PageIndex page) {
  FVMM_CHECK(page < pages_, "page lies outside the bitmap");
  // Always a read-modify-write. "Already set, nothing to do" would be a plain load, which may run ahead of the
  // caller's store: the harvest could then clear the bit and read the page before the store is visible.
  words_[page / kWordBits].fetch_or(bit_of(page), std::memory_order_release);
}

void AtomicBitmap::set_range(PageRange range) {
  check_range(range, pages_);
  for_each_word(range, [this](std::uint64_t index, std::uint64_t mask) {
    words_[index].fetch_or(mask, std::memory_order_release);
  });
}

void AtomicBitmap::drain_into(Bitmap& out) {
  FVMM_CHECK(pages_ == out.pages(), "bitmaps of different sizes");
  const std::span<std::uint64_t> target = out.words();
  for (std::size_t i = 0; i < words_.size(); ++i) {
    if (words_[i].load(std::memory_order_relaxed) == 0) continue;  // most words, most of the time
    target[i] |= words_[i].exchange(0, std::memory_order_acquire);
  }
}

DirtyTracker::Reader::Reader(DirtyTracker& tracker) : tracker_(tracker), pending_(tracker.pages_) {
  tracker_.readers_.push_back(this);
}

DirtyTracker::Reader::~Reader() {
  std::erase(tracker_.readers_, this);
}

Bitmap DirtyTracker::Reader::take() {
  return std::exchange(pending_, Bitmap(tracker_.pages_));
}

void DirtyTracker::Reader::take_into(Bitmap& out) {
  FVMM_CHECK(out.pages() == pending_.pages(), "bitmaps of different sizes");
  out.clear_all();
  std::swap(out, pending_);
}

void DirtyTracker::Reader::put_back(const Bitmap& pages) {
  pending_.merge(pages);
}

DirtyTracker::DirtyTracker(std::uint64_t pages, DirtySource* kvm, AtomicBitmap& devices)
    : pages_(pages), kvm_(kvm), devices_(devices), harvested_(pages) {
  FVMM_CHECK(devices.pages() == pages, "device marks of another size");
}

std::unique_ptr<DirtyTracker::Reader> DirtyTracker::add_reader() {
  return std::unique_ptr<Reader>(new Reader(*this));
}

Status DirtyTracker::harvest() {
  harvested_.clear_all();
  Status status = kvm_ != nullptr ? kvm_->harvest(harvested_) : Status{};
  devices_.drain_into(harvested_);
  for (Reader* reader : readers_) reader->pending_.merge(harvested_);
  return status;
}

}  // namespace fvmm::memory
