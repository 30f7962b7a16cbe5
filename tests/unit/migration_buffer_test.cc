// The bounded buffer between capturing and sending.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "migration/capture_buffer.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kSlots = kCaptureBufferMin / kPageBytes;
const Deadline kNow = Deadline::after(std::chrono::milliseconds(0));
Deadline soon() {
  return Deadline::after(std::chrono::seconds(20));
}

std::vector<std::byte> page_of(std::uint64_t word) {
  std::vector<std::byte> page(kPageBytes);
  std::memcpy(page.data(), &word, sizeof word);
  return page;
}
std::uint64_t word_of(const CaptureBuffer& buffer, const BufferedPage& page) {
  std::uint64_t word = 0;
  std::memcpy(&word, buffer.bytes(page.slot), sizeof word);
  return word;
}

class CaptureBufferTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = CaptureBuffer::create(kCaptureBufferMin);
    ASSERT_TRUE(made.ok()) << made.error().message();
    buffer_ = std::move(*made);
    ASSERT_TRUE(buffer_->begin());
  }
  Status put(memory::PageIndex page) { return buffer_->put({page, 1}, page_of(page * 3).data()); }
  std::unique_ptr<CaptureBuffer> buffer_;
};

TEST(CaptureBufferSize, HasALeastAndAMost) {
  EXPECT_FALSE(CaptureBuffer::create(kCaptureBufferMin - 1));
  EXPECT_TRUE(CaptureBuffer::create(kCaptureBufferMin));
  EXPECT_TRUE(CaptureBuffer::create(kCaptureBufferMax));
  EXPECT_FALSE(CaptureBuffer::create(kCaptureBufferMax + kPageBytes));
}

TEST_F(CaptureBufferTest, PagesComeInOrderWithTheirBytesAndThenTheEnd) {
  for (memory::PageIndex page = 0; page < 10; ++page) ASSERT_TRUE(put(page));
  ASSERT_TRUE(buffer_->finish({.number = 5, .realtime_ns = 7, .state = {}}));
  const auto first = buffer_->take(6, soon());
  const auto second = buffer_->take(100, soon());
  const auto& a = std::get<std::vector<BufferedPage>>(*first);
  const auto& b = std::get<std::vector<BufferedPage>>(*second);
  ASSERT_EQ(a.size(), 6U);
  ASSERT_EQ(b.size(), 4U) << "an end is never skipped";
  for (memory::PageIndex page = 0; page < 6; ++page) {
    EXPECT_EQ(a[page].page, page);
    EXPECT_EQ(word_of(*buffer_, a[page]), page * 3);
  }
  EXPECT_EQ(std::get<GenerationEnd>(*buffer_->take(100, soon())).number, 5U);
  EXPECT_FALSE(buffer_->take(100, kNow));
}

TEST_F(CaptureBufferTest, FullBufferHoldsTheProducerUntilThereIsRoom) {
  for (std::uint64_t i = 0; i < kSlots; ++i) ASSERT_TRUE(put(i));
  EXPECT_EQ(buffer_->figures().bytes, kCaptureBufferMin);
  std::thread producer([&] { EXPECT_TRUE(put(kSlots)); });
  while (buffer_->figures().waits == 0) std::this_thread::yield();
  const auto taken = std::get<std::vector<BufferedPage>>(*buffer_->take(1, soon()));
  EXPECT_EQ(buffer_->figures().pages_in, kSlots) << "it still waits";
  buffer_->release(taken);
  producer.join();
  EXPECT_EQ(buffer_->figures().pages_in, kSlots + 1);
}

TEST_F(CaptureBufferTest, ReserveWaitsForRoomAndRefusesWhatNeverFits) {
  EXPECT_TRUE(buffer_->reserve(kSlots));
  EXPECT_EQ(buffer_->reserve(kSlots + 1).error().code(), Errc::kResourceExhausted);
}

TEST_F(CaptureBufferTest, BrokenLinkEmptiesItAndFailsTheGenerationForGood) {
  for (std::uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(put(i));
  const auto held = std::get<std::vector<BufferedPage>>(*buffer_->take(2, soon()));
  buffer_->break_off();
  EXPECT_FALSE(buffer_->take(100, kNow));
  EXPECT_EQ(put(9).error().code(), Errc::kUnavailable);
  buffer_->open();
  EXPECT_EQ(put(9).error().code(), Errc::kUnavailable) << "half a generation never meets a new link";
  EXPECT_EQ(buffer_->finish({}).error().code(), Errc::kUnavailable);
  ASSERT_TRUE(buffer_->begin());
  EXPECT_TRUE(put(9));
  EXPECT_EQ(word_of(*buffer_, held[1]), 3U) << "what the sender holds is not given to others";
  buffer_->release(held);
  EXPECT_EQ(buffer_->figures().bytes, kPageBytes);
}

TEST_F(CaptureBufferTest, BrokenLinkWakesAProducerThatWaits) {
  for (std::uint64_t i = 0; i < kSlots; ++i) ASSERT_TRUE(put(i));
  std::thread producer([&] { EXPECT_EQ(put(kSlots).error().code(), Errc::kUnavailable); });
  while (buffer_->figures().waits == 0) std::this_thread::yield();
  buffer_->break_off();
  producer.join();
}

TEST_F(CaptureBufferTest, EverySlotComesBack) {
  for (int round = 0; round < 5; ++round) {
    for (std::uint64_t i = 0; i < kSlots; ++i) ASSERT_TRUE(put(i));
    while (const auto item = buffer_->take(100, kNow)) buffer_->release(std::get<std::vector<BufferedPage>>(*item));
  }
  EXPECT_EQ(buffer_->figures().bytes, 0U);
}

}  // namespace
}  // namespace fvmm::migration
