// Private pages by PAGEMAP_SCAN and by /proc/self/pagemap, on each kind of mapping that guest RAM has.
#include "memory/private_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <random>
#include <string>

#include "base/units.h"
#include "support/stored_template.h"

namespace fvmm::memory {
namespace {

using By = PrivatePages::By;
enum class Kind { kDiskFile, kMemfd, kAnonymous };

/// A file of that many pages, none of them a hole.
UniqueFd filled_file(Kind kind, std::uint64_t pages, const std::filesystem::path& directory) {
  UniqueFd file(kind == Kind::kMemfd
                    ? ::memfd_create("template", MFD_CLOEXEC)
                    : ::open((directory / "memory").c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const std::string page(kPageBytes, 'x');
  for (std::uint64_t i = 0; i < pages; ++i)
    EXPECT_EQ(::write(file.get(), page.data(), kPageBytes), static_cast<ssize_t>(kPageBytes));
  return file;
}

/// A private mapping as guest RAM is one, with 4 KiB pages.
class Mapping {
 public:
  Mapping(Kind kind, std::uint64_t pages) : pages_(pages), directory_(FVMM_BIN_DIR) {
    if (kind != Kind::kAnonymous) file_ = filled_file(kind, pages, directory_.path());
    const int flags = MAP_PRIVATE | MAP_NORESERVE | (file_ ? 0 : MAP_ANONYMOUS);
    void* const at = ::mmap(nullptr, pages * kPageBytes, PROT_READ | PROT_WRITE, flags, file_ ? file_.get() : -1, 0);
    EXPECT_NE(at, MAP_FAILED);
    (void)::madvise(at, pages * kPageBytes, MADV_NOHUGEPAGE);
    base_ = static_cast<std::byte*>(at);
  }
  ~Mapping() { ::munmap(base_, pages_ * kPageBytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  Mapping(Mapping&&) = delete;
  Mapping& operator=(Mapping&&) = delete;

  void read(std::uint64_t page) { sum_ = sum_ + static_cast<unsigned>(base_[page * kPageBytes]); }
  void write(std::uint64_t page) {
    *static_cast<volatile std::byte*>(base_ + page * kPageBytes) = std::byte{7};
    written_.set(page);
  }
  [[nodiscard]] std::byte* base() const { return base_; }
  [[nodiscard]] std::span<const std::byte> pages(std::uint64_t first, std::uint64_t count) const {
    return {base_ + first * kPageBytes, count * kPageBytes};
  }
  [[nodiscard]] const Bitmap& written() const { return written_; }

 private:
  std::uint64_t pages_;
  testing::TempDir directory_;
  UniqueFd file_;
  std::byte* base_ = nullptr;
  Bitmap written_{pages_};
  volatile unsigned sum_ = 0;
};

/// All of the mapping; skips nothing: where this kernel lacks PAGEMAP_SCAN the caller has skipped.
Bitmap found(By by, const Mapping& mapping, std::uint64_t pages) {
  Bitmap out(pages);
  const auto finder = PrivatePages::open(by);
  EXPECT_TRUE(finder.ok());
  const Status status = finder->find(mapping.pages(0, pages), 0, out);
  EXPECT_TRUE(status.ok()) << status.error().message();
  return out;
}

bool same(const Bitmap& a, const Bitmap& b) {
  return std::ranges::equal(a.words(), b.words());
}

class PrivatePagesBy : public ::testing::TestWithParam<By> {
 protected:
  void SetUp() override {
    const auto finder = PrivatePages::open(GetParam());
    if (!finder && finder.error().code() == Errc::kUnimplemented) GTEST_SKIP() << finder.error().message();
    ASSERT_TRUE(finder.ok()) << finder.error().message();
    EXPECT_EQ(finder->by(), GetParam());
  }
};

TEST_P(PrivatePagesBy, OfAFileOnDiskAndOfAMemfdAreExactlyThoseWritten) {
  for (const Kind kind : {Kind::kDiskFile, Kind::kMemfd}) {
    constexpr std::uint64_t kPages = 512;
    Mapping mapping(kind, kPages);
    for (std::uint64_t page = 0; page < 300; ++page) mapping.read(page);  // mapped, not copied; and its neighbours
    for (const std::uint64_t page : {0, 1, 63, 64, 299, 300, 400, 511}) mapping.write(page);
    EXPECT_TRUE(same(found(GetParam(), mapping, kPages), mapping.written()));
  }
}

TEST_P(PrivatePagesBy, OfAnonymousMemoryAreThoseWritten) {
  constexpr std::uint64_t kPages = 512;
  Mapping mapping(Kind::kAnonymous, kPages);
  for (std::uint64_t page = 0; page < 100; ++page) mapping.write(page * 5);
  EXPECT_TRUE(same(found(GetParam(), mapping, kPages), mapping.written()));
}

TEST_P(PrivatePagesBy, AWrittenPageOfAHugeOneIsFoundWithItsNeighboursAtMost) {
  constexpr std::uint64_t kHugePages = 2 * kMiB / kPageBytes;
  Mapping mapping(Kind::kAnonymous, 3 * kHugePages);
  (void)::madvise(mapping.base(), 3 * kHugePages * kPageBytes, MADV_HUGEPAGE);
  const std::uint64_t misfit = reinterpret_cast<std::uintptr_t>(mapping.base()) % (2 * kMiB) / kPageBytes;
  const std::uint64_t huge = (kHugePages - misfit) % kHugePages;  // first page of a whole huge page
  mapping.write(huge + 17);
  const Bitmap pages = found(GetParam(), mapping, 3 * kHugePages);
  EXPECT_TRUE(pages.test(huge + 17));
  EXPECT_TRUE(pages.count() == 1 || pages.count() == kHugePages) << pages.count();
}

TEST_P(PrivatePagesBy, OfASwappedOutMappingAreStillFound) {
  if (std::string line; !std::getline(std::ifstream("/proc/swaps").ignore(1000, '\n'), line)) {
    GTEST_SKIP() << "this host has no swap space";
  }
  constexpr std::uint64_t kPages = 256;
  Mapping mapping(Kind::kMemfd, kPages);
  for (std::uint64_t page = 0; page < kPages; page += 2) mapping.write(page);
  ASSERT_EQ(::madvise(mapping.base(), kPages * kPageBytes, MADV_PAGEOUT), 0);
  EXPECT_TRUE(same(found(GetParam(), mapping, kPages), mapping.written()));
}

TEST_P(PrivatePagesBy, AddressesAndBitsAreCountedApart) {
  constexpr std::uint64_t kPages = 64;
  Mapping mapping(Kind::kMemfd, kPages);
  for (std::uint64_t page = 0; page < kPages; ++page) mapping.write(page);
  const auto finder = PrivatePages::open(GetParam());
  Bitmap out(1000);
  out.set(3);
  ASSERT_TRUE(finder->find(mapping.pages(5, 10), 990, out).ok());
  EXPECT_EQ(out.count(), 11U);
  EXPECT_TRUE(out.test(3) && out.test(990) && out.test(999));
  EXPECT_TRUE(finder->find(mapping.pages(5, 0), 1000, out).ok());
  EXPECT_EQ(out.count(), 11U);
}

// Overlays of a template's deltas are mappings of their own, side by side.
TEST_P(PrivatePagesBy, AreFoundAcrossTheMappingsOfATemplateAndItsDeltas) {
  constexpr std::uint64_t kPages = 96;
  Mapping mapping(Kind::kDiskFile, kPages);
  const testing::TempDir directory(FVMM_BIN_DIR);
  const UniqueFd delta = filled_file(Kind::kDiskFile, 32, directory.path());
  ASSERT_NE(::mmap(mapping.base() + 32 * kPageBytes, 32 * kPageBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, delta.get(), 0),
            MAP_FAILED);
  for (const std::uint64_t page : {31, 32, 63, 64, 95}) mapping.write(page);
  for (const std::uint64_t page : {30, 33, 62, 65}) mapping.read(page);
  EXPECT_TRUE(same(found(GetParam(), mapping, kPages), mapping.written()));
}

TEST_P(PrivatePagesBy, ReservedAddressesHaveNone) {
  constexpr std::uint64_t kPages = 1024;
  Mapping mapping(Kind::kAnonymous, kPages);
  ASSERT_EQ(::mprotect(mapping.base(), kPages * kPageBytes, PROT_NONE), 0);
  EXPECT_FALSE(found(GetParam(), mapping, kPages).any());
}

// As many runs as one PAGEMAP_SCAN takes and one more (1,024), as many pages as one read takes and one more (8,192).
TEST_P(PrivatePagesBy, NothingIsLostWhereOneCallEnds) {
  for (const std::uint64_t pages : {2047U, 2048U, 2049U, 8191U, 8192U, 8193U}) {
    Mapping mapping(Kind::kAnonymous, pages);
    for (std::uint64_t page = 0; page < pages; page += 2) mapping.write(page);
    EXPECT_TRUE(same(found(GetParam(), mapping, pages), mapping.written())) << pages;
  }
}

TEST_P(PrivatePagesBy, AnAddressThatIsNoMemoryOfOursIsAnError) {
  const auto finder = PrivatePages::open(GetParam());
  Bitmap out(1);
  const auto* const kernel = reinterpret_cast<const std::byte*>(0xFFFF'8880'0000'0000ULL);
  const Status status = finder->find({kernel, kPageBytes}, 0, out);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kIo);
  EXPECT_FALSE(out.any());
}

INSTANTIATE_TEST_SUITE_P(Both, PrivatePagesBy, ::testing::Values(By::kScan, By::kPagemap),
                         [](const auto& which) { return which.param == By::kScan ? "Scan" : "Pagemap"; });

bool kernel_scans() {
  return PrivatePages::open(By::kScan).ok();
}

TEST(PrivatePages, BothWaysFindTheSameOnATemplateMapping) {
  if (!kernel_scans()) GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  constexpr std::uint64_t kPages = 4096;
  for (const Kind kind : {Kind::kDiskFile, Kind::kMemfd}) {
    Mapping mapping(kind, kPages);
    std::mt19937_64 random(4);
    for (int i = 0; i < 3000; ++i)
      random() % 2 == 0 ? mapping.write(random() % kPages) : mapping.read(random() % kPages);
    const Bitmap scanned = found(By::kScan, mapping, kPages);
    EXPECT_TRUE(same(scanned, found(By::kPagemap, mapping, kPages)));
    EXPECT_TRUE(same(scanned, mapping.written()));
  }
}

// The zero page: PAGEMAP_SCAN leaves it out, /proc/self/pagemap cannot, and takes it for a private one.
TEST(PrivatePages, AnonymousMemoryThatWasOnlyReadIsNotScanned) {
  if (!kernel_scans()) GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  constexpr std::uint64_t kPages = 64;
  Mapping mapping(Kind::kAnonymous, kPages);
  for (std::uint64_t page = 0; page < kPages; page += 2) mapping.read(page);
  mapping.write(9);
  EXPECT_TRUE(same(found(By::kScan, mapping, kPages), mapping.written()));
  const Bitmap by_pagemap = found(By::kPagemap, mapping, kPages);
  EXPECT_TRUE(by_pagemap.test(9));
  EXPECT_FALSE(by_pagemap.test(11)) << "nobody has touched it";
}

/// From here on this process has a kernel without PAGEMAP_SCAN.
bool forbid_pagemap_scan() {
  constexpr unsigned kPagemapScan = 0xC0606610;
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kPagemapScan, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{.len = sizeof filter / sizeof filter[0], .filter = filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(PrivatePages, AKernelWithoutPagemapScanIsReadPageByPage) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!forbid_pagemap_scan()) ::_exit(10);
    const auto refused = PrivatePages::open(By::kScan);
    if (refused.ok() || refused.error().code() != Errc::kUnimplemented) ::_exit(11);
    const auto best = PrivatePages::open();
    if (!best.ok() || best->by() != By::kPagemap) ::_exit(12);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 10) GTEST_SKIP() << "seccomp filters are not allowed here";
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace fvmm::memory
