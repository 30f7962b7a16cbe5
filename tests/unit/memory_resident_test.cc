// Resident templates: whole and checked or not there, found again, counted, pinned, and gone with their template.
#include "memory/resident.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/statfs.h>

#include "base/file.h"
#include "memory/guest_memory.h"
#include "support/crash.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::delta_over;
using testing::entries_of;
using testing::store_delta;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;
using testing::Writes;

const LoadRoom kPlenty{.available_bytes = kGiB};
const Writes kDelta = {{1, 0x101}, {2, 0}, {100, 0x202}, {300, 7}};

bool contains(const Error& error, std::string_view text) {
  return error.message().find(text) != std::string::npos;
}

class ResidentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(store_template(store_, wanted_template("web"), test_memory(1)).ok());
    ASSERT_TRUE(store_.use_residents(place()).ok());
  }
  ~ResidentTest() override { set_seal_step_hook(nullptr); }
  [[nodiscard]] std::filesystem::path place() const { return ram_.path() / "resident"; }
  std::size_t files() { return std::filesystem::exists(place()) ? entries_of(place()).size() : 0; }
  [[nodiscard]] std::filesystem::path template_file(const char* name) const { return dir_.path() / "web" / name; }
  void spoil(const char* name, std::uint64_t at) {
    ASSERT_EQ(::chmod(template_file(name).c_str(), 0600), 0);
    const UniqueFd file = *open_file(template_file(name), O_RDWR);
    const std::byte wrong{0x5a};
    ASSERT_TRUE(write_all(file.get(), std::span(&wrong, 1), at).ok());
  }
  const testing::TempDir dir_;
  const testing::TempDir ram_{"/dev/shm"};
  TemplateStore store_ = *TemplateStore::open(dir_.path());
};

TEST_F(ResidentTest, ALoadedTemplateShowsItsMemoryFromTmpfs) {
  EXPECT_TRUE(store_.find("web")->resident_file.empty());
  const auto info = store_.load("web", kPlenty);
  ASSERT_TRUE(info.ok()) << info.error().message();
  ASSERT_FALSE(info->resident_file.empty());
  EXPECT_EQ(store_.list()->front().resident_file, info->resident_file);
  EXPECT_EQ(store_.find(info->id, info->digest)->resident_file, info->resident_file);
  const auto opened = *OpenTemplate::open(info->directory);
  const auto image = resident_or_stored(info->resident_file, opened);
  EXPECT_NE(image, opened.image());
  struct statfs where {};
  ASSERT_EQ(::fstatfs(image->base(), &where), 0);
  EXPECT_EQ(where.f_type, 0x01021994) << "tmpfs";
  std::vector<std::byte> memory(testing::kTestMemoryBytes);
  ASSERT_TRUE(image->read_pages({.first = 0, .count = memory.size() / kPageBytes}, memory).ok());
  EXPECT_EQ(memory, test_memory(1));
  struct stat file {};
  ASSERT_EQ(::fstat(image->base(), &file), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(file.st_blocks) * 512, testing::kTestMemoryPages * kPageBytes) << "holes stay";
  EXPECT_EQ(file.st_mode & 0777U, 0400U);
  EXPECT_TRUE(store_.load("web", kPlenty).ok()) << "a second time it is there";
}

TEST_F(ResidentTest, AChainIsLoadedResolvedAndMappedWithoutOverlays) {
  ASSERT_TRUE(store_delta(store_, delta_over("web"), kDelta).ok());
  const auto info = store_.load("web@4", kPlenty);
  ASSERT_TRUE(info.ok()) << info.error().message();
  const auto opened = *OpenTemplate::open(info->directory);
  ASSERT_GT(opened.runs().size(), 0U);
  const auto image = resident_or_stored(info->resident_file, opened);
  EXPECT_EQ(image->runs().size(), 0U);
  auto ram = std::move(*GuestMemory::reserve(testing::kTestMemoryBytes));
  ASSERT_TRUE(ram->map_template(image).ok());
  std::vector<std::byte> expected = test_memory(1);
  testing::write_into(kDelta, expected);
  EXPECT_TRUE(std::ranges::equal(ram->pages({.first = 0, .count = expected.size() / kPageBytes}), expected));
  EXPECT_TRUE(store_.find("web")->resident_file.empty()) << "the generation, not the one below";
}

TEST_F(ResidentTest, ItIsFoundAgainByTheNextProcessAndStaysThroughAFold) {
  ASSERT_TRUE(store_delta(store_, delta_over("web"), kDelta).ok());
  ASSERT_TRUE(store_.load("web@4", kPlenty).ok());
  ASSERT_TRUE(store_.fold("web@4").ok());
  store_ = *TemplateStore::open(dir_.path());  // lets go of the directory
  TemplateStore& again = store_;
  EXPECT_TRUE(again.find("web@4")->resident_file.empty());
  ASSERT_TRUE(again.use_residents(place()).ok());
  EXPECT_FALSE(again.find("web@4")->resident_file.empty());
}

TEST_F(ResidentTest, WhatBelongsToNoTemplateOrIsNotWholeIsSwept) {
  const auto info = store_.load("web", kPlenty);
  ASSERT_TRUE(info.ok());
  store_ = *TemplateStore::open(dir_.path());
  ASSERT_EQ(::chmod(info->resident_file.c_str(), 0600), 0);
  ASSERT_EQ(::truncate(info->resident_file.c_str(), testing::kTestMemoryBytes - kPageBytes), 0);
  ASSERT_TRUE(open_file(place() / "stranger", O_RDWR | O_CREAT).ok());
  ASSERT_TRUE(store_.use_residents(place()).ok());
  EXPECT_EQ(files(), 0U);
  EXPECT_TRUE(store_.find("web")->resident_file.empty());
}

TEST_F(ResidentTest, KilledBeforeItsLastStepNothingIsLeft) {
  const int status = testing::status_of_child([&] {
    set_seal_step_hook([](std::string_view step) {
      if (step == "link-resident") ::raise(SIGKILL);
    });
    (void)store_.load("web", kPlenty);
  });
  ASSERT_TRUE(testing::was_killed(status));
  EXPECT_EQ(files(), 0U);
  EXPECT_TRUE(store_.load("web", kPlenty).ok());
}

TEST_F(ResidentTest, RamIsCountedBeforeAnythingIsLoaded) {
  const std::uint64_t needed = testing::kTestMemoryPages * kPageBytes + kResidentReserveBytes;
  const auto refused = store_.load("web", {.available_bytes = needed - 1});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kResourceExhausted);
  EXPECT_TRUE(contains(refused.error(), "web") && contains(refused.error(), "unload")) << refused.error().message();
  EXPECT_EQ(files(), 0U);
  EXPECT_TRUE(store_.load("web", {.available_bytes = needed}).ok());
}

TEST_F(ResidentTest, DamageIsNamedAndNothingIsLoaded) {
  spoil("memory", 10 * kPageBytes + 5);
  const auto refused = store_.load("web", kPlenty);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  EXPECT_TRUE(contains(refused.error(), "page 10 ")) << refused.error().message();
  EXPECT_EQ(files(), 0U);
}

TEST_F(ResidentTest, SomebodyWhoLosesInterestEndsTheLoad) {
  const auto ended = store_.load("web", {.available_bytes = kGiB, .stop = [] { return true; }});
  ASSERT_FALSE(ended.ok());
  EXPECT_EQ(ended.error().code(), Errc::kCancelled);
  EXPECT_EQ(files(), 0U);
}

TEST_F(ResidentTest, WhileAVmMapsItItIsNotUnloaded) {
  EXPECT_EQ(store_.unload("web").error().code(), Errc::kFailedPrecondition);
  const auto info = store_.load("web", kPlenty);
  ASSERT_TRUE(info.ok());
  {
    auto ram = std::move(*GuestMemory::reserve(testing::kTestMemoryBytes));
    ASSERT_TRUE(ram->map_template(resident_or_stored(info->resident_file, *OpenTemplate::open(info->directory))).ok());
    const auto refused = store_.unload("web");
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
    EXPECT_TRUE(contains(refused.error(), "stop or migrate")) << refused.error().message();
    ASSERT_TRUE(ram->map_zero().ok());
    EXPECT_TRUE(store_.unload("web")->resident_file.empty());
  }
  EXPECT_EQ(files(), 0U);
}

TEST_F(ResidentTest, WhatWasUnloadedOrIsAnothersIsMappedFromTheStore) {
  const auto info = store_.load("web", kPlenty);
  ASSERT_TRUE(info.ok());
  ASSERT_TRUE(store_template(store_, wanted_template("other"), test_memory(2)).ok());
  const auto other = *OpenTemplate::open(dir_.path() / "other");
  EXPECT_EQ(resident_or_stored(info->resident_file, other), other.image());
  const auto opened = *OpenTemplate::open(info->directory);
  EXPECT_EQ(resident_or_stored("", opened), opened.image());
  {
    const UniqueFd unloading = *open_file(info->resident_file, O_RDONLY);
    ASSERT_EQ(::flock(unloading.get(), LOCK_EX), 0);
    EXPECT_EQ(resident_or_stored(info->resident_file, opened), opened.image());
  }
  ASSERT_TRUE(store_.unload("web").ok());
  EXPECT_EQ(resident_or_stored(info->resident_file, opened), opened.image());
}

TEST_F(ResidentTest, ItGoesWithItsTemplateAndTheDirectoryWithTheLast) {
  ASSERT_TRUE(store_delta(store_, delta_over("web"), kDelta).ok());
  ASSERT_TRUE(store_.load("web", kPlenty).ok());
  ASSERT_TRUE(store_.load("web@4", kPlenty).ok());
  ASSERT_EQ(store_.gc([](const TemplateInfo&) { return false; })->removed.size(), 1U);
  EXPECT_EQ(files(), 1U);
  ASSERT_TRUE(store_.remove("web").ok());
  EXPECT_EQ(files(), 0U);
  store_ = *TemplateStore::open(dir_.path());
  EXPECT_FALSE(std::filesystem::exists(place()));
}

TEST_F(ResidentTest, ADirectoryOnDiskIsRefusedWithTheFix) {
  const testing::TempDir disk(FVMM_BIN_DIR);
  TemplateStore store = *TemplateStore::open(dir_.path());
  const Status refused = store.use_residents(disk.path() / "not" / "there");
  if (refused.ok()) GTEST_SKIP() << "the build directory is on tmpfs";
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(contains(refused.error(), "--resident-dir")) << refused.error().message();
  const auto load = store.load("web", kPlenty);
  EXPECT_EQ(load.error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(contains(load.error(), "--resident-dir")) << load.error().message();
}

TEST_F(ResidentTest, ADirectoryServesOneProcessAtATime) {
  ASSERT_TRUE(store_.load("web", kPlenty).ok());
  TemplateStore other = *TemplateStore::open(dir_.path());
  const Status refused = other.use_residents(place());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(contains(refused.error(), "--resident-dir"));
}

TEST(ResidentOnASmallTmpfs, ItsSizeIsCountedToo) {
  const testing::TempDir dir;
  const testing::TempDir small;
  TemplateStore store = *TemplateStore::open(dir.path());
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  const std::string wrong = testing::on_tmpfs(small.path(), "size=16k", [&]() -> std::string {
    if (!store.use_residents(small.path()).ok()) return "use_residents";
    const auto refused = store.load("web", kPlenty);
    std::string bad = testing::not_exhausted(refused, "load");
    if (bad.empty() && !contains(refused.error(), "remount")) bad = refused.error().message();
    return bad;
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

}  // namespace
}  // namespace fvmm::memory
