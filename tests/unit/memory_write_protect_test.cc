#include "memory/write_protect.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <atomic>
#include <list>
#include <random>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "support/crash.h"
#include "support/stored_template.h"
#include "support/userfault.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kRam = 16 * kMiB;
constexpr std::uint64_t kPages = kRam / kPageBytes;

/// A thread that writes one byte and says when it could.
class Writer {
 public:
  template <class Write>
  explicit Writer(Write write)
      : thread_([this, write] {
          write();
          done_ = true;
        }) {}
  ~Writer() { thread_.join(); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  Writer(Writer&&) = delete;
  Writer& operator=(Writer&&) = delete;
  [[nodiscard]] bool done() const { return done_; }
  [[nodiscard]] bool done_soon() const {
    const Deadline deadline = Deadline::after(std::chrono::seconds(10));
    while (!done_ && !deadline.passed()) std::this_thread::yield();
    return done_;
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

class WriteProtectTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_USERFAULT();
    ASSERT_TRUE(ram->map_zero().ok());
  }
  std::byte* byte_of(PageIndex page) { return ram->host_base() + page * kPageBytes + 123; }
  /// The page that a writer waits for.
  static PageIndex wait_for_writer(const WriteProtect& protect) {
    pollfd event{protect.fd(), POLLIN, 0};
    PageIndex page = ~PageIndex{0};
    for (int attempt = 0; attempt < 100; ++attempt) {
      if (::poll(&event, 1, 10'000) != 1) break;
      const auto count = protect.waiting(std::span(&page, 1));
      if (count && *count == 1) return page;
    }
    ADD_FAILURE() << "nobody waits";
    return page;
  }
  std::unique_ptr<GuestMemory> ram = std::move(*GuestMemory::reserve(kRam));
};

TEST_F(WriteProtectTest, AWriterWaitsUntilThePageIsReleasedReadersDoNot) {
  for (const bool unpopulated : {true, false}) {  // 5 was never touched
    const auto protect = *WriteProtect::create(*ram, {.unpopulated = unpopulated});
    *byte_of(3) = std::byte{1};
    for (const PageIndex page : {3U, 5U}) {
      ASSERT_TRUE(protect->protect({page, 1}).ok());
      const std::byte before = *byte_of(page);
      const Writer writer([&] { *byte_of(page) = std::byte{7}; });
      EXPECT_EQ(wait_for_writer(*protect), page);
      EXPECT_EQ(*byte_of(page), before);
      EXPECT_FALSE(writer.done());
      ASSERT_TRUE(protect->release({page, 1}).ok());
      EXPECT_TRUE(writer.done_soon());
      EXPECT_EQ(*byte_of(page), std::byte{7});
    }
    *byte_of(4) = std::byte{1};  // its neighbour never was
  }
}

TEST_F(WriteProtectTest, DevicesAndTheKernelOnTheirBehalfWaitToo) {
  const auto protect = *WriteProtect::create(*ram);
  ASSERT_TRUE(protect->protect({8, 2}).ok());
  const UniqueFd zero = *open_file("/dev/zero", O_RDONLY);
  const std::byte one{1};
  {
    const Writer device([&] { EXPECT_TRUE(ram->write(8 * kPageBytes, std::span(&one, 1)).ok()); });
    EXPECT_EQ(wait_for_writer(*protect), 8U);
    ASSERT_TRUE(protect->release({8, 1}).ok());
    EXPECT_TRUE(device.done_soon());
  }
  {
    const Writer kernel([&] { EXPECT_EQ(::read(zero.get(), ram->host_base() + 9 * kPageBytes, 100), 100); });
    EXPECT_EQ(wait_for_writer(*protect), 9U);
    ASSERT_TRUE(protect->release({9, 1}).ok());
    EXPECT_TRUE(kernel.done_soon());
  }
}

TEST_F(WriteProtectTest, AbandonedItHoldsNobodyBack) {
  const auto protect = *WriteProtect::create(*ram);
  ASSERT_TRUE(protect->protect({8, 2}).ok());
  const Writer writer([&] { *byte_of(8) = std::byte{7}; });
  EXPECT_EQ(wait_for_writer(*protect), 8U);
  protect->abandon();
  EXPECT_TRUE(writer.done_soon());
  *byte_of(9) = std::byte{1};
  EXPECT_FALSE(protect->protect({8, 1}).ok());
}

TEST_F(WriteProtectTest, AFileOnDiskIsRefusedAndResidentMemoryIsNot) {
  const testing::TempDir dir(FVMM_BIN_DIR);  // /tmp may be a tmpfs
  const UniqueFd disk = *open_file(dir.path() / "memory", O_RDWR | O_CREAT);
  const UniqueFd resident(::memfd_create("template", MFD_CLOEXEC));
  for (const int file : {disk.get(), resident.get()}) ASSERT_EQ(::ftruncate(file, static_cast<off_t>(kRam)), 0);
  ASSERT_TRUE(ram->map_private(resident.get()).ok());
  {
    const auto protect = *WriteProtect::create(*ram);
    ASSERT_TRUE(protect->protect({0, kPages}).ok());
    const Writer writer([&] { *byte_of(8) = std::byte{7}; });
    EXPECT_EQ(wait_for_writer(*protect), 8U);
    ASSERT_TRUE(protect->release({0, kPages}).ok());
  }
  ASSERT_TRUE(ram->map_private(disk.get()).ok());
  const auto refused = WriteProtect::create(*ram);
  if (refused.ok()) GTEST_SKIP() << "the build directory is no file system on disk";
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition) << refused.error().message();
}

TEST_F(WriteProtectTest, WithoutPermissionItSaysWhatToChange) {
  const int status = testing::status_of_child([&] {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const auto made = WriteProtect::create(*ram);
    if (made.ok()) ::_exit(2);  // the host permits it to everybody
    const std::string message = made.error().message();
    const bool says = message.find("/dev/userfaultfd") != std::string::npos &&
                      message.find("vm.unprivileged_userfaultfd") != std::string::npos;
    ::_exit(made.error().code() == Errc::kPermissionDenied && says ? 0 : 1);
  });
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "not root, or everybody may";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(WriteProtectTest, ADeviceOfTheDaemonsServes) {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device) GTEST_SKIP() << "no /dev/userfaultfd";
  EXPECT_TRUE(WriteProtect::create(*ram, {.device = device.get()}).ok());
}

/// What a capture gave, and how often.
struct Image {
  std::vector<std::byte> bytes = std::vector<std::byte>(kRam);
  std::vector<int> times = std::vector<int>(kPages);
  InstantCopy::Put put = [this](PageRange range, const std::byte* from) {
    std::memcpy(bytes.data() + range.first * kPageBytes, from, range.count * kPageBytes);
    for (PageIndex page = range.first; page < range.first + range.count; ++page) ++times[page];
    return Status();
  };
};

class InstantCopyTest : public WriteProtectTest {
 protected:
  static Bitmap all() {
    Bitmap pages(kPages);
    pages.set_all();
    return pages;
  }
  std::vector<std::byte> now() {
    const auto bytes = ram->pages({0, kPages});
    return {bytes.begin(), bytes.end()};
  }
  static void drain(InstantCopy& copy, const InstantCopy::Put& put) {
    for (;;) {
      const auto more = copy.next(put);
      ASSERT_TRUE(more.ok()) << more.error().message();
      if (!*more) return;
    }
  }
};

/// Guests' and devices' threads that write and discard at random and can be held, as a pause holds them.
class Load {
 public:
  Load(GuestMemory& ram, unsigned threads) {
    for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this, &ram, i] { run(ram, i); });
  }
  ~Load() {
    leave_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  Load(Load&&) = delete;
  Load& operator=(Load&&) = delete;
  void hold() {
    held_ = true;
    while (writing_ != 0) std::this_thread::yield();
  }
  void go_on() { held_ = false; }
  [[nodiscard]] std::uint64_t writes() const { return writes_; }

 private:
  void run(GuestMemory& ram, unsigned seed) {
    std::mt19937_64 random(seed);
    while (!leave_) {
      ++writing_;
      if (!held_) {
        const std::uint64_t word = random();
        const std::uint64_t at = word % (kRam - 8) / 8 * 8;
        if (seed == 1 && word % 16 == 0) {  // a device's
          const std::uint64_t pages = std::min<std::uint64_t>(1 + word / 16 % 8, (kRam - at) / kPageBytes);
          EXPECT_TRUE(pages == 0 || ram.discard(at / kPageBytes * kPageBytes, pages * kPageBytes).ok());
        } else if (seed % 2 == 0) {
          std::memcpy(ram.host_base() + at, &word, 8);
        } else {
          EXPECT_TRUE(ram.write(at, std::as_bytes(std::span(&word, 1))).ok());
        }
        ++writes_;
      }
      --writing_;
      if (held_) std::this_thread::yield();
    }
  }
  std::atomic<bool> leave_{false};
  std::atomic<bool> held_{false};
  std::atomic<int> writing_{0};
  std::atomic<std::uint64_t> writes_{0};
  std::vector<std::thread> threads_;
};

/// What is mapped, and what the kernel can do.
struct Kind {
  bool resident;     // a template in a memfd; else anonymous
  bool huge;         // pages
  bool unpopulated;  // the kernel protects what was never touched
};
class InstantCopyOfTest : public InstantCopyTest, public ::testing::WithParamInterface<Kind> {};

TEST_P(InstantCopyOfTest, EveryPageIsAsItWasAtTheInstantWhoeverWritesMeanwhile) {
  const UniqueFd resident(::memfd_create("template", MFD_CLOEXEC));
  if (GetParam().resident) {
    std::vector<std::byte> content(kRam, std::byte{5});
    std::fill_n(content.begin(), kRam / 4, std::byte{0});
    ASSERT_TRUE(write_all(resident.get(), content, 0).ok());
    ASSERT_TRUE(ram->map_private(resident.get()).ok());
  }
  ASSERT_EQ(::madvise(ram->host_base(), kRam, GetParam().huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE), 0);
  auto protect = *WriteProtect::create(*ram, {.unpopulated = GetParam().unpopulated});
  const auto copy = *InstantCopy::create(std::move(protect), 16);
  std::uint64_t faults = 0;
  Load load(*ram, 3);
  for (int generation = 0; generation < 16; ++generation) {
    Image image;
    ASSERT_TRUE(copy->begin().ok());
    if (generation % 2 == 0) {
      ASSERT_TRUE(copy->arm(all()).ok());  // writes before the instant take pages out again
    }
    load.hold();
    const std::vector<std::byte> instant = now();
    copy->freeze();
    ASSERT_TRUE(copy->arm(all()).ok());
    EXPECT_EQ(copy->unarmed(all()), 0U);
    load.go_on();
    drain(*copy, image.put);
    EXPECT_TRUE(image.bytes == instant) << generation;
    EXPECT_EQ(std::ranges::count(image.times, 1), static_cast<std::ptrdiff_t>(kPages)) << "each page once";
    faults += copy->faults();
    copy->end();
  }
  const std::uint64_t writes = load.writes();
  const Deadline deadline = Deadline::after(std::chrono::seconds(10));
  while (load.writes() < writes + 1000 && !deadline.passed()) std::this_thread::yield();
  EXPECT_GE(load.writes(), writes + 1000) << "nobody is held back";
  EXPECT_GT(faults, 0U);
}

INSTANTIATE_TEST_SUITE_P(Kinds, InstantCopyOfTest,
                         ::testing::Values(Kind{false, true, true}, Kind{false, false, true}, Kind{false, true, false},
                                           Kind{true, false, true}, Kind{true, false, false}),
                         [](const auto& one) {
                           return std::string(one.param.resident ? "Memfd" : "Anonymous") +
                                  (one.param.huge ? "Huge" : "") + (one.param.unpopulated ? "" : "OldKernel");
                         });

TEST_F(InstantCopyTest, OnlyTheChosenPagesAreCaptured) {
  const auto copy = testing::instant_copy_of(*ram);
  Bitmap some(kPages);
  some.set_range({700, 900});
  some.set(kPages - 1);
  Image image;
  ASSERT_TRUE(copy->begin().ok());
  copy->freeze();
  ASSERT_TRUE(copy->arm(some).ok());
  *byte_of(0) = std::byte{1};  // waits for nobody
  EXPECT_EQ(copy->faults(), 0U);
  drain(*copy, image.put);
  for (PageIndex page = 0; page < kPages; ++page) EXPECT_EQ(image.times[page], some.test(page) ? 1 : 0) << page;
}

TEST_F(InstantCopyTest, WithTheReceiverAndTheStagingFullWritersWaitAndNothingIsLost) {
  constexpr std::uint64_t kStaged = 2;
  const auto copy = testing::instant_copy_of(*ram, kStaged);
  const std::vector<std::byte> instant = now();
  Image image;
  ASSERT_TRUE(copy->begin().ok());
  copy->freeze();
  ASSERT_TRUE(copy->arm(all()).ok());
  std::list<Writer> writers;
  bool full = false;
  const auto slow = [&](PageRange range, const std::byte* bytes) -> Status {
    if (!full) {
      for (PageIndex page = kPages - 6; page < kPages; ++page)
        writers.emplace_back([&, page] { *byte_of(page) = std::byte{9}; });
      const Deadline deadline = Deadline::after(std::chrono::seconds(10));
      while (copy->faults() < kStaged + 1 && !deadline.passed()) std::this_thread::yield();
      EXPECT_EQ(copy->faults(), kStaged + 1);
      full = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_LE(std::ranges::count_if(writers, [](const Writer& one) { return one.done(); }), 2);
    }
    return image.put(range, bytes);
  };
  drain(*copy, slow);
  EXPECT_TRUE(image.bytes == instant);
  EXPECT_EQ(std::ranges::count(image.times, 1), static_cast<std::ptrdiff_t>(kPages));
  for (const Writer& writer : writers) EXPECT_TRUE(writer.done_soon());
}

TEST_F(InstantCopyTest, AfterAnErrorNobodyWaitsAndItCanBeginAgain) {
  const auto copy = testing::instant_copy_of(*ram, 1);
  for (int attempt = 0; attempt < 3; ++attempt) {
    ASSERT_TRUE(copy->begin().ok());
    copy->freeze();
    ASSERT_TRUE(copy->arm(all()).ok());
    std::list<Writer> writers;
    const auto broken = [&](PageRange, const std::byte*) -> Status {
      for (PageIndex page = kPages - 4; page < kPages; ++page)
        writers.emplace_back([&, page] { *byte_of(page) = std::byte{9}; });
      const Deadline deadline = Deadline::after(std::chrono::seconds(10));
      while (copy->faults() < 2 && !deadline.passed()) std::this_thread::yield();
      return Error(Errc::kUnavailable, "the link is gone");
    };
    EXPECT_EQ(copy->next(broken).error().code(), Errc::kUnavailable);
    copy->end();
    for (const Writer& writer : writers) EXPECT_TRUE(writer.done_soon());
    *byte_of(kPages / 2) = std::byte{1};
  }
  Image image;
  ASSERT_TRUE(copy->begin().ok());
  const std::vector<std::byte> instant = now();
  copy->freeze();
  ASSERT_TRUE(copy->arm(all()).ok());
  drain(*copy, image.put);
  EXPECT_TRUE(image.bytes == instant) << "nothing of the failed ones is left";
}

TEST_F(InstantCopyTest, ArmingCanBeStopped) {
  const auto copy = testing::instant_copy_of(*ram);
  ASSERT_TRUE(copy->begin().ok());
  int asked = 0;
  EXPECT_EQ(copy->arm(all(), [&] { return ++asked == 3; }).error().code(), Errc::kCancelled);
  copy->end();
  *byte_of(0) = std::byte{1};
}

TEST_F(InstantCopyTest, ItsEndReleasesEverything) {
  {
    const auto copy = testing::instant_copy_of(*ram);
    ASSERT_TRUE(copy->begin().ok());
    copy->freeze();
    ASSERT_TRUE(copy->arm(all()).ok());
  }
  for (PageIndex page = 0; page < kPages; ++page) *byte_of(page) = std::byte{1};
  EXPECT_EQ(InstantCopy::create(*WriteProtect::create(*ram), 0).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(InstantCopy::create(*WriteProtect::create(*ram), kStagedPagesMax + 1).error().code(),
            Errc::kInvalidArgument);
  EXPECT_TRUE(InstantCopy::create(*WriteProtect::create(*ram), kStagedPagesMax).ok());
}

// The kernel takes the protection away under its hands: the capture fails, writers go on, and it says so ever after.
TEST_F(InstantCopyTest, ProtectionThatIsLostFailsTheCapture) {
  auto protect = *WriteProtect::create(*ram);
  const WriteProtect& kernel = *protect;
  const auto copy = *InstantCopy::create(std::move(protect));
  ASSERT_TRUE(copy->begin().ok());
  copy->freeze();
  ASSERT_TRUE(copy->arm(all()).ok());
  kernel.abandon();
  EXPECT_FALSE(copy->next(Image().put).ok());
  copy->end();
  *byte_of(1) = std::byte{1};
  EXPECT_EQ(copy->begin().error().code(), Errc::kFailedPrecondition);
}

}  // namespace
}  // namespace fvmm::memory
