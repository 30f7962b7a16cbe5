// Page tables, and pages from one memory to another.
#include <endian.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <thread>

#include "migration/convergence.h"
#include "migration/page_receiver.h"
#include "migration/page_sender.h"
#include "migration/page_table.h"
#include "net/pipe_stream.h"

namespace fvmm::migration {
namespace {

using memory::PageRange;

constexpr std::uint64_t kGuestPages = 4096;

Deadline soon() {
  return Deadline::after(std::chrono::seconds(30));
}

std::vector<std::byte> table_of(const std::vector<PageRun>& runs) {
  std::vector<std::byte> table(runs.size() * net::kTableEntryBytes);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    encode_run(runs[i], std::span<std::byte, net::kTableEntryBytes>(table.data() + i * net::kTableEntryBytes,
                                                                    net::kTableEntryBytes));
  }
  return table;
}

/// An entry as it may come from anywhere.
std::vector<std::byte> entry(std::uint64_t first, std::uint32_t count, std::uint32_t encoding) {
  std::vector<std::byte> bytes(net::kTableEntryBytes);
  first = htole64(first);
  count = htole32(count);
  encoding = htole32(encoding);
  std::memcpy(bytes.data(), &first, 8);
  std::memcpy(bytes.data() + 8, &count, 4);
  std::memcpy(bytes.data() + 12, &encoding, 4);
  return bytes;
}

TEST(PageTable, EntryIsLittleEndianWithoutPadding) {
  const auto bytes = table_of({{{0x0102030405060708, 0x0a0b0c0d}, Encoding::kZero}});
  const unsigned char golden[] = {8, 7, 6, 5, 4, 3, 2, 1, 0x0d, 0x0c, 0x0b, 0x0a, 1, 0, 0, 0};
  EXPECT_EQ(std::memcmp(bytes.data(), golden, sizeof golden), 0);
}

TEST(PageTable, DecodesWhatItEncodes) {
  const std::vector<PageRun> runs = {
      {{0, 1}, Encoding::kRaw}, {{1, 4095}, Encoding::kZero}, {{4095, 1}, Encoding::kRaw}};
  const auto decoded = decode_table(table_of(runs), kGuestPages, 2 * kPageBytes);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(*decoded, runs);
}

TEST(PageTable, EmptyTableIsNothing) {
  EXPECT_TRUE(decode_table({}, kGuestPages, 0)->empty());
  EXPECT_EQ(decode_table({}, kGuestPages, 4096).error().code(), Errc::kDataLoss);
}

struct BadEntry {
  const char* what;
  std::uint64_t first;
  std::uint32_t count;
  std::uint32_t encoding;
};

TEST(PageTable, RefusesEachBadField) {
  const BadEntry cases[] = {
      {"no pages", 0, 0, 1},
      {"first page past the guest", kGuestPages, 1, 1},
      {"last page past the guest", kGuestPages - 1, 2, 1},
      {"first page near the end of numbers", ~std::uint64_t{0}, 1, 1},
      {"sum that wraps", ~std::uint64_t{0}, 2, 1},
      {"unknown encoding", 0, 1, 2},
      {"encoding of all ones", 0, 1, ~0U},
      {"all of 32 bits of pages", 0, ~0U, 1},
  };
  for (const BadEntry& bad : cases) {
    const auto decoded = decode_table(entry(bad.first, bad.count, bad.encoding), kGuestPages, 0);
    ASSERT_FALSE(decoded.ok()) << bad.what;
    EXPECT_EQ(decoded.error().code(), Errc::kDataLoss) << bad.what;
    EXPECT_NE(decoded.error().message().find("entry 0"), std::string::npos) << bad.what;
  }
}

TEST(PageTable, RunHoldsTheLimitAndNotOneMore) {
  constexpr std::uint64_t kLargeGuest = 4ULL * kRunPagesMax;
  EXPECT_TRUE(decode_table(entry(0, kRunPagesMax, 1), kLargeGuest, 0).ok());
  EXPECT_FALSE(decode_table(entry(0, kRunPagesMax + 1, 1), kLargeGuest, 0).ok());
}

TEST(PageTable, LastPagesOfTheGuestAreAllowed) {
  EXPECT_TRUE(decode_table(entry(kGuestPages - 1, 1, 1), kGuestPages, 0).ok());
  EXPECT_TRUE(decode_table(entry(0, kGuestPages, 1), kGuestPages, 0).ok());
}

TEST(PageTable, PayloadMustBeExactlyTheRawPages) {
  const auto table = table_of({{{0, 2}, Encoding::kRaw}, {{2, 9}, Encoding::kZero}});
  EXPECT_TRUE(decode_table(table, kGuestPages, 2 * kPageBytes).ok());
  for (const std::uint32_t bytes : {0U, 4096U, 8191U, 8193U, 12288U}) {
    EXPECT_EQ(decode_table(table, kGuestPages, bytes).error().code(), Errc::kDataLoss) << bytes;
  }
}

// 2^20 raw pages are 2^32 bytes: a sum in 32 bits would be 0.
TEST(PageTable, RawBytesAreNotCountedIn32Bits) {
  EXPECT_FALSE(decode_table(entry(0, 1U << 20, 0), 1U << 21, 0).ok());
}

TEST(ZeroPage, OneByteAnywhereIsSeen) {
  alignas(4096) std::array<std::byte, kPageBytes> page{};
  EXPECT_TRUE(is_zero_page(page.data()));
  for (std::size_t at = 0; at < page.size(); ++at) {
    page[at] = std::byte{1};
    EXPECT_FALSE(is_zero_page(page.data())) << at;
    page[at] = std::byte{0};
  }
}

// ---- PageSender and PageReceiver ----------------------------------------------------------------------------------

/// Sends the ranges and the end from one memory into the other.
Status carry(const std::byte* from, const std::vector<PageRange>& ranges, memory::GuestMemory& into, bool fresh_zero,
             SendCounters* sent = nullptr, memory::Bitmap* written = nullptr) {
  auto [source, destination] = net::PipeStream::make();
  PageReceiver receiver(*destination, into, fresh_zero);
  Status received;
  std::thread thread([&] { received = receiver.run(soon()); });
  PageSender sender(*source, from);
  Status status = sender.send(ranges, soon());
  if (status) status = sender.send_end(soon());
  if (!status) source->cut();
  thread.join();
  FVMM_TRY(std::move(status));
  FVMM_TRY(std::move(received));
  EXPECT_EQ(receiver.counters().frames, sender.counters().frames);
  EXPECT_EQ(receiver.counters().pages, sender.counters().pages);
  EXPECT_EQ(receiver.counters().bytes, sender.counters().bytes);
  EXPECT_EQ(source->sent_bytes(), sender.counters().bytes);
  if (sent != nullptr) *sent = sender.counters();
  if (written != nullptr) *written = receiver.written();
  return {};
}

std::unique_ptr<memory::GuestMemory> ram() {
  auto memory = *memory::GuestMemory::reserve(kGuestPages * kPageBytes);
  EXPECT_TRUE(memory->map_zero().ok());
  ::madvise(memory->host_base(), kGuestPages * kPageBytes, MADV_NOHUGEPAGE);
  return memory;
}

void fill(memory::GuestMemory& memory, memory::PageIndex page, std::uint64_t word) {
  const auto bytes = memory.pages_for_load({page, 1});
  for (std::size_t i = 0; i < bytes.size(); i += 8) std::memcpy(bytes.data() + i, &word, 8);
}

void expect_equal(const memory::GuestMemory& a, const memory::GuestMemory& b) {
  for (memory::PageIndex page = 0; page < kGuestPages; ++page) {
    ASSERT_EQ(std::memcmp(a.pages({page, 1}).data(), b.pages({page, 1}).data(), kPageBytes), 0) << "page " << page;
  }
}

TEST(Pages, RandomMixturesArriveExactly) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const auto source = ram();
    const auto destination = ram();
    memory::Bitmap dirty(kGuestPages);
    memory::Bitmap raw(kGuestPages);
    const std::uint64_t run_max = 1 + random() % 40;
    for (memory::PageIndex page = 0; page < kGuestPages;) {
      const std::uint64_t run = std::min(1 + random() % run_max, kGuestPages - page);
      const auto kind = random() % 3;  // untouched, raw, zero
      for (std::uint64_t i = 0; i < run && kind != 0; ++i) {
        dirty.set(page + i);
        if (kind != 1) continue;
        raw.set(page + i);
        fill(*source, page + i, random() | 1);
      }
      page += run;
    }
    SendCounters sent;
    memory::Bitmap written(kGuestPages);
    ASSERT_TRUE(carry(source->host_base(), dirty.ranges(kGuestPages), *destination, true, &sent, &written).ok());
    EXPECT_EQ(sent.pages, dirty.count());
    EXPECT_EQ(sent.zero_pages, dirty.count() - raw.count());
    for (memory::PageIndex page = 0; page < kGuestPages; ++page) ASSERT_EQ(written.test(page), raw.test(page)) << page;
    expect_equal(*source, *destination);
  }
}

TEST(Pages, ZerosOverATemplateAreWrittenAndMarked) {
  const auto source = ram();
  const auto destination = ram();
  for (memory::PageIndex page = 0; page < 20; ++page) fill(*destination, page, 7);  // what the template had
  memory::Bitmap written(kGuestPages);
  ASSERT_TRUE(carry(source->host_base(), {{0, 20}}, *destination, false, nullptr, &written).ok());
  expect_equal(*source, *destination);
  EXPECT_EQ(written.count(), 20U);
}

TEST(Pages, ZeroAfterRawIsWrittenAlsoIntoFreshMemory) {
  const auto source = ram();
  const auto destination = ram();
  auto [from, to] = net::PipeStream::make();
  PageReceiver receiver(*to, *destination, true);
  Status received;
  std::thread thread([&] { received = receiver.run(soon()); });
  PageSender sender(*from, source->host_base());
  const PageRange range{5, 1};
  fill(*source, 5, 1);
  ASSERT_TRUE(sender.send(std::span(&range, 1), soon()).ok());
  fill(*source, 5, 0);
  ASSERT_TRUE(sender.send(std::span(&range, 1), soon()).ok());
  ASSERT_TRUE(sender.send_end(soon()).ok());
  thread.join();
  ASSERT_TRUE(received.ok());
  expect_equal(*source, *destination);
}

TEST(Pages, FreshZeroPagesCostNoMemory) {
  const auto source = ram();
  const auto destination = ram();
  memory::Bitmap written(kGuestPages);
  ASSERT_TRUE(carry(source->host_base(), {{0, kGuestPages}}, *destination, true, nullptr, &written).ok());
  EXPECT_FALSE(written.any());
  std::vector<unsigned char> resident(kGuestPages);
  ASSERT_EQ(::mincore(destination->host_base(), kGuestPages * kPageBytes, resident.data()), 0);
  EXPECT_EQ(std::count_if(resident.begin(), resident.end(), [](unsigned char c) { return (c & 1) != 0; }), 0);
}

TEST(Pages, FrameHolds256RawPagesAndNotOneMore) {
  const auto source = ram();
  for (memory::PageIndex page = 0; page < 300; ++page) fill(*source, page, page + 1);
  for (const auto& [pages, frames] : {std::pair{256U, 1U}, std::pair{257U, 2U}}) {
    const auto destination = ram();
    SendCounters sent;
    ASSERT_TRUE(carry(source->host_base(), {{0, pages}}, *destination, true, &sent).ok());
    EXPECT_EQ(sent.frames, frames) << pages;
    EXPECT_EQ(std::memcmp(source->host_base(), destination->host_base(), pages * kPageBytes), 0);
  }
}

TEST(Pages, FrameHolds4096EntriesAndNotOneMore) {
  const auto memory = *memory::GuestMemory::reserve(64 * kMiB);
  ASSERT_TRUE(memory->map_zero().ok());
  for (const std::uint32_t over : {0U, 1U}) {
    std::vector<PageRange> ranges;  // every other page, all zero: one entry each
    for (std::uint64_t i = 0; i < net::kTableEntriesMax + over; ++i) ranges.push_back({2 * i, 1});
    const auto destination = *memory::GuestMemory::reserve(64 * kMiB);
    ASSERT_TRUE(destination->map_zero().ok());
    SendCounters sent;
    ASSERT_TRUE(carry(memory->host_base(), ranges, *destination, true, &sent).ok());
    EXPECT_EQ(sent.frames, 1U + over);
    EXPECT_EQ(sent.pages, ranges.size());
  }
}

TEST(Pages, TenThousandFragmentsArriveInSeveralFrames) {
  const auto source = *memory::GuestMemory::reserve(128 * kMiB);
  const auto destination = *memory::GuestMemory::reserve(128 * kMiB);
  ASSERT_TRUE(source->map_zero().ok());
  ASSERT_TRUE(destination->map_zero().ok());
  std::vector<PageRange> ranges;
  for (std::uint64_t i = 0; i < 10'000; ++i) {
    ranges.push_back({3 * i, 1});
    if (i % 10 == 0) fill(*source, 3 * i, i + 1);
  }
  SendCounters sent;
  memory::Bitmap written(destination->layout().pages());
  ASSERT_TRUE(carry(source->host_base(), ranges, *destination, true, &sent, &written).ok());
  EXPECT_GE(sent.frames, 3U);
  EXPECT_EQ(written.count(), 1000U);
  for (std::uint64_t i = 0; i < 10'000; i += 10) {
    ASSERT_EQ(std::memcmp(source->pages({3 * i, 1}).data(), destination->pages({3 * i, 1}).data(), kPageBytes), 0);
  }
}

TEST(Pages, NothingToSendIsNoFrame) {
  const auto source = ram();
  const auto destination = ram();
  SendCounters sent;
  ASSERT_TRUE(carry(source->host_base(), {}, *destination, true, &sent).ok());
  EXPECT_EQ(sent.frames, 0U);
  EXPECT_EQ(sent.bytes, net::kFrameHeaderBytes) << "the end";
}

/// What a receiver says to these frames.
Status receive_frames(const std::vector<std::vector<std::byte>>& frames) {
  const auto destination = ram();
  auto [from, to] = net::PipeStream::make({}, {}, 4 * kMiB);
  for (const auto& frame : frames) EXPECT_TRUE(from->send(std::span<const std::byte>(frame), soon()).ok());
  from.reset();
  return PageReceiver(*to, *destination, true).run(soon());
}

std::vector<std::byte> frame(net::FrameHeader header, const std::vector<std::byte>& table = {}) {
  std::vector<std::byte> bytes(net::kFrameHeaderBytes);
  net::encode(header, std::span<std::byte, net::kFrameHeaderBytes>(bytes.data(), net::kFrameHeaderBytes));
  bytes.insert(bytes.end(), table.begin(), table.end());
  bytes.resize(bytes.size() + header.payload_bytes);
  return bytes;
}

// The answer is the promise that what was sent before lies in the receiver's memory, not in some buffer.
TEST(Pages, SyncIsAnsweredOnceEverythingBeforeItIsInMemory) {
  auto source = std::move(*memory::GuestMemory::reserve(kGuestPages * kPageBytes));
  auto target = std::move(*memory::GuestMemory::reserve(kGuestPages * kPageBytes));
  ASSERT_TRUE(source->map_zero().ok() && target->map_zero().ok());
  auto [ours, theirs] = net::PipeStream::make();
  PageSender sender(*ours, source->host_base());
  PageReceiver receiver(*theirs, *target, true);
  std::thread receiving([&] { EXPECT_TRUE(receiver.run(soon()).ok()); });
  for (std::uint64_t round = 1; round <= 3; ++round) {
    for (std::uint64_t page = 0; page < 300; ++page) {
      std::memcpy(source->pages_for_load({page * 7, 1}).data(), &round, sizeof round);
    }
    const PageRange all{0, kGuestPages};
    ASSERT_TRUE(sender.send(std::span(&all, 1), soon()).ok());
    ASSERT_TRUE(sender.ask_sync(soon()).ok());
    ASSERT_TRUE(sender.synced(soon()).ok());
    EXPECT_EQ(std::memcmp(source->host_base(), target->host_base(), kGuestPages * kPageBytes), 0) << round;
  }
  ASSERT_TRUE(sender.send_end(soon()).ok());
  receiving.join();
}

TEST(PageReceiver, SequenceMustNotBreak) {
  using net::FrameType;
  const auto zero = entry(0, 1, 1);
  const auto pages = [&](std::uint64_t sequence) {
    return frame({.type = FrameType::kPages, .entries = 1, .payload_bytes = 0, .sequence = sequence}, zero);
  };
  const auto end = [](std::uint64_t sequence) {
    return frame({.type = FrameType::kEnd, .entries = 0, .payload_bytes = 0, .sequence = sequence});
  };
  EXPECT_TRUE(receive_frames({end(0)}).ok());
  EXPECT_TRUE(receive_frames({pages(0), pages(1), end(2)}).ok());
  EXPECT_EQ(receive_frames({pages(1)}).error().code(), Errc::kDataLoss) << "the first is missing";
  EXPECT_EQ(receive_frames({pages(0), pages(0)}).error().code(), Errc::kDataLoss) << "twice";
  EXPECT_EQ(receive_frames({pages(0), pages(2)}).error().code(), Errc::kDataLoss) << "one is missing";
  EXPECT_EQ(receive_frames({pages(0), end(0)}).error().code(), Errc::kDataLoss) << "an end that counts less";
  EXPECT_EQ(receive_frames({pages(0), end(2)}).error().code(), Errc::kDataLoss) << "an end that counts more";
  EXPECT_EQ(receive_frames({pages(0)}).error().code(), Errc::kUnavailable) << "no end";
}

TEST(PageReceiver, OnlyPageFramesBelongOnADataConnection) {
  for (const auto type : {net::FrameType::kHello, net::FrameType::kControl}) {
    const auto status = receive_frames({frame({.type = type, .entries = 0, .payload_bytes = 0, .sequence = 0})});
    EXPECT_EQ(status.error().code(), Errc::kDataLoss);
  }
}

TEST(PageReceiver, BadTableIsRefusedBeforeItsPayload) {
  const auto header =
      net::FrameHeader{.type = net::FrameType::kPages, .entries = 1, .payload_bytes = 4096, .sequence = 0};
  EXPECT_EQ(receive_frames({frame(header, entry(kGuestPages, 1, 0))}).error().code(), Errc::kDataLoss);
  EXPECT_EQ(receive_frames({frame(header, entry(0, 2, 0))}).error().code(), Errc::kDataLoss) << "too little payload";
}

// ---- convergence --------------------------------------------------------------------------------------------------

struct Case {
  const char* why;
  Progress progress;
  Decision decision;
};

TEST(Convergence, DecidesByWhatIsLeftAndHowFastItGoes) {
  using std::chrono::microseconds;
  constexpr double kGigabyte = 1e9;
  const Case cases[] = {
      {"nothing left", {1, 0, kGigabyte, microseconds(5000), false}, Decision::kPause},
      {"nothing left, nothing allowed", {1, 0, 0, microseconds(0), true}, Decision::kPause},
      {"little left", {1, 100, kGigabyte, microseconds(5000), false}, Decision::kPause},
      {"much left", {1, 100'000, kGigabyte, microseconds(5000), false}, Decision::kContinue},
      {"no rate known", {1, 1, 0, microseconds(5000), false}, Decision::kContinue},
      {"a negative rate", {1, 1, -1, microseconds(5000), false}, Decision::kContinue},
      {"one round before the limit",
       {kRoundsMax - 1, 100'000, kGigabyte, microseconds(5000), false},
       Decision::kContinue},
      {"at the limit of rounds", {kRoundsMax, 100'000, kGigabyte, microseconds(5000), false}, Decision::kGiveUp},
      {"at the limit, but it fits", {kRoundsMax, 100, kGigabyte, microseconds(5000), false}, Decision::kPause},
      {"time runs out", {3, 100'000, kGigabyte, microseconds(5000), true}, Decision::kGiveUp},
      {"time runs out, but it fits", {3, 100, kGigabyte, microseconds(5000), true}, Decision::kPause},
      {"less than a pause costs", {1, 1, kGigabyte, kPauseFixedCost - microseconds(1), false}, Decision::kContinue},
      {"rounds gain nothing",
       {9, 90'000, kGigabyte, microseconds(5000), false, 100'000, kStalledRounds},
       Decision::kContinue},
      {"rounds gain nothing, it may be slowed",
       {9, 90'000, kGigabyte, microseconds(5000), false, 100'000, kStalledRounds, true, 0},
       Decision::kThrottle},
      {"one stalled round before that",
       {kThrottleRounds - 1, 90'000, kGigabyte, microseconds(5000), false, 100'000, kStalledRounds - 1, true, 0},
       Decision::kContinue},
      {"rounds gain too little",
       {kThrottleRounds, 80'000, kGigabyte, microseconds(5000), false, 100'000, 0, true, 0},
       Decision::kThrottle},
      {"slowed as far as it goes",
       {9, 90'000, kGigabyte, microseconds(5000), false, 100'000, kStalledRounds, true, 99},
       Decision::kContinue},
      {"slowed as far as it goes, for long",
       {9, 90'000, kGigabyte, microseconds(5000), false, 100'000, kStalledRoundsMax, true, 99},
       Decision::kGiveUp},
      {"never will converge",
       {15, 90'000, kGigabyte, microseconds(5000), false, 100'000, kStalledRoundsMax},
       Decision::kGiveUp},
      {"stalled, but it fits",
       {15, 100, kGigabyte, microseconds(5000), false, 100, kStalledRoundsMax},
       Decision::kPause},
      {"a guest of 2^52 bytes", {1, 1ULL << 40, 1, microseconds::max(), false}, Decision::kPause},
  };
  for (const Case& one : cases) EXPECT_EQ(decide(one.progress), one.decision) << one.why;
}

TEST(Convergence, RoundStallsThatGainsLessThanATenth) {
  EXPECT_TRUE(stalled({.pages_left = 901, .pages_before = 1000}));
  EXPECT_TRUE(stalled({.pages_left = 900, .pages_before = 1000})) << "at the limit";
  EXPECT_FALSE(stalled({.pages_left = 899, .pages_before = 1000}));
  EXPECT_TRUE(stalled({.pages_left = ~0ULL, .pages_before = 1}));
}

TEST(Convergence, ThrottleGoesStepByStepAndStaysAtTheLast) {
  unsigned percent = 0;
  for (const unsigned step : kThrottleSteps) {
    percent = next_throttle(percent);
    EXPECT_EQ(percent, step);
  }
  EXPECT_EQ(next_throttle(percent), kThrottleSteps.back());
}

TEST(Convergence, ExpectedDowntimeIsBytesByRatePlusTheFixedCost) {
  const Progress progress{.rounds_done = 1, .pages_left = 1000, .bytes_per_second = 4.096e9, .max_downtime = {}};
  EXPECT_EQ(expected_downtime(progress), kPauseFixedCost + std::chrono::milliseconds(1));
  Progress at = progress;
  at.max_downtime = expected_downtime(progress);
  EXPECT_EQ(decide(at), Decision::kPause) << "at the limit";
  at.max_downtime -= std::chrono::microseconds(1);
  EXPECT_EQ(decide(at), Decision::kContinue) << "one past it";
}

}  // namespace
}  // namespace fvmm::migration
