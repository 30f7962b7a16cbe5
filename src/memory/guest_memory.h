// One door to guest RAM: mapping, checked access, device marks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "base/result.h"
#include "memory/dirty.h"
#include "memory/layout.h"
#include "memory/template_image.h"

namespace fvmm::memory {

inline constexpr std::uint64_t kDiscardPages = 512;  // given back at a time: who captures waits no longer than that

/// Whoever still needs pages as they are. A discard takes a page away without writing to it, so no write protection
/// catches it: it is announced here first.
class PageKeeper {
 public:
  using Drop = std::function<void()>;
  PageKeeper() = default;
  virtual ~PageKeeper() = default;
  PageKeeper(const PageKeeper&) = delete;
  PageKeeper& operator=(const PageKeeper&) = delete;
  PageKeeper(PageKeeper&&) = delete;
  PageKeeper& operator=(PageKeeper&&) = delete;
  /// Keeps what it needs of the pages (at most kDiscardPages), then calls `drop` once, and protects none of them in
  /// between. May wait as a write to a protected page does. Thread: the discarder's.
  virtual void let_go(PageRange pages, const Drop& drop) = 0;
};

/// Guest RAM as one contiguous host mapping in linear RAM order. Every offset and length is checked here and nowhere
/// else. Owner: the VM. Accessors may be called from any thread; map_* only while no vCPU runs and no I/O is in flight.
class GuestMemory {
 public:
  /// Reserves address space only (PROT_NONE, no memory): a warm worker's memslots point here before anything is mapped.
  static Result<std::unique_ptr<GuestMemory>> reserve(std::uint64_t ram_bytes);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;
  GuestMemory(GuestMemory&&) = delete;
  GuestMemory& operator=(GuestMemory&&) = delete;

  /// The zero template: anonymous private memory with transparent huge pages, MAP_FIXED over what was there.
  Status map_zero();
  /// A template's image: its base file, and over it each run of its deltas, MAP_PRIVATE | MAP_FIXED over what was
  /// there. Of more than kMappableRunsMax runs the longest are mapped and the rest is read into private memory, which
  /// costs their pages once. Keeps the image, so that template_page() can show the unmodified page. kFailedPrecondition
  /// when the size differs; then nothing has changed.
  Status map_template(std::shared_ptr<const TemplateImage> image);
  /// One memory file of a template that has no deltas, MAP_PRIVATE | MAP_FIXED. The file must have at least ram_bytes
  /// and never change. Keeps a duplicate of `file`, so that template_page() can show the unmodified page.
  Status map_private(int file);

  [[nodiscard]] const Layout& layout() const { return layout_; }
  [[nodiscard]] std::byte* host_base() const { return base_; }  // for memslots and iovecs; linear RAM order
  [[nodiscard]] bool on_zero_template() const { return template_ == nullptr; }

  /// Guest-physical access, for boot, devices and tests. kOutOfRange when not wholly RAM of one slot.
  Status read(std::uint64_t guest_address, std::span<std::byte> out) const;
  Status write(std::uint64_t guest_address, std::span<const std::byte> in);  // writes, then marks

  /// One word of a ring that guest and device share: 2-byte aligned (FVMM_CHECK), loaded with acquire, stored with
  /// release and then marked. Nothing and false when it is not RAM.
  [[nodiscard]] std::optional<std::uint16_t> load_u16(std::uint64_t guest_address) const;
  [[nodiscard]] bool store_u16(std::uint64_t guest_address, std::uint16_t value);
  /// The place of [guest_address, + bytes) for an iovec of kernel I/O; empty when it is not wholly RAM of one slot.
  /// What the kernel has written there is reported with mark_written() at completion, before anybody is told.
  [[nodiscard]] std::span<std::byte> io_view(std::uint64_t guest_address, std::uint64_t bytes);
  /// FVMM_CHECKs the range: io_view() has given it out.
  void mark_written(std::uint64_t guest_address, std::uint64_t bytes);

  /// Gives the host's memory behind whole pages back: a discard. It is a write, of what the mapping has beneath: the
  /// template's bytes, or where map_template() has read a short run into private memory its base's; zeros on the zero
  /// template. Captured first where somebody keeps pages, marked afterwards, also on an error. kOutOfRange: not whole
  /// pages, or not wholly RAM of one slot; then nothing has changed. kIo: the kernel keeps it. Thread: any.
  Status discard(std::uint64_t guest_address, std::uint64_t bytes);
  /// Who is asked before each discard, in place of another. Waits for a discard that is under way.
  void set_keeper(PageKeeper& keeper);
  /// It is asked no more; nothing when another has taken its place since.
  void clear_keeper(const PageKeeper& keeper);

  /// Linear pages, for templates and migration. FVMM_CHECKs the range: callers have validated it.
  [[nodiscard]] std::span<const std::byte> pages(PageRange range) const;
  /// For the receiving side before the VM has run: no mark. FVMM_CHECKs the range.
  [[nodiscard]] std::span<std::byte> pages_for_load(PageRange range);
  /// Makes private, writable memory behind a range now, with its present content, so that a later write takes no page
  /// fault. A hint: does nothing where the kernel cannot (MADV_POPULATE_WRITE, Linux 5.14). FVMM_CHECKs the range.
  void populate(PageRange range);
  /// The template's bytes of one page (zeros on the zero template). Errors: kIo when the file cannot be read.
  Status template_page(PageIndex page, std::span<std::byte, kPageBytes> out) const;

  [[nodiscard]] AtomicBitmap& device_marks() { return device_marks_; }

 private:
  GuestMemory(Layout layout, std::byte* base);
  Status map_file(int file, std::uint64_t file_page, PageRange pages);
  void mark(std::uint64_t ram_offset, std::uint64_t bytes);  // bytes > 0
  Status drop(PageRange pages);                              // discard_mutex_ held
  Layout layout_;
  std::byte* base_;
  AtomicBitmap device_marks_;
  std::shared_ptr<const TemplateImage> template_;  // null: the zero template
  std::mutex discard_mutex_;                       // before any lock of the keeper's
  PageKeeper* keeper_ = nullptr;                   // discard_mutex_
};

}  // namespace fvmm::memory
