#include "migration/staging.h"

#include <gtest/gtest.h>

#include <cstring>

#include "support/stored_template.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kBytes = 16 * kMiB;

std::vector<std::byte> pages_of(std::uint64_t word, std::uint64_t count) {
  std::vector<std::byte> bytes(count * kPageBytes);
  for (std::uint64_t i = 0; i < count; ++i, ++word) std::memcpy(bytes.data() + i * kPageBytes, &word, sizeof word);
  return bytes;
}

class StagedPagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = StagedPages::create(directory_.path(), kBytes);
    ASSERT_TRUE(made.ok()) << made.error().message();
    staged_ = std::move(*made);
  }
  Status put(memory::PageIndex first, std::uint64_t count, std::uint64_t word) {
    return staged_->put({first, count}, pages_of(word, count).data());
  }
  std::uint64_t word_at(memory::PageIndex page) {
    std::uint64_t word = 0;
    std::memcpy(&word, staged_->pages({page, 1}).data(), sizeof word);
    return word;
  }
  testing::TempDir directory_;
  std::unique_ptr<StagedPages> staged_;
};

TEST_F(StagedPagesTest, TheLaterCopyCounts) {
  ASSERT_TRUE(put(3, 2, 10));
  ASSERT_TRUE(put(4, 1, 99));
  EXPECT_EQ(word_at(3), 10U);
  EXPECT_EQ(word_at(4), 99U);
  EXPECT_EQ(word_at(5), 0U);
}

TEST_F(StagedPagesTest, ReservedRoomHoldsPagesUntilTheyAreSettled) {
  ASSERT_TRUE(put(3, 1, 10));
  ASSERT_TRUE(staged_->reserve(4));
  ASSERT_TRUE(put(3, 1, 20));
  ASSERT_TRUE(put(7, 2, 30));
  ASSERT_TRUE(put(3, 1, 21));
  ASSERT_TRUE(staged_->settle());
  EXPECT_EQ(word_at(3), 21U);
  EXPECT_EQ(word_at(7), 30U);
  EXPECT_EQ(word_at(8), 31U);
}

TEST_F(StagedPagesTest, PagesPastTheReservedRoomComeAfterThoseInIt) {
  ASSERT_TRUE(staged_->reserve(2));
  ASSERT_TRUE(put(3, 2, 10));
  ASSERT_TRUE(put(4, 3, 50));  // does not fit any more
  ASSERT_TRUE(staged_->settle());
  EXPECT_EQ(word_at(3), 10U);
  EXPECT_EQ(word_at(4), 50U);
  EXPECT_EQ(word_at(6), 52U);
}

TEST_F(StagedPagesTest, LeavesNothingInItsDirectory) {
  ASSERT_TRUE(put(0, 100, 1));
  EXPECT_TRUE(testing::entries_of(directory_.path()).empty());
  staged_.reset();
  EXPECT_TRUE(testing::entries_of(directory_.path()).empty());
}

TEST(StagedPages, WithoutADirectoryThereIsNone) {
  EXPECT_FALSE(StagedPages::create("/nonexistent", kBytes));
}

}  // namespace
}  // namespace fvmm::migration
