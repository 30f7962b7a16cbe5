#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <vector>

#include "base/file.h"
#include "memory/guest_memory.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kSmall = 16 * kMiB;
constexpr std::uint64_t kSplit = 3 * kGiB + 16 * kMiB;  // 16 MiB above the hole; mapped, hardly touched

std::array<std::byte, 4> word(char c) {
  std::array<std::byte, 4> out{};
  out.fill(static_cast<std::byte>(c));
  return out;
}

std::unique_ptr<GuestMemory> zero_memory(std::uint64_t bytes) {
  auto memory = GuestMemory::reserve(bytes);
  EXPECT_TRUE(memory.ok());
  EXPECT_TRUE((*memory)->map_zero().ok());
  return std::move(*memory);
}

/// A memfd of that size whose first byte of page p is p + 1, for the first eight pages.
UniqueFd memory_file(std::uint64_t bytes) {
  UniqueFd file(::memfd_create("template", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  for (std::uint64_t page = 0; page < 8; ++page) {
    const auto byte = static_cast<std::byte>(page + 1);
    EXPECT_TRUE(write_all(file.get(), std::span(&byte, 1), page * kPageBytes).ok());
  }
  return file;
}

TEST(Layout, AcceptsEachLimitAndRefusesOnePast) {
  EXPECT_TRUE(Layout::of(kRamBytesMin).ok());
  EXPECT_TRUE(Layout::of(kRamBytesMax).ok());
  for (const std::uint64_t bad :
       {std::uint64_t{0}, kRamBytesMin - kPageBytes, kRamBytesMin + 1, kRamBytesMax + kPageBytes, ~std::uint64_t{0}}) {
    const auto layout = Layout::of(bad);
    ASSERT_FALSE(layout.ok()) << bad;
    EXPECT_EQ(layout.error().code(), Errc::kInvalidArgument);
  }
}

TEST(Layout, OneSlotUpToTheHole) {
  const Layout layout = *Layout::of(kHoleStart);
  ASSERT_EQ(layout.slot_count(), 1U);
  EXPECT_EQ(layout.slot(0).bytes, kHoleStart);
  EXPECT_EQ(layout.pages(), kHoleStart / kPageBytes);
}

TEST(Layout, RestOfRamContinuesAboveTheHole) {
  const Layout layout = *Layout::of(kHoleStart + kPageBytes);
  ASSERT_EQ(layout.slot_count(), 2U);
  EXPECT_EQ(layout.slot(0).bytes, kHoleStart);
  EXPECT_EQ(layout.slot(1).guest_address, kHoleEnd);
  EXPECT_EQ(layout.slot(1).ram_offset, kHoleStart);
  EXPECT_EQ(layout.slot(1).bytes, kPageBytes);
}

TEST(LayoutDeathTest, HasNoSlotPastTheLast) {
  EXPECT_DEATH((void)Layout::of(kSmall)->slot(1), "");
}

TEST(Layout, OffsetsOnlyForWhatIsWhollyRamOfOneSlot) {
  const Layout layout = *Layout::of(kSplit);
  EXPECT_EQ(layout.ram_offset(0, 4), 0U);
  EXPECT_EQ(layout.ram_offset(kHoleStart - 4, 4), kHoleStart - 4);
  EXPECT_EQ(layout.ram_offset(kHoleEnd, 4), kHoleStart);
  EXPECT_EQ(layout.ram_offset(kHoleEnd + 16 * kMiB - 4, 4), kSplit - 4);
  EXPECT_FALSE(layout.ram_offset(kHoleStart - 4, 5));            // into the hole
  EXPECT_FALSE(layout.ram_offset(kHoleStart, 1));                // in the hole
  EXPECT_FALSE(layout.ram_offset(kHoleEnd - 1, 2));              // out of the hole
  EXPECT_FALSE(layout.ram_offset(kHoleStart - 1, kGiB + 2));     // across the hole
  EXPECT_FALSE(layout.ram_offset(kHoleEnd + 16 * kMiB - 4, 5));  // past the end
  EXPECT_FALSE(layout.ram_offset(~std::uint64_t{0} - 1, 4));     // address + length wraps
  EXPECT_FALSE(layout.ram_offset(4, ~std::uint64_t{0} - 1));
}

TEST(GuestMemory, RefusesABadSize) {
  const auto memory = GuestMemory::reserve(kSmall + 1);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().code(), Errc::kInvalidArgument);
}

TEST(GuestMemory, LiesOnAHugePageBoundary) {
  const auto memory = zero_memory(kSmall + kPageBytes);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->host_base()) % (2 * kMiB), 0U);
}

TEST(GuestMemory, MappingKeepsTheReservedAddress) {
  auto memory = GuestMemory::reserve(kSmall);
  ASSERT_TRUE(memory.ok());
  std::byte* const base = (*memory)->host_base();
  ASSERT_TRUE((*memory)->map_zero().ok());
  const UniqueFd file = memory_file(kSmall);
  ASSERT_TRUE((*memory)->map_private(file.get()).ok());
  EXPECT_EQ((*memory)->host_base(), base);
}

TEST(GuestMemory, ReadsBackWhatWasWrittenOnBothSidesOfTheHole) {
  const auto memory = zero_memory(kSplit);
  ASSERT_TRUE(memory->write(kHoleStart - 4, word('a')).ok());
  ASSERT_TRUE(memory->write(kHoleEnd, word('b')).ok());
  std::array<std::byte, 4> out{};
  ASSERT_TRUE(memory->read(kHoleStart - 4, out).ok());
  EXPECT_EQ(out, word('a'));
  ASSERT_TRUE(memory->read(kHoleEnd, out).ok());
  EXPECT_EQ(out, word('b'));
  // Linear order: the page above the hole follows the page below it.
  const auto pages = memory->pages({kHoleStart / kPageBytes - 1, 2});
  EXPECT_EQ(std::memcmp(pages.data() + kPageBytes - 4, "aaaabbbb", 8), 0);
}

TEST(GuestMemory, RefusesAccessOutsideRamAndMarksNothing) {
  const auto memory = zero_memory(kSmall);
  std::array<std::byte, 4> out{};
  for (const std::uint64_t address :
       {kSmall - 3, kSmall, kHoleStart, kHoleEnd, ~std::uint64_t{0}, ~std::uint64_t{0} - 3}) {
    const Status read = memory->read(address, out);
    const Status write = memory->write(address, out);
    ASSERT_FALSE(read.ok()) << address;
    ASSERT_FALSE(write.ok()) << address;
    EXPECT_EQ(read.error().code(), Errc::kOutOfRange);
    EXPECT_EQ(write.error().code(), Errc::kOutOfRange);
  }
  Bitmap marks(memory->layout().pages());
  memory->device_marks().drain_into(marks);
  EXPECT_FALSE(marks.any());
}

TEST(GuestMemory, WriteMarksExactlyThePagesItTouches) {
  const auto memory = zero_memory(kSmall);
  ASSERT_TRUE(memory->write(3 * kPageBytes - 1, std::vector<std::byte>(kPageBytes + 2)).ok());
  ASSERT_TRUE(memory->write(8 * kPageBytes, {}).ok());
  std::array<std::byte, 4> out{};
  ASSERT_TRUE(memory->read(10 * kPageBytes, out).ok());
  memory->pages_for_load({12, 1})[0] = std::byte{1};
  Bitmap marks(memory->layout().pages());
  memory->device_marks().drain_into(marks);
  EXPECT_EQ(marks.ranges(100), (std::vector<PageRange>{{2, 3}}));
}

TEST(GuestMemory, SharedWordsAreReadWrittenAndMarked) {
  auto memory = zero_memory(kSmall);
  EXPECT_TRUE(memory->store_u16(kSmall - 2, 0xbeef));
  EXPECT_EQ(memory->load_u16(kSmall - 2), 0xbeef);
  EXPECT_FALSE(memory->store_u16(kSmall, 1));
  EXPECT_EQ(memory->load_u16(kSmall), std::nullopt);
  EXPECT_EQ(memory->load_u16(kHoleStart), std::nullopt);
  Bitmap marks(memory->layout().pages());
  memory->device_marks().drain_into(marks);
  EXPECT_EQ(marks.ranges(8), (std::vector<PageRange>{{kSmall / kPageBytes - 1, 1}}));
}

TEST(GuestMemory, KernelIoIsMarkedOnlyAtCompletion) {
  auto memory = zero_memory(kSmall);
  const auto view = memory->io_view(kPageBytes - 1, 2);
  ASSERT_EQ(view.size(), 2U);
  EXPECT_EQ(view.data(), memory->host_base() + kPageBytes - 1);
  Bitmap marks(memory->layout().pages());
  memory->device_marks().drain_into(marks);
  EXPECT_FALSE(marks.any());
  memory->mark_written(kPageBytes - 1, 2);
  memory->mark_written(kPageBytes * 8, 0);
  memory->device_marks().drain_into(marks);
  EXPECT_EQ(marks.ranges(8), (std::vector<PageRange>{{0, 2}}));
  EXPECT_TRUE(memory->io_view(kSmall - 1, 2).empty());
  EXPECT_TRUE(memory->io_view(kHoleStart, 1).empty());
}

TEST(GuestMemoryDeathTest, OnlyRamIsMarkedAndOnlyAlignedWordsAreShared) {
  auto memory = zero_memory(kSmall);
  EXPECT_DEATH(memory->mark_written(kSmall, 1), "");
  EXPECT_DEATH((void)memory->load_u16(1), "");
}

TEST(GuestMemory, PrivateMappingLeavesTheFileUnchangedAndShowsTheTemplatesPage) {
  const UniqueFd file = memory_file(kSmall);
  auto memory = std::move(*GuestMemory::reserve(kSmall));
  ASSERT_TRUE(memory->map_private(file.get()).ok());
  EXPECT_FALSE(memory->on_zero_template());
  std::array<std::byte, 4> out{};
  ASSERT_TRUE(memory->read(2 * kPageBytes, out).ok());
  EXPECT_EQ(out[0], std::byte{3});

  ASSERT_TRUE(memory->write(2 * kPageBytes, word('x')).ok());

  std::byte in_file{};
  ASSERT_TRUE(read_all(file.get(), std::span(&in_file, 1), 2 * kPageBytes).ok());
  EXPECT_EQ(in_file, std::byte{3});
  std::array<std::byte, kPageBytes> original{};
  ASSERT_TRUE(memory->template_page(2, original).ok());
  EXPECT_EQ(original[0], std::byte{3});
  EXPECT_EQ(memory->pages({2, 1})[0], std::byte{'x'});
}

TEST(GuestMemory, KeepsTheTemplateAfterItsDescriptorIsClosed) {
  auto memory = std::move(*GuestMemory::reserve(kSmall));
  {
    const UniqueFd file = memory_file(kSmall);
    ASSERT_TRUE(memory->map_private(file.get()).ok());
  }
  std::array<std::byte, kPageBytes> original{};
  ASSERT_TRUE(memory->template_page(7, original).ok());
  EXPECT_EQ(original[0], std::byte{8});
}

TEST(GuestMemory, ZeroTemplateShowsZerosAlsoAfterATemplate) {
  auto memory = std::move(*GuestMemory::reserve(kSmall));
  const UniqueFd file = memory_file(kSmall);
  ASSERT_TRUE(memory->map_private(file.get()).ok());
  ASSERT_TRUE(memory->map_zero().ok());
  EXPECT_TRUE(memory->on_zero_template());
  std::array<std::byte, kPageBytes> original{};
  original.fill(std::byte{9});
  ASSERT_TRUE(memory->template_page(1, original).ok());
  EXPECT_EQ(original, (std::array<std::byte, kPageBytes>{}));
  EXPECT_EQ(memory->pages({1, 1})[0], std::byte{0});
}

TEST(GuestMemory, RefusesAMemoryFileOnePageShort) {
  auto memory = std::move(*GuestMemory::reserve(kSmall));
  const UniqueFd file = memory_file(kSmall - kPageBytes);
  const Status status = memory->map_private(file.get());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(memory->on_zero_template());
}

TEST(GuestMemory, RefusesWhatIsNoFile) {
  auto memory = std::move(*GuestMemory::reserve(kSmall));
  const Status status = memory->map_private(-1);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().sys_errno(), EBADF);
}

TEST(GuestMemoryDeathTest, PageRangesAreChecked) {
  const auto memory = zero_memory(kSmall);
  const std::uint64_t pages = kSmall / kPageBytes;
  EXPECT_EQ(memory->pages({pages, 0}).size(), 0U);
  EXPECT_DEATH((void)memory->pages({pages, 1}), "");
  EXPECT_DEATH((void)memory->pages({1, ~std::uint64_t{0}}), "");
  EXPECT_DEATH((void)memory->pages_for_load({pages - 1, 2}), "");
  std::array<std::byte, kPageBytes> out{};
  EXPECT_DEATH((void)memory->template_page(pages, out), "");
}

}  // namespace
}  // namespace fvmm::memory
