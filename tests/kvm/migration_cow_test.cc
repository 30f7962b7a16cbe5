// Generations of a real guest under load. Each is compared with memory at its instant; some are run, and the guest says
// itself whether its memory and its registers are of one moment.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>

#include "migration/cow.h"
#include "support/image_sink.h"
#include "support/stored_template.h"
#include "support/userfault.h"
#include "support/vm_migration.h"
#include "support/witness.h"

namespace fvmm {
namespace {

double us_since(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count();
}

class CowVm : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    FVMM_NEEDS_USERFAULT();
  }
  void start(std::uint64_t bytes, const std::string& options) {
    auto made = test::running_guest("workload.elf", bytes, options);
    ASSERT_TRUE(made.ok()) << made.error().message();
    guest_ = std::move(*made);
    test::wait_for_output(test::vm_of(*guest_), "HB n=2 ");
    copy_ = testing::instant_copy_of(machine().memory());
  }
  migration::Machine& machine() { return *guest_->machine; }
  memory::DirtyTracker::Reader& since() { return *guest_->since_base; }

  /// A VM from an image and a state; what it says after two sweeps.
  std::string run(const testing::ImageSink& image, const v1::MachineState& state) {
    auto made = test::make_sibling(test::vm_of(*guest_));
    if (!made) return made.error().message();
    vmm::Vm& clone = **made;
    Status status = clone.memory().map_zero();
    if (status) std::ranges::copy(image.bytes, clone.memory().pages_for_load({0, image.times.size()}).begin());
    if (status) status = clone.load_state(state);
    if (status) status = clone.resume();
    return status ? test::verified(clone) : status.error().message();
  }

  /// What arming scattered pages costs, under the running guest, and what letting them go.
  void print_arming(bool huge, std::uint64_t pages) {
    memory::Bitmap scattered(machine().memory().layout().pages());
    for (std::uint64_t i = 0; i < pages; ++i) scattered.set(i * (scattered.pages() / pages));
    ASSERT_TRUE(copy_->begin().ok());
    const auto began = std::chrono::steady_clock::now();
    ASSERT_TRUE(copy_->arm(scattered).ok());
    const double armed = us_since(began);
    const auto armed_at = std::chrono::steady_clock::now();
    copy_->end();
    std::printf("1 GiB %s: arming %5llu scattered pages %.0f us, %.2f a page; letting them go %.0f us\n",
                huge ? "THP" : "4K ", static_cast<unsigned long long>(pages), armed, armed / static_cast<double>(pages),
                us_since(armed_at));
  }

  /// What a writer waits, with nothing else to do for anybody; and what it costs to have and to drop the protection.
  void print_writes(bool huge) {
    constexpr std::uint64_t kWrites = 1000;
    memory::GuestMemory& ram = machine().memory();
    memory::Bitmap pages(ram.layout().pages());
    for (std::uint64_t i = 0; i < kWrites; ++i) pages.set(i * 200);
    ASSERT_TRUE(machine().pause().ok());
    ASSERT_TRUE(copy_->begin().ok());
    copy_->freeze();
    ASSERT_TRUE(copy_->arm(pages).ok());
    const auto began = std::chrono::steady_clock::now();
    for (std::uint64_t i = 0; i < kWrites; ++i) {
      volatile std::byte* const at = ram.pages_for_load({i * 200, 1}).data();
      *at = *at;
    }
    const double written = us_since(began);
    EXPECT_EQ(copy_->faults(), kWrites);
    copy_->end();
    const auto before_drop = std::chrono::steady_clock::now();
    copy_ = nullptr;
    const double dropped = us_since(before_drop);
    const auto before_make = std::chrono::steady_clock::now();
    copy_ = testing::instant_copy_of(ram);
    std::printf("1 GiB %s: a write waits %.1f us; to register %.0f us, to unregister %.0f us\n", huge ? "THP" : "4K ",
                written / kWrites, us_since(before_make), dropped);
    ASSERT_TRUE(machine().resume().ok());
  }

  std::unique_ptr<migration::Guest> guest_;
  std::unique_ptr<memory::InstantCopy> copy_;  // dies before the guest's memory
};

// By both engines in turn. To chase the guest may be too fast now and then: that is no generation, and the next attempt
// begins with what it left.
TEST_F(CowVm, HundredsOfGenerationsUnderLoadAreEachOneInstant) {
  constexpr std::uint64_t kBytes = 32 * kMiB;
  constexpr int kOfEach = 150;
  constexpr int kAttemptsMax = 3 * kOfEach;
  constexpr int kRunEvery = 25;
  start(kBytes, "seed=5 ws=8 rate=20000 beat=20");
  testing::Witness witness(machine());
  testing::ImageSink image(kBytes / kPageBytes);
  const memory::Bitmap none(kBytes / kPageBytes);
  std::uint64_t faults = 0;
  int cows = 0;
  int chases = 0;
  for (int attempt = 0; attempt < kAttemptsMax && std::min(cows, chases) < kOfEach; ++attempt) {
    const bool by_cow = cows <= chases;
    SCOPED_TRACE(std::to_string(cows) + " by cow, " + std::to_string(chases) + " by chase so far");
    const auto taken =
        by_cow ? migration::cow(witness, since(), image, *copy_) : migration::chase(witness, since(), image);
    if (!by_cow && !taken && taken.error().code() == Errc::kResourceExhausted) {
      (void)image.came_once(none);
      continue;
    }
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    ASSERT_EQ(image.digest(), witness.instant) << (by_cow ? "cow" : "chase");
    ASSERT_FALSE(machine().paused());
    const bool once = image.came_once(taken->pages);
    ASSERT_TRUE(once || !by_cow) << "a page may come again only by chase";
    faults += taken->faults;
    const int so_far = by_cow ? ++cows : ++chases;
    if (so_far % kRunEvery != 0) continue;
    ASSERT_TRUE(machine().pause().ok());  // leaves the CPU to the clone
    EXPECT_EQ(run(image, taken->state), "") << (by_cow ? "cow" : "chase");
    ASSERT_TRUE(machine().resume().ok());
  }
  EXPECT_GE(cows, kOfEach);
  EXPECT_GE(chases, kOfEach) << "of " << kAttemptsMax << " attempts";
  EXPECT_GT(faults, 0U) << "the guest wrote pages that were not captured yet";
  EXPECT_EQ(test::verified(test::vm_of(*guest_)), "") << "the guest itself";
}

// A receiver that is slower than the guest writes: vCPUs wait for it, and go on.
TEST_F(CowVm, ASlowReceiverHoldsTheGuestBackAndNothingIsLost) {
  constexpr std::uint64_t kBytes = 32 * kMiB;
  start(kBytes, "seed=6 ws=16 rate=50000 beat=20");
  copy_ = nullptr;
  copy_ = testing::instant_copy_of(machine().memory(), 4);
  testing::Witness witness(machine());
  testing::ImageSink image(kBytes / kPageBytes);
  image.on_put = [](memory::PageRange range) {
    std::this_thread::sleep_for(std::chrono::microseconds(range.count * 200));
    return Status();
  };
  for (int generation = 0; generation < 4; ++generation) {
    const auto taken = migration::cow(witness, since(), image, *copy_);
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    ASSERT_EQ(image.digest(), witness.instant) << generation;
    if (generation != 3) continue;
    ASSERT_TRUE(machine().pause().ok());
    EXPECT_EQ(run(image, taken->state), "");
    ASSERT_TRUE(machine().resume().ok());
  }
  EXPECT_EQ(test::verified(test::vm_of(*guest_)), "");
}

TEST_F(CowVm, AReceiverThatFailsLeavesTheGuestAsItWas) {
  constexpr std::uint64_t kBytes = 32 * kMiB;
  start(kBytes, "seed=7 ws=8 rate=20000 beat=20");
  testing::ImageSink image(kBytes / kPageBytes);
  for (int attempt = 1; attempt < 60; attempt += 6) {
    int puts = 0;
    image.on_put = [&](memory::PageRange) {
      return ++puts == attempt ? Status(Error(Errc::kUnavailable, "the link is gone")) : Status();
    };
    const auto taken = migration::cow(machine(), since(), image, *copy_);
    EXPECT_EQ(taken.error().code(), Errc::kUnavailable);
    EXPECT_FALSE(machine().paused());
  }
  image.on_put = nullptr;
  const auto taken = migration::cow(machine(), since(), image, *copy_);
  ASSERT_TRUE(taken.ok()) << taken.error().message();
  EXPECT_EQ(test::verified(test::vm_of(*guest_)), "");
  ASSERT_TRUE(machine().pause().ok());
  EXPECT_EQ(run(image, taken->state), "");
}

TEST_F(CowVm, AVmOnAStoredTemplateIsRefusedTyped) {
  start(32 * kMiB, "seed=8 ws=4 rate=1000 beat=20");
  const testing::TempDir dir(FVMM_BIN_DIR);
  auto store = *memory::TemplateStore::open(dir.path());
  ASSERT_TRUE(test::put_on_template(*guest_, store, "golden").ok());
  const auto refused = memory::WriteProtect::create(machine().memory());
  if (refused.ok()) GTEST_SKIP() << "the build directory is no file system on disk";
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition) << refused.error().message();
}

struct Figures {
  std::vector<double> pause_us;
  std::vector<double> armed;
  std::vector<double> faults;
  std::vector<double> pages;
  std::vector<double> whole_ms;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.empty() ? 0 : values[values.size() / 2];
}

/// Prints; asserts nothing about time.
TEST_F(CowVm, FiguresOfOneGiB) {
  constexpr std::uint64_t kBytes = 1 * kGiB;
  for (const bool huge : {true, false}) {
    auto vm = test::boot_vm("workload.elf", kBytes, "seed=9 ws=64 spread=1 rate=10000 beat=100");
    ASSERT_TRUE(vm.ok());
    ASSERT_EQ(::madvise((*vm)->memory().host_base(), kBytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE), 0);
    guest_ = test::guest_of(std::move(*vm), test::vm_config(kBytes));
    ASSERT_TRUE(machine().resume().ok());
    test::wait_for_output(test::vm_of(*guest_), "HB n=2 ");
    copy_ = testing::instant_copy_of(machine().memory());
    testing::ImageSink image(kBytes / kPageBytes);
    ASSERT_TRUE(migration::cow(machine(), since(), image, *copy_).ok());
    for (const std::uint64_t pages : {64U, 1'000U, 10'000U}) print_arming(huge, pages);
    print_writes(huge);
    // Until KVM has its page tables back, which the capture and the arming above took down.
    ASSERT_EQ(test::verified(test::vm_of(*guest_)), "");
    for (const std::uint64_t pages : {100U, 1'000U, 10'000U}) {
      for (const bool by_cow : {true, false}) {
        for (int i = 0; i < 3; ++i) (void)migration::chase(machine(), since(), image);  // what the last ones left
        Figures figures;
        for (int i = 0; i < (pages < 10'000 ? 11 : 4); ++i) {
          while (since().pending().count() < pages) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            ASSERT_TRUE(machine().dirty().harvest().ok());
          }
          const auto began = std::chrono::steady_clock::now();
          const auto taken =
              by_cow ? migration::cow(machine(), since(), image, *copy_) : migration::chase(machine(), since(), image);
          if (!taken) continue;
          figures.whole_ms.push_back(us_since(began) / 1000);
          figures.pause_us.push_back(std::chrono::duration<double, std::micro>(taken->pause).count());
          figures.armed.push_back(static_cast<double>(taken->pause_pages));
          figures.faults.push_back(static_cast<double>(taken->faults));
          figures.pages.push_back(static_cast<double>(taken->pages.count()));
        }
        std::printf(
            "1 GiB %s, %5llu dirty, %-5s: pause us median %.0f max %.0f; pages %.0f, in the pause %.0f, faults %.0f; "
            "whole %.1f ms\n",
            huge ? "THP" : "4K ", static_cast<unsigned long long>(pages), by_cow ? "cow" : "chase",
            median(figures.pause_us), figures.pause_us.empty() ? 0 : std::ranges::max(figures.pause_us),
            median(figures.pages), median(figures.armed), median(figures.faults), median(figures.whole_ms));
      }
    }
    copy_ = nullptr;
    guest_ = nullptr;
  }
}

}  // namespace
}  // namespace fvmm
