// One door to guest RAM: mapping, checked access, device marks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/result.h"
#include "memory/dirty.h"
#include "memory/layout.h"
#include "memory/template_image.h"

namespace fvmm::memory {

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
  Layout layout_;
  std::byte* base_;
  AtomicBitmap device_marks_;
  std::shared_ptr<const TemplateImage> template_;  // null: the zero template
};

}  // namespace fvmm::memory
