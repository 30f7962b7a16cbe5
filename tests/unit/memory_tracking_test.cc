// A log that goes on when the delta is needed: the order of things, and that nothing is lost whatever fails.
#include "memory/tracking.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "proto/config.pb.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kBytes = 16 * kMiB;
constexpr std::uint64_t kPages = kBytes / kPageBytes;

/// KVM's log as it behaves: turned on, it says that everything was written; a harvest clears it.
class FakeLog final : public SwitchedLog {
 public:
  Status enable() override {
    said += "enable ";
    if (enable_fails) return Error(Errc::kIo, "KVM_SET_USER_MEMORY_REGION");
    if (!on) written.set_all();
    on = true;
    return {};
  }
  Status disable() override {
    said += "disable ";
    if (disable_fails) return Error(Errc::kIo, "KVM_SET_USER_MEMORY_REGION");
    on = false;
    written.clear_all();
    return {};
  }
  Status harvest(Bitmap& out) override {
    said += "harvest ";
    EXPECT_TRUE(on) << "KVM_GET_DIRTY_LOG of a slot that is not logged is ENOENT";
    out.merge(written);
    written.clear_all();
    if (after_clear) after_clear();
    if (harvest_fails) return Error(Errc::kIo, "KVM_CLEAR_DIRTY_LOG");
    return {};
  }

  std::string said;
  bool on = true;
  bool enable_fails = false;
  bool disable_fails = false;
  bool harvest_fails = false;
  Bitmap written{kPages};
  std::function<void()> after_clear;
};

class TrackedLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    memory_ = *GuestMemory::reserve(kBytes);
    tracked_.emplace(log_, *memory_);
    tracker_.emplace(kPages, &*tracked_, memory_->device_marks());
    reader_ = tracker_->add_reader();
  }
  void map_file() {
    UniqueFd file(::memfd_create("template", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(file.get(), kBytes), 0);
    ASSERT_TRUE(memory_->map_private(file.get()).ok());
  }
  /// As a guest writes: into memory, and into the log while that is on.
  void guest_writes(PageIndex page) {
    std::memset(memory_->pages_for_load({page, 1}).data(), 9, kPageBytes);
    if (log_.on) log_.written.set(page);
  }
  std::vector<PageIndex> pending() {
    std::vector<PageIndex> pages;
    for (const PageRange& range : reader_->pending().ranges(1)) pages.push_back(range.first);
    return pages;
  }

  FakeLog log_;
  std::unique_ptr<GuestMemory> memory_;
  std::optional<TrackedLog> tracked_;
  std::optional<DirtyTracker> tracker_;
  std::unique_ptr<DirtyTracker::Reader> reader_;  // dies before the tracker
};

using Pages = std::vector<PageIndex>;

TEST_F(TrackedLogTest, UnderLogNothingIsSwitchedAndNothingScanned) {
  ASSERT_TRUE(tracked_->choose(Tracking::kLog).ok());
  map_file();
  guest_writes(5);
  std::memset(memory_->pages_for_load({6, 1}).data(), 9, kPageBytes);  // nobody has logged it
  EXPECT_TRUE(tracker_->ready());
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), Pages{5});
  EXPECT_EQ(log_.said, "harvest ");
  EXPECT_FALSE(tracked_->figures());
  EXPECT_EQ(tracked_->tracking(), Tracking::kLog);
}

TEST_F(TrackedLogTest, UnderScanTheFirstHarvestTurnsTheLogOnDropsItAndFindsTheDelta) {
  ASSERT_TRUE(tracked_->choose(Tracking::kScan).ok());
  EXPECT_EQ(tracked_->tracking(), Tracking::kScan);
  map_file();
  EXPECT_FALSE(log_.on);
  EXPECT_FALSE(tracker_->ready());
  for (const PageIndex page : {PageIndex{0}, PageIndex{70}, kPages - 1}) guest_writes(page);
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), (Pages{0, 70, kPages - 1}));
  EXPECT_EQ(log_.said, "disable enable harvest ");
  EXPECT_TRUE(tracker_->ready());
  ASSERT_TRUE(tracked_->figures());
  EXPECT_EQ(tracked_->figures()->pages, 3U);
}

TEST_F(TrackedLogTest, AfterTheScanTheLogGoesOnAlone) {
  ASSERT_TRUE(tracked_->choose(Tracking::kScan).ok());
  map_file();
  guest_writes(1);
  ASSERT_TRUE(tracker_->harvest().ok());
  reader_->reset();
  guest_writes(2);
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), Pages{2});
  EXPECT_EQ(log_.said, "disable enable harvest harvest ");
}

// Between the CLEAR and the scan, the scan sees it; what the log has of it comes with the next harvest.
TEST_F(TrackedLogTest, APageWrittenJustAfterTheClearIsInTheDelta) {
  ASSERT_TRUE(tracked_->choose(Tracking::kScan).ok());
  map_file();
  log_.after_clear = [this] { guest_writes(44); };
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), Pages{44});
  log_.after_clear = nullptr;
  reader_->reset();
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), Pages{44}) << "it was logged as well: written after the log was cleared";
}

TEST_F(TrackedLogTest, MarksOfDevicesAreKept) {
  ASSERT_TRUE(tracked_->choose(Tracking::kScan).ok());
  map_file();
  memory_->device_marks().set(300);  // by a discard: the page is the template's again, and no scan would find it
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), Pages{300});
}

TEST_F(TrackedLogTest, AHarvestThatFailedIsMadeUpForByTheNext) {
  ASSERT_TRUE(tracked_->choose(Tracking::kScan).ok());
  map_file();
  guest_writes(8);
  log_.enable_fails = true;
  EXPECT_EQ(tracker_->harvest().error().code(), Errc::kIo);
  EXPECT_FALSE(tracker_->ready());
  log_.enable_fails = false;
  log_.harvest_fails = true;  // cleared, and the answer is lost
  EXPECT_EQ(tracker_->harvest().error().code(), Errc::kIo);
  EXPECT_FALSE(tracker_->ready());
  guest_writes(9);
  log_.harvest_fails = false;
  ASSERT_TRUE(tracker_->harvest().ok());
  EXPECT_EQ(pending(), (Pages{8, 9}));
  EXPECT_TRUE(tracker_->ready());
}

TEST_F(TrackedLogTest, ALogThatCannotBeTurnedOffIsAnError) {
  log_.disable_fails = true;
  const Status chosen = tracked_->choose(Tracking::kScan);
  ASSERT_FALSE(chosen.ok());
  EXPECT_NE(chosen.error().message().find("tracking scan"), std::string::npos);
}

TEST(Tracking, IsWrittenAsItIsRead) {
  EXPECT_EQ(parse_tracking("log").value(), Tracking::kLog);
  EXPECT_EQ(parse_tracking("scan").value(), Tracking::kScan);
  EXPECT_EQ(parse_tracking("").value(), Tracking::kLog) << "configurations from before there was a choice";
  for (const Tracking one : {Tracking::kLog, Tracking::kScan}) EXPECT_EQ(parse_tracking(to_string(one)).value(), one);
  const auto bad = parse_tracking("Scan");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(bad.error().message(), "unknown tracking \"Scan\"; there are log, scan");
}

// In records, templates and on the wire: where the field stands, and what a configuration without it means.
TEST(Tracking, ItsFieldInAConfigurationIsWhereItWasAndMayBeAbsent) {
  v1::VmConfig config;
  config.set_tracking("scan");
  EXPECT_EQ(config.SerializeAsString(), "\x72\x04scan") << "field 14, a string";
  v1::VmConfig older;
  ASSERT_TRUE(older.ParseFromString("\x12\x04web1"));
  EXPECT_EQ(parse_tracking(older.tracking()).value(), Tracking::kLog);
}

}  // namespace
}  // namespace fvmm::memory
