// Tracking `scan` against the truth, against the log, and against the guest, which verifies all of its memory.
#include <algorithm>
#include <cstring>

#include "migration/capture.h"
#include "support/image_sink.h"
#include "support/stored_template.h"
#include "support/vm_migration.h"

namespace fvmm {
namespace {

using memory::Tracking;
using migration::Mode;
using By = memory::PrivatePages::By;

constexpr std::uint64_t kBytes = 64 * kMiB;
constexpr std::uint64_t kPages = kBytes / kPageBytes;

/// Pages of `all` that `some` lacks.
std::uint64_t missing(const memory::Bitmap& all, const memory::Bitmap& some) {
  std::uint64_t count = 0;
  for (const memory::PageRange& range : all.ranges(1)) count += some.test(range.first) ? 0 : 1;
  return count;
}

class TrackingVm : public ::testing::Test {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }

  void start(Tracking tracking, const std::string& options) {
    auto made = test::running_guest("workload.elf", kBytes, options, tracking);
    ASSERT_TRUE(made.ok()) << made.error().message();
    guest_ = std::move(*made);
    test::wait_for_output(vm(), "HB n=2 ");
  }
  /// A template of a guest that has filled its memory, and guest_ a clone of it that runs.
  void start_clone(Tracking tracking, const std::string& options) {
    start(Tracking::kLog, options);
    store_.emplace(memory::TemplateStore::open(directory_.path() / "store").value());
    ASSERT_TRUE(test::put_on_template(*guest_, *store_, "golden").ok());
    auto made = clone(tracking);
    ASSERT_TRUE(made.ok()) << made.error().message();
    guest_ = std::move(*made);
    test::wait_for_next(vm(), "HB ");
  }
  Result<std::unique_ptr<migration::Guest>> clone(Tracking tracking) {
    FVMM_TRY(guest_->machine->pause());
    auto pin = FVMM_TRY(memory::OpenTemplate::open(FVMM_TRY(store_->find("golden")).directory));
    auto vm = FVMM_TRY(test::make_sibling(test::vm_of(*guest_)));
    FVMM_TRY(vm->set_tracking(tracking));
    FVMM_TRY(vm->memory().map_template(pin.image()));
    FVMM_TRY(vm->load_state(FVMM_TRY(pin.machine_state())));
    auto made = test::guest_of(std::move(vm), test::vm_config(kBytes), std::move(pin));
    made->config.set_tracking(std::string(to_string(tracking)));
    FVMM_TRY(made->machine->resume());
    return made;
  }
  vmm::Vm& vm() { return test::vm_of(*guest_); }
  memory::DirtyTracker& dirty() { return guest_->machine->dirty(); }

  /// Pages whose bytes are not the template's.
  memory::Bitmap truth() {
    memory::Bitmap pages(kPages);
    std::array<std::byte, kPageBytes> original{};
    for (memory::PageIndex page = 0; page < kPages; ++page) {
      EXPECT_TRUE(vm().memory().template_page(page, original).ok());
      if (std::memcmp(original.data(), vm().memory().pages({page, 1}).data(), kPageBytes) != 0) pages.set(page);
    }
    return pages;
  }
  memory::Bitmap private_pages(By by) {
    memory::Bitmap pages(kPages);
    const auto finder = memory::PrivatePages::open(by);
    EXPECT_TRUE(finder.ok() && finder->find(vm().memory().pages({0, kPages}), 0, pages).ok());
    return pages;
  }

  testing::TempDir directory_{FVMM_BIN_DIR};  // a file system on disk, as a host's store is
  std::optional<memory::TemplateStore> store_;
  std::unique_ptr<migration::Guest> guest_;
};

TEST_F(TrackingVm, AScanFindsEveryPageThatTheLogOfTheSameVmHas) {
  start_clone(Tracking::kLog, "seed=41 ws=8 rate=20000 beat=20");
  for (int round = 0; round < 4; ++round) {
    test::wait_for_next(vm(), "HB ");
    ASSERT_TRUE(vm().pause().ok());
    ASSERT_TRUE(dirty().harvest().ok());
    const memory::Bitmap& logged = guest_->since_base->pending();
    const memory::Bitmap changed = truth();
    EXPECT_GT(changed.count(), 0U);
    EXPECT_EQ(missing(changed, logged), 0U) << "the log itself";
    for (const By by : {By::kScan, By::kPagemap}) {
      if (!memory::PrivatePages::open(by).ok()) continue;  // an older kernel: the other one counts
      const memory::Bitmap found = private_pages(by);
      EXPECT_EQ(missing(changed, found), 0U) << "changed pages that no scan found";
      EXPECT_EQ(missing(logged, found), 0U) << "logged pages that no scan found";
      std::printf("%llu changed, %llu logged, %llu found\n", static_cast<unsigned long long>(changed.count()),
                  static_cast<unsigned long long>(logged.count()), static_cast<unsigned long long>(found.count()));
    }
    ASSERT_TRUE(vm().resume().ok());
  }
}

// Again and again the first harvest, which is where a page could fall between the log and the scan.
TEST_F(TrackingVm, NoPageIsLostBetweenTheLogAndTheScanUnderAGuestThatWrites) {
  start_clone(Tracking::kScan, "seed=42 ws=16 rate=200000 beat=20 verify=0");
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    if (round != 0) {
      auto made = clone(Tracking::kScan);
      ASSERT_TRUE(made.ok()) << made.error().message();
      guest_ = std::move(*made);
      test::wait_for_next(vm(), "HB ");
    }
    EXPECT_FALSE(dirty().ready());
    ASSERT_TRUE(dirty().harvest().ok());  // while it runs
    EXPECT_TRUE(dirty().ready());
    const std::uint64_t found = guest_->since_base->pending().count();
    test::wait_for_next(vm(), "HB ");
    ASSERT_TRUE(vm().pause().ok());
    ASSERT_TRUE(dirty().harvest().ok());
    const memory::Bitmap changed = truth();
    EXPECT_EQ(missing(changed, guest_->since_base->pending()), 0U);
    EXPECT_GT(found, 0U);
    EXPECT_LT(guest_->since_base->pending().count(), kPages / 2) << "only what it wrote, not what it read";
  }
}

TEST_F(TrackingVm, AScanningGuestArrivesWholeByEachMode) {
  start_clone(Tracking::kScan, "seed=43 ws=4 rate=5000 beat=20");
  for (const Mode mode : {Mode::kSuspend, Mode::kLive, Mode::kSuspend, Mode::kLive}) {
    EXPECT_FALSE(dirty().ready()) << "nothing is logged where it arrived";
    const auto result = test::migrate_by_pipe(guest_, mode, &*store_);
    ASSERT_EQ(result.result(), "completed") << result.error();
    EXPECT_LT(result.pages_sent(), 2 * kPages) << "what differs, in some rounds";
    EXPECT_EQ(test::verified(vm()), "") << to_string(mode);
    EXPECT_EQ(vm().tracked().tracking(), Tracking::kScan);
  }
  const auto result = test::migrate_by_pipe(guest_, Mode::kPrecopy);
  ASSERT_EQ(result.result(), "completed") << result.error();
  EXPECT_EQ(test::verified(vm()), "");
}

TEST_F(TrackingVm, AMigrationThatFailsLeavesTheGuestWithItsWholeDelta) {
  start_clone(Tracking::kScan, "seed=44 ws=4 rate=5000 beat=20");
  const auto failed = test::migrate_by_pipe(guest_, Mode::kSuspend, &*store_, 1, [](std::string_view step) {
    return step == "state" ? Status(Error(Errc::kUnavailable, "the link is gone")) : Status();
  });
  ASSERT_EQ(failed.result(), "aborted");
  EXPECT_TRUE(dirty().ready()) << "the log stays on";
  const auto again = test::migrate_by_pipe(guest_, Mode::kLive, &*store_);
  ASSERT_EQ(again.result(), "completed") << again.error();
  EXPECT_EQ(test::verified(vm()), "");
}

// Anonymous memory, with huge pages where the host has them: over-reported, and whole.
TEST_F(TrackingVm, ATemplateOfAScanningGuestOnTheZeroTemplateRuns) {
  start(Tracking::kScan, "seed=45 ws=8 rate=20000 beat=20");
  ASSERT_TRUE(migration::find_delta(*guest_->machine).ok());
  testing::ImageSink image(kPages);
  auto since = dirty().add_reader();
  since->put_back(guest_->since_base->pending());
  auto taken = migration::chase(*guest_->machine, *since, image);
  for (int i = 0; i < 20 && !taken && taken.error().code() == Errc::kResourceExhausted;
       ++i) {  // too fast for this host
    taken = migration::chase(*guest_->machine, *since, image);
  }
  ASSERT_TRUE(taken.ok()) << taken.error().message();
  EXPECT_EQ(test::verified(vm()), "") << "the guest itself";
  ASSERT_TRUE(vm().pause().ok());
  auto copy = test::make_sibling(vm());
  ASSERT_TRUE(copy.ok());
  ASSERT_TRUE((*copy)->memory().map_zero().ok());
  std::ranges::copy(image.bytes, (*copy)->memory().pages_for_load({0, kPages}).begin());
  ASSERT_TRUE((*copy)->load_state(taken->state).ok());
  ASSERT_TRUE((*copy)->resume().ok());
  EXPECT_EQ(test::verified(**copy), "");
}

TEST_F(TrackingVm, TheTouchingGuestTouchesWhatItIsToldTo) {
  auto made = test::boot_vm("touch.elf", kBytes, "");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& touch = **made;
  ASSERT_TRUE(touch.resume().ok());
  test::wait_for_output(touch, " ns_page=");  // of "TOUCH ready"
  const auto since = touch.dirty().add_reader();
  for (const auto& [letter, word] : {std::pair{"r", "READ"}, {"w", "WROTE"}, {"c", "COLD"}}) {
    ASSERT_TRUE(touch.dirty().harvest().ok());
    since->reset();
    const std::size_t from = touch.serial_output()->recent().size();
    test::type(touch, letter);
    std::string said = test::wait_for_output(touch, "ns_page=", from);  // the last of its line's fields
    said.erase(0, said.find(word, from));
    std::uint64_t pages = 0;
    ASSERT_EQ(std::sscanf(said.c_str(), "%*s pages=%lu us=", &pages), 1) << said;
    EXPECT_GT(pages, kPages / 3) << "half of what is free";
    ASSERT_TRUE(touch.dirty().harvest().ok());
    const std::uint64_t written = since->pending().count();
    if (letter == std::string("r")) {
      EXPECT_LT(written, 64U) << "its stack and its data";
    } else {
      EXPECT_GE(written, pages);
      EXPECT_LT(written, pages + 64);
    }
  }
}

}  // namespace
}  // namespace fvmm
