// Dirty pages: bitmaps, where bits come from, and who reads them. DESIGN: one harvest, many readers; clear first, read
// after.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "memory/layout.h"

namespace fvmm::memory {

struct PageRange {
  PageIndex first;
  std::uint64_t count;
  bool operator==(const PageRange&) const = default;
};

/// One bit a RAM page. Owner: one thread.
class Bitmap {
 public:
  explicit Bitmap(std::uint64_t pages);
  [[nodiscard]] std::uint64_t pages() const { return pages_; }
  void set(PageIndex page);
  void set_range(PageRange range);
  void clear(PageIndex page);
  void clear_all();
  void set_all();
  [[nodiscard]] bool test(PageIndex page) const;
  [[nodiscard]] std::uint64_t count() const;  // set bits
  void merge(const Bitmap& other);            // OR; sizes must match (FVMM_CHECK)
  [[nodiscard]] bool any() const;             // at least one bit set
  /// Runs of set bits, ascending, each at most `pages_max` (not zero) long.
  [[nodiscard]] std::vector<PageRange> ranges(std::uint64_t pages_max) const;
  [[nodiscard]] std::span<std::uint64_t> words() { return words_; }
  [[nodiscard]] std::span<const std::uint64_t> words() const { return words_; }

 private:
  std::uint64_t pages_;
  std::vector<std::uint64_t> words_;  // bits past pages_ are always zero
};

/// Pages written by the VMM's own devices and by the kernel on its behalf. Set from any thread; drained by the harvest.
class AtomicBitmap {
 public:
  explicit AtomicBitmap(std::uint64_t pages);
  void set(PageIndex page);         // release: write first, then mark
  void set_range(PageRange range);  // the same for each page of the range
  void drain_into(Bitmap& out);     // exchange each word with 0 (acquire), OR into out; sizes must match
  [[nodiscard]] std::uint64_t pages() const { return pages_; }

 private:
  std::uint64_t pages_;
  std::vector<std::atomic<std::uint64_t>> words_;
};

/// Where guest writes are learnt from: KVM's dirty log, or a fake in tests and simulation.
class DirtySource {
 public:
  DirtySource() = default;
  virtual ~DirtySource() = default;
  DirtySource(const DirtySource&) = delete;
  DirtySource& operator=(const DirtySource&) = delete;
  DirtySource(DirtySource&&) = delete;
  DirtySource& operator=(DirtySource&&) = delete;
  /// ORs the pages written since the last call into `out`, and re-arms them before it returns: read pages only after.
  virtual Status harvest(Bitmap& out) = 0;
  /// False: the next harvest is a long one, which has to find out first what nobody has logged. Never in a pause.
  [[nodiscard]] virtual bool ready() const { return true; }
};

/// Harvests from the sources and feeds every reader. Owner: the thread that owns the VM.
class DirtyTracker {
 public:
  /// One consumer's view: the pages written since it last took them. Unregisters itself; must not outlive the tracker.
  class Reader {
   public:
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    Reader(Reader&&) = delete;
    Reader& operator=(Reader&&) = delete;
    [[nodiscard]] const Bitmap& pending() const { return pending_; }
    Bitmap take();                       // pending, then empty
    void take_into(Bitmap& out);         // the same by exchange of buffers: `out` is overwritten, nothing is allocated
    void put_back(const Bitmap& pages);  // a failed send returns its bits
    void reset() { pending_.clear_all(); }

   private:
    friend class DirtyTracker;
    explicit Reader(DirtyTracker& tracker);
    DirtyTracker& tracker_;
    Bitmap pending_;
  };

  /// `kvm` may be null (tests); both must outlive the tracker.
  DirtyTracker(std::uint64_t pages, DirtySource* kvm, AtomicBitmap& devices);
  [[nodiscard]] std::unique_ptr<Reader> add_reader();
  /// One harvest of guest and device bits, OR-ed into every reader. On error no bit is lost: what was read is
  /// delivered. Without readers the sources are re-armed all the same and the bits are nobody's.
  Status harvest();
  /// As DirtySource::ready(): false while nobody knows what has been written.
  [[nodiscard]] bool ready() const { return kvm_ == nullptr || kvm_->ready(); }

 private:
  std::uint64_t pages_;
  DirtySource* kvm_;
  AtomicBitmap& devices_;
  std::vector<Reader*> readers_;
  Bitmap harvested_;  // kept between harvests, so that one inside a pause allocates nothing
};

}  // namespace fvmm::memory
