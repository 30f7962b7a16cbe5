#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "memory/guest_memory.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::kTestMemoryBytes;
using testing::marked_page;
using testing::names_of;
using testing::store_delta;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;
using testing::write_into;
using testing::Writes;

constexpr PageIndex kLast = kTestMemoryBytes / kPageBytes - 1;

/// "web" (generation 3) with the pages of test_memory(1).
class Delta : public ::testing::Test {
 protected:
  void SetUp() override { base = *store_template(store, wanted_template("web"), memory); }
  [[nodiscard]] std::filesystem::path place(const std::string& name) const { return store.directory() / name; }

  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
  std::vector<std::byte> memory = test_memory(1);
  TemplateInfo base;
};

TEST_F(Delta, ShowsItsPagesOverTheParentsAndSaysWhatItIs) {
  const Writes writes = {{1, 0x101}, {2, 0}, {100, 0x202}, {101, 0x303}, {kLast, 0}};
  const auto sealed = store_delta(store, delta_over("web"), writes);
  ASSERT_TRUE(sealed.ok()) << sealed.error().message();
  write_into(writes, memory);

  const auto opened = OpenTemplate::open(place("web@4"));
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  const TemplateInfo& info = opened->info();
  EXPECT_EQ(info.kind, v1::TEMPLATE_DELTA);
  EXPECT_EQ(info.name, "web@4");
  EXPECT_EQ(info.generation, 4U);
  EXPECT_EQ(info.parent_name, "web");
  EXPECT_EQ(info.parent_id, base.id);
  EXPECT_EQ(info.parent_digest, base.digest);
  EXPECT_EQ(info.memory_bytes, kTestMemoryBytes);
  EXPECT_EQ(info.pages, 5U);
  EXPECT_EQ(info.delta_pages, 5U);
  EXPECT_EQ(info.chain, 2U);
  EXPECT_EQ(info.runs, 3U);  // 1 and 2, 100 and 101, the last
  EXPECT_EQ(sealed->digest, info.digest);
  EXPECT_EQ(sealed->chain, 2U);
  EXPECT_EQ(sealed->runs, 3U);
  EXPECT_EQ(opened->memory_file(), -1);
  EXPECT_EQ(content_of(*opened), memory);
  EXPECT_EQ(opened->machine_state()->SerializeAsString(), test_machine_state().SerializeAsString());
  EXPECT_EQ(store.verify("web@4")->detail, "");
  EXPECT_EQ(store.verify("web@4")->pages_checked, 5U);
}

TEST_F(Delta, DigestIsTheChainOverTheParentsZeroPagesIncluded) {
  DigestChain chain(base.digest, kTestMemoryBytes);
  for (const auto& [page, mark] : Writes{{1, 7}, {2, 0}}) {
    const auto bytes = marked_page(mark);
    chain.add(page, hash_page(std::span(bytes).first<kPageBytes>()));
  }
  const Digest expected = chain.finish();
  const auto sealed = store_delta(store, delta_over("web"), {{1, 7}, {2, 0}}, &expected);
  ASSERT_TRUE(sealed.ok()) << sealed.error().message();
  const auto refused = store_delta(store, delta_over("web@4"), {{1, 7}}, &expected);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
}

TEST_F(Delta, WithoutPagesItIsAnotherPointInTimeOfTheSameMemory) {
  const auto sealed = store_delta(store, delta_over("web"), {});
  ASSERT_TRUE(sealed.ok()) << sealed.error().message();
  EXPECT_NE(sealed->digest, base.digest);
  EXPECT_EQ(sealed->runs, 0U);
  EXPECT_EQ(content_of(store, "web@4"), memory);
  EXPECT_EQ(store.verify("web@4")->detail, "");
  auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
  ASSERT_TRUE(ram->map_template(OpenTemplate::open(place("web@4"))->image()).ok());
  EXPECT_EQ(std::memcmp(ram->host_base(), memory.data(), memory.size()), 0);
}

TEST_F(Delta, ZeroPagesAreHolesOfThePagesFile) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 9}, {2, 0}, {3, 0}, {4, 9}}).ok());
  const UniqueFd pages = *open_file(place("web@4") / "pages", O_RDONLY);
  EXPECT_EQ(::lseek(pages.get(), 0, SEEK_HOLE), static_cast<off_t>(kPageBytes));
  EXPECT_EQ(::lseek(pages.get(), kPageBytes, SEEK_DATA), static_cast<off_t>(3 * kPageBytes));
  EXPECT_EQ(std::filesystem::file_size(place("web@4") / "pages"), 4 * kPageBytes);
}

TEST_F(Delta, PiecesOfARunMakeOneRunAndTheSameDigest) {
  std::vector<std::byte> run(700 * kPageBytes, std::byte{5});
  TemplateWriter whole = *store.begin_delta({.parent = "web", .name = "whole"});
  ASSERT_TRUE(whole.add_pages(50, run).ok());
  ASSERT_TRUE(whole.set_machine_state(test_machine_state()).ok());
  const auto expected = whole.seal();
  ASSERT_TRUE(expected.ok()) << expected.error().message();
  TemplateWriter pieces = *store.begin_delta({.parent = "web", .name = "pieces"});
  ASSERT_TRUE(pieces.add_pages(50, std::span(run).first(kPageBytes)).ok());
  ASSERT_TRUE(pieces.add_pages(51, std::span(run).subspan(kPageBytes)).ok());
  EXPECT_EQ(pieces.add_pages(60, marked_page(1)).error().code(), Errc::kInvalidArgument);
  ASSERT_TRUE(pieces.set_machine_state(test_machine_state()).ok());
  const auto sealed = pieces.seal(&expected->digest);
  ASSERT_TRUE(sealed.ok()) << sealed.error().message();
  EXPECT_EQ(sealed->runs, 1U);
}

TEST_F(Delta, TheNewestOfAChainWins) {
  std::vector<std::byte> model = memory;
  std::string parent = "web";
  const std::vector<Writes> generations = {
      {{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}}, {{2, 2}}, {{1, 0}, {2, 0}}, {{3, 4}, {4, 4}, {5, 4}}};
  for (const Writes& writes : generations) {
    const auto sealed = store_delta(store, delta_over(parent), writes);
    ASSERT_TRUE(sealed.ok()) << sealed.error().message();
    parent = sealed->name;
    write_into(writes, model);
    EXPECT_EQ(content_of(store, parent), model) << parent;
  }
  const auto opened = *OpenTemplate::open(place("web@7"));
  EXPECT_EQ(opened.info().chain, 5U);
  EXPECT_EQ(opened.runs().size(), 3U);  // page 0 of the first, 1 to 2 of the third, 3 to 5 of the last
  EXPECT_EQ(store.find("web@7")->runs, 3U);
  EXPECT_EQ(store.find("web@7")->chain, 5U);
}

TEST_F(Delta, MappedItIsTheResolvedMemoryAndWritesStayPrivate) {
  const Writes writes = {{1, 0x101}, {2, 0}, {77, 0x202}};
  ASSERT_TRUE(store_delta(store, delta_over("web"), writes).ok());
  write_into(writes, memory);
  auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
  ASSERT_TRUE(ram->map_template(OpenTemplate::open(place("web@4"))->image()).ok());  // keeps what it needs open
  EXPECT_EQ(std::memcmp(ram->host_base(), memory.data(), memory.size()), 0);

  for (const PageIndex page : {0UL, 2UL, 77UL, 500UL}) {
    std::ranges::fill(ram->pages_for_load({.first = page, .count = 1}), std::byte{0xEE});
    std::array<std::byte, kPageBytes> original{};
    ASSERT_TRUE(ram->template_page(page, original).ok());
    EXPECT_EQ(std::memcmp(original.data(), memory.data() + page * kPageBytes, kPageBytes), 0) << page;
  }
  EXPECT_EQ(content_of(store, "web@4"), memory);
  EXPECT_FALSE(ram->on_zero_template());
}

TEST_F(Delta, GuestMemoryOfAnotherSizeRefusesIt) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
  auto ram = std::move(*GuestMemory::reserve(2 * kTestMemoryBytes));
  EXPECT_EQ(ram->map_template(OpenTemplate::open(place("web@4"))->image()).error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(ram->on_zero_template());
}

TEST_F(Delta, ReadPagesChecksItsRange) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
  const auto opened = *OpenTemplate::open(place("web@4"));
  std::vector<std::byte> out(2 * kPageBytes);
  EXPECT_TRUE(opened.read_pages({.first = kLast - 1, .count = 2}, out).ok());
  EXPECT_EQ(opened.read_pages({.first = kLast, .count = 2}, out).error().code(), Errc::kOutOfRange);
  EXPECT_EQ(opened.read_pages({.first = 0, .count = 1}, out).error().code(), Errc::kOutOfRange);
  EXPECT_EQ(opened.read_pages({.first = ~PageIndex{0}, .count = 2}, out).error().code(), Errc::kOutOfRange);
}

TEST_F(Delta, DataRangesAreThePagesWorthSending) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{2, 0}, {3, 1}, {50, 1}}).ok());
  const auto opened = *OpenTemplate::open(place("web@4"));
  const std::vector<PageRange> expected = {{0, 4}, {10, 1}, {50, 1}, {kLast, 1}};
  EXPECT_EQ(*opened.image()->data_ranges(), expected);
}

TEST_F(Delta, NamesAreOursOrTheirs) {
  EXPECT_EQ(generation_name("web", 4), "web@4");
  EXPECT_EQ(generation_name("web@3", 4), "web@4");
  auto wanted = delta_over("web");
  for (const std::string bad : {"web@", "@4", "web@x", "web@4@5", "a/b@1", ".web@1", "web@123456789012345678901"}) {
    wanted.name = bad;
    EXPECT_EQ(store.begin_delta(wanted).error().code(), Errc::kInvalidArgument) << bad;
    EXPECT_EQ(store.find(bad).error().code(), Errc::kInvalidArgument) << bad;
  }
  wanted.name = std::string(64, 'a') + "@18446744073709551615";
  EXPECT_TRUE(store.begin_delta(wanted).ok());
  wanted.name = "monday";
  wanted.generation = 9;
  wanted.id = Id::random();
  const auto sealed = store_delta(store, wanted, {});
  ASSERT_TRUE(sealed.ok());
  EXPECT_EQ(sealed->name, "monday");
  EXPECT_EQ(sealed->generation, 9U);
  EXPECT_EQ(sealed->id, wanted.id);
  EXPECT_EQ(store_delta(store, wanted, {}).error().code(), Errc::kAlreadyExists);
}

TEST_F(Delta, ParentIsFoundByNameOrDigestAndCompared) {
  EXPECT_EQ(store.begin_delta(delta_over("nosuch")).error().code(), Errc::kNotFound);
  TemplateStore::NewDelta wanted;
  wanted.parent_digest = base.digest;
  EXPECT_EQ(store_delta(store, wanted, {})->parent_name, "web");
  wanted.parent_digest = Id::random();
  EXPECT_EQ(store.begin_delta(wanted).error().code(), Errc::kNotFound);
  wanted.parent = "web";
  EXPECT_EQ(store.begin_delta(wanted).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(store.find_by_digest(base.digest)->name, "web");
  EXPECT_EQ(store.find_by_digest(Id::random()).error().code(), Errc::kNotFound);
}

TEST_F(Delta, TheParentIsPinnedWhileItIsWritten) {
  TemplateWriter writer = *store.begin_delta(delta_over("web"));
  EXPECT_EQ(store.remove("web").error().code(), Errc::kFailedPrecondition);
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  ASSERT_TRUE(writer.seal().ok());
  EXPECT_EQ(store.show("web")->pins, 0U);
  EXPECT_EQ(store.remove("web").error().code(), Errc::kFailedPrecondition);  // now it has a descendant
}

TEST_F(Delta, OpenPinsTheWholeChain) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
  ASSERT_TRUE(store_delta(store, delta_over("web@4"), {{2, 1}}).ok());
  const auto opened = *OpenTemplate::open(place("web@5"));
  for (const std::string name : {"web", "web@4", "web@5"}) EXPECT_EQ(store.show(name)->pins, 1U) << name;
}

TEST_F(Delta, ARenamedParentIsFoundByItsIdentity) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
  std::filesystem::rename(place("web"), place("old"));
  write_into({{1, 1}}, memory);
  EXPECT_EQ(content_of(store, "web@4"), memory);
  EXPECT_EQ(store.find("web@4")->chain, 2U);
  EXPECT_EQ(store.remove("old").error().code(), Errc::kFailedPrecondition);
}

TEST_F(Delta, AMissingParentIsNamed) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
  ASSERT_TRUE(store_delta(store, delta_over("web@4"), {{1, 2}}).ok());
  std::filesystem::rename(place("web"), dir.path() / "away");
  const auto opened = OpenTemplate::open(place("web@5"));
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(opened.error().message().find("web@4: parent \"web\""), std::string::npos) << opened.error().message();
  EXPECT_EQ(store.find("web@5")->chain, 0U);
  EXPECT_EQ(store.list()->size(), 2U);
}

TEST_F(Delta, AParentOfOtherContentIsRefused) {
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
  std::filesystem::rename(place("web"), dir.path() / "away");
  auto other = wanted_template("web");
  other.id = base.id;
  ASSERT_TRUE(store_template(store, other, test_memory(2)).ok());
  const auto opened = OpenTemplate::open(place("web@4"));
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(opened.error().message().find(base.digest.hex()), std::string::npos) << opened.error().message();
}

// 1024 runs are mapped; of 1025 the short ones are read instead, with the same content and the same template below.
TEST_F(Delta, MappableRunsHaveALimit) {
  Writes writes;
  for (PageIndex i = 0; i < kMappableRunsMax; ++i) writes[2 * i] = 0x100 + static_cast<unsigned>(i % 200);
  ASSERT_TRUE(store_delta(store, delta_over("web"), writes).ok());
  ASSERT_TRUE(store_delta(store, delta_over("web@4"), {{2 * kMappableRunsMax, 1}}).ok());
  write_into(writes, memory);
  auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
  const auto most = *OpenTemplate::open(place("web@4"));
  EXPECT_TRUE(most.info().is_mappable());
  ASSERT_TRUE(ram->map_template(most.image()).ok());
  EXPECT_EQ(std::memcmp(ram->host_base(), memory.data(), memory.size()), 0);

  const auto more = *OpenTemplate::open(place("web@5"));
  EXPECT_FALSE(more.info().is_mappable());
  EXPECT_EQ(more.runs().size(), kMappableRunsMax + 1);
  write_into({{2 * kMappableRunsMax, 1}}, memory);
  EXPECT_EQ(content_of(more), memory);
  ASSERT_TRUE(ram->map_template(more.image()).ok());
  EXPECT_EQ(std::memcmp(ram->host_base(), memory.data(), memory.size()), 0);
  const std::span<std::byte> first = ram->pages_for_load({0, 1});
  first[0] ^= std::byte{1};
  std::array<std::byte, kPageBytes> original{};
  ASSERT_TRUE(ram->template_page(0, original).ok());
  EXPECT_EQ(std::memcmp(original.data(), memory.data(), kPageBytes), 0);
}

TEST_F(Delta, ChainsHaveALimitWhenWrittenAndWhenOpened) {
  // web@4 folded stands on its own, so that 255 deltas fit over it; unfolded it needs "web" below: one too many.
  ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 4}}).ok());
  std::filesystem::copy(place("web@4"), dir.path() / "unfolded");
  ASSERT_TRUE(store.fold("web@4").ok());
  std::string parent = "web@4";
  for (std::uint32_t length = 2; length <= kChainMax; ++length) {
    const auto sealed = store_delta(store, delta_over(parent), {{length, length}});
    ASSERT_TRUE(sealed.ok()) << sealed.error().message();
    parent = sealed->name;
  }
  EXPECT_EQ(OpenTemplate::open(place(parent))->info().chain, kChainMax);
  EXPECT_EQ(store.find(parent)->chain, kChainMax);
  const auto past = store.begin_delta(delta_over(parent));
  ASSERT_FALSE(past.ok());
  EXPECT_EQ(past.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(past.error().message().find("256 generations"), std::string::npos) << past.error().message();

  std::filesystem::rename(place("web@4"), dir.path() / "folded");
  std::filesystem::rename(dir.path() / "unfolded", place("web@4"));
  const auto opened = OpenTemplate::open(place(parent));
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(opened.error().message().find("more than 256"), std::string::npos) << opened.error().message();
  EXPECT_EQ(store.find(parent)->chain, 0U);
  EXPECT_EQ(names_of(*store.list()).size(), kChainMax + 1);

  std::filesystem::remove_all(place("web@4"));
  std::filesystem::rename(dir.path() / "folded", place("web@4"));
  const auto content = content_of(store, parent);
  const auto folded = store.fold(parent);
  ASSERT_TRUE(folded.ok()) << folded.error().message();
  EXPECT_EQ(content_of(store, parent), content);
  EXPECT_EQ(store.verify(parent)->detail, "");
}

TEST_F(Delta, AbandonedWriterLeavesNothing) {
  {
    TemplateWriter writer = *store.begin_delta(delta_over("web"));
    ASSERT_TRUE(writer.add_pages(0, memory).ok());
    EXPECT_EQ(entries_of(store.directory()).size(), 2U);
  }
  EXPECT_EQ(entries_of(store.directory()), std::vector<std::string>{"web"});
}

}  // namespace
}  // namespace fvmm::memory
