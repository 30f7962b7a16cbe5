// Discards of guest memory: what the pages hold afterwards, that they count as written, and that a capture has them
// first. A discard takes no page fault, so nothing but the keeper stands between it and a capture.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <thread>
#include <vector>

#include "base/file.h"
#include "support/userfault.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kRam = 16 * kMiB;
constexpr std::uint64_t kPages = kRam / kPageBytes;

class Discard : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(ram->map_zero().ok()); }
  /// Every byte of the template is 5.
  void map_resident() {
    const UniqueFd file(::memfd_create("template", MFD_CLOEXEC));
    ASSERT_TRUE(write_all(file.get(), std::vector<std::byte>(kRam, std::byte{5}), 0).ok());
    ASSERT_TRUE(ram->map_private(file.get()).ok());
  }
  std::byte& byte_of(PageIndex page) { return ram->host_base()[page * kPageBytes + 123]; }
  void fill(PageRange range, std::byte value) {
    std::memset(ram->host_base() + range.first * kPageBytes, std::to_integer<int>(value), range.count * kPageBytes);
  }
  Status discard(PageRange range) { return ram->discard(range.first * kPageBytes, range.count * kPageBytes); }
  Bitmap marks() {
    Bitmap out(kPages);
    ram->device_marks().drain_into(out);
    return out;
  }
  std::unique_ptr<GuestMemory> ram = std::move(*GuestMemory::reserve(kRam));
};

TEST_F(Discard, OnTheZeroTemplateItBringsZeros) {
  fill({7, 3}, std::byte{9});
  ASSERT_TRUE(discard({8, 1}).ok());
  EXPECT_EQ(byte_of(7), std::byte{9});
  EXPECT_EQ(byte_of(8), std::byte{0});
  EXPECT_EQ(byte_of(9), std::byte{9});
}

TEST_F(Discard, OnATemplateItBringsTheTemplatesBytes) {
  map_resident();
  fill({7, 3}, std::byte{9});
  ASSERT_TRUE(discard({8, 1}).ok());
  EXPECT_EQ(byte_of(7), std::byte{9});
  EXPECT_EQ(byte_of(8), std::byte{5});
  std::array<std::byte, kPageBytes> unmodified{};
  ASSERT_TRUE(ram->template_page(8, unmodified).ok());
  EXPECT_EQ(std::memcmp(unmodified.data(), ram->pages({8, 1}).data(), kPageBytes), 0);
  byte_of(8) = std::byte{1};
  EXPECT_EQ(byte_of(8), std::byte{1}) << "and can be written again";
}

TEST_F(Discard, TheMemoryIsTheHostsAgain) {
  ASSERT_EQ(::madvise(ram->host_base(), kRam, MADV_NOHUGEPAGE), 0);
  fill({0, kPages}, std::byte{9});
  ASSERT_TRUE(discard({100, 1000}).ok());
  std::vector<unsigned char> there(kPages);
  ASSERT_EQ(::mincore(ram->host_base(), kRam, there.data()), 0);
  for (PageIndex page = 0; page < kPages; ++page)
    EXPECT_EQ(there[page] & 1, page < 100 || page >= 1100 ? 1 : 0) << page;
}

TEST_F(Discard, ItIsAWriteForEveryReaderOfTheDirtyPages) {
  DirtyTracker tracker(kPages, nullptr, ram->device_marks());
  const auto since_base = tracker.add_reader();
  const auto round = tracker.add_reader();
  ASSERT_TRUE(discard({kDiscardPages - 1, kDiscardPages + 2}).ok());  // in three parts
  ASSERT_TRUE(tracker.harvest().ok());
  for (const auto& reader : {since_base.get(), round.get()}) {
    EXPECT_EQ(reader->pending().count(), kDiscardPages + 2);
    EXPECT_TRUE(reader->pending().test(kDiscardPages - 1));
    EXPECT_TRUE(reader->pending().test(2 * kDiscardPages));
  }
}

TEST_F(Discard, WhatIsNotWholePagesOfRamIsRefusedAndStays) {
  fill({0, kPages}, std::byte{9});
  const std::array<std::array<std::uint64_t, 2>, 8> bad{{{kPageBytes, 0},
                                                         {1, kPageBytes},
                                                         {kPageBytes, kPageBytes - 1},
                                                         {kRam, kPageBytes},
                                                         {kRam - kPageBytes, 2 * kPageBytes},
                                                         {3 * kGiB, kPageBytes},
                                                         {~std::uint64_t{0} & ~(kPageBytes - 1), 2 * kPageBytes},
                                                         {0, ~std::uint64_t{0} & ~(kPageBytes - 1)}}};
  for (const auto& [address, bytes] : bad) {
    const Status refused = ram->discard(address, bytes);
    ASSERT_FALSE(refused.ok()) << address;
    EXPECT_EQ(refused.error().code(), Errc::kOutOfRange);
  }
  for (PageIndex page = 0; page < kPages; ++page) ASSERT_EQ(byte_of(page), std::byte{9}) << page;
  EXPECT_FALSE(marks().any());
  EXPECT_TRUE(discard({kPages - 1, 1}).ok()) << "the last page";
}

// Locked memory is what the kernel does not take back. By the system call itself: sanitizers make mlock() do nothing.
TEST_F(Discard, WhatTheKernelKeepsIsAnErrorAndMarkedAllTheSame) {
  fill({8, 1}, std::byte{9});
  if (::syscall(SYS_mlock, ram->host_base() + 8 * kPageBytes, kPageBytes) != 0)
    GTEST_SKIP() << "this user may not lock memory";
  const Status kept = discard({8, 1});
  ASSERT_FALSE(kept.ok());
  EXPECT_EQ(kept.error().code(), Errc::kIo);
  EXPECT_EQ(byte_of(8), std::byte{9});
  EXPECT_TRUE(marks().test(8));
}

/// A keeper that only notes.
class Notes final : public PageKeeper {
 public:
  explicit Notes(GuestMemory& ram) : ram_(ram) { ram_.set_keeper(*this); }
  ~Notes() override { ram_.clear_keeper(*this); }
  Notes(const Notes&) = delete;
  Notes& operator=(const Notes&) = delete;
  Notes(Notes&&) = delete;
  Notes& operator=(Notes&&) = delete;
  void let_go(PageRange pages, const Drop& drop) override {
    const auto first = ram_.pages(pages);
    before.push_back(first[0]);
    drop();
    after.push_back(first[0]);
    asked.push_back(pages);
  }
  std::vector<PageRange> asked;
  std::vector<std::byte> before, after;

 private:
  GuestMemory& ram_;
};

TEST_F(Discard, TheKeeperIsAskedBeforeEachPartAndSeesItGo) {
  fill({0, kPages}, std::byte{9});
  const Notes first(*ram);
  {
    Notes second(*ram);  // in place of the first
    ASSERT_TRUE(discard({3, kDiscardPages + 1}).ok());
    EXPECT_EQ(second.asked, (std::vector<PageRange>{{3, kDiscardPages}, {3 + kDiscardPages, 1}}));
    EXPECT_EQ(second.before, (std::vector<std::byte>(2, std::byte{9})));
    EXPECT_EQ(second.after, (std::vector<std::byte>(2, std::byte{0})));
  }
  ASSERT_TRUE(discard({3, 1}).ok());
  EXPECT_TRUE(first.asked.empty()) << "it had been replaced";
}

/// What a capture gave.
struct Image {
  std::vector<std::byte> bytes = std::vector<std::byte>(kRam);
  Bitmap pages{kPages};
  InstantCopy::Put put = [this](PageRange range, const std::byte* from) {
    std::memcpy(bytes.data() + range.first * kPageBytes, from, range.count * kPageBytes);
    pages.set_range(range);
    return Status();
  };
  [[nodiscard]] std::byte byte_of(PageIndex page) const { return bytes[page * kPageBytes + 123]; }
};

class DiscardUnderCapture : public Discard, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    FVMM_NEEDS_USERFAULT();
    Discard::SetUp();
    if (GetParam()) map_resident();
  }
  [[nodiscard]] std::byte beneath() const { return GetParam() ? std::byte{5} : std::byte{0}; }
  static Bitmap range_of(PageRange range) {
    Bitmap out(kPages);
    out.set_range(range);
    return out;
  }
  static void drain(InstantCopy& copy, const InstantCopy::Put& put) {
    for (;;) {
      const auto more = copy.next(put);
      ASSERT_TRUE(more.ok()) << more.error().message();
      if (!*more) return;
    }
  }
};

TEST_P(DiscardUnderCapture, APageOfTheInstantIsCapturedBeforeItGoes) {
  const auto copy = testing::instant_copy_of(*ram);
  fill({100, 600}, std::byte{9});
  ASSERT_TRUE(copy->begin().ok());
  copy->freeze();
  ASSERT_TRUE(copy->arm(range_of({100, 600})).ok());
  ASSERT_TRUE(discard({90, 300}).ok());  // some of them, and some that nobody needs
  EXPECT_EQ(byte_of(100), beneath());
  Image image;
  drain(*copy, image.put);
  EXPECT_EQ(image.pages.count(), 600U);
  for (PageIndex page = 100; page < 700; ++page) ASSERT_EQ(image.byte_of(page), std::byte{9}) << page;
}

// The kernel forgets the protection of a page that goes: one that the capture still counted as protected would be
// written after the instant, unseen.
TEST_P(DiscardUnderCapture, APageThatWentBeforeTheInstantIsProtectedAnew) {
  const auto copy = testing::instant_copy_of(*ram);
  fill({100, 10}, std::byte{9});
  ASSERT_TRUE(copy->begin().ok());
  ASSERT_TRUE(copy->arm(range_of({100, 10})).ok());
  ASSERT_TRUE(discard({104, 1}).ok());
  EXPECT_EQ(copy->unarmed(range_of({100, 10})), 1U);
  copy->freeze();
  ASSERT_TRUE(copy->arm(range_of({100, 10})).ok());
  byte_of(104) = std::byte{1};  // waits until the page is captured
  EXPECT_EQ(copy->faults(), 1U);
  Image image;
  drain(*copy, image.put);
  EXPECT_EQ(image.byte_of(103), std::byte{9});
  EXPECT_EQ(image.byte_of(104), beneath());
  EXPECT_EQ(byte_of(104), std::byte{1});
}

TEST_P(DiscardUnderCapture, WithTheStagingFullItWaitsAndNothingIsLost) {
  const auto copy = testing::instant_copy_of(*ram, 2);
  fill({100, 40}, std::byte{9});
  ASSERT_TRUE(copy->begin().ok());
  copy->freeze();
  ASSERT_TRUE(copy->arm(range_of({100, 40})).ok());
  Status given = Error(Errc::kInternal, "not done");
  std::thread discarder([&] { given = discard({100, 40}); });
  Image image;
  drain(*copy, image.put);
  discarder.join();
  EXPECT_TRUE(given.ok());
  drain(*copy, image.put);
  EXPECT_EQ(image.pages.count(), 40U);
  for (PageIndex page = 100; page < 140; ++page) ASSERT_EQ(image.byte_of(page), std::byte{9}) << page;
  EXPECT_EQ(byte_of(100), beneath());
}

TEST_P(DiscardUnderCapture, TheEndOfACaptureLetsItGoOn) {
  Status given = Error(Errc::kInternal, "not done");
  std::thread discarder;
  {
    const auto copy = testing::instant_copy_of(*ram, 1);
    fill({100, 40}, std::byte{9});
    ASSERT_TRUE(copy->begin().ok());
    copy->freeze();
    ASSERT_TRUE(copy->arm(range_of({100, 40})).ok());
    discarder = std::thread([&] { given = discard({100, 40}); });
  }  // nobody took a page
  discarder.join();
  EXPECT_TRUE(given.ok());
  EXPECT_EQ(byte_of(139), beneath());
  EXPECT_TRUE(discard({100, 1}).ok()) << "nobody is asked any more";
}

INSTANTIATE_TEST_SUITE_P(Kinds, DiscardUnderCapture, ::testing::Bool(),
                         [](const auto& one) { return std::string(one.param ? "Memfd" : "Anonymous"); });

}  // namespace
}  // namespace fvmm::memory
