#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/file.h"
#include "memory/guest_memory.h"
#include "memory/sparse_copy.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::kTestMemoryBytes;
using testing::names_of;
using testing::store_delta;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;
using testing::write_into;
using testing::Writes;

constexpr PageIndex kLast = kTestMemoryBytes / kPageBytes - 1;

/// web <- web@4 <- web@5, and what web@5 shows.
class Fold : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(store_template(store, wanted_template("web"), memory).ok());
    const Writes first = {{1, 0x101}, {2, 0}, {100, 0x202}, {101, 0x303}, {kLast, 0}};
    const Writes second = {{0, 0}, {100, 0}, {101, 0x404}, {200, 0x505}};
    ASSERT_TRUE(store_delta(store, delta_over("web"), first).ok());
    write_into(first, memory);
    middle = memory;
    delta = *store_delta(store, delta_over("web@4"), second);
    write_into(second, memory);
  }
  [[nodiscard]] std::filesystem::path place(const std::string& name) const { return store.directory() / name; }

  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
  std::vector<std::byte> memory = test_memory(1);
  std::vector<std::byte> middle;  // of web@4
  TemplateInfo delta;
};

TEST_F(Fold, MakesABaseOfTheSameIdentityThatNeedsNoParent) {
  const auto folded = store.fold("web@5");
  ASSERT_TRUE(folded.ok()) << folded.error().message();
  EXPECT_EQ(folded->kind, v1::TEMPLATE_BASE);
  EXPECT_EQ(folded->id, delta.id);
  EXPECT_EQ(folded->digest, delta.digest);
  EXPECT_EQ(folded->name, "web@5");
  EXPECT_EQ(folded->generation, delta.generation);
  EXPECT_EQ(folded->created, delta.created);
  EXPECT_EQ(folded->parent_digest, delta.parent_digest);
  EXPECT_EQ(folded->parent_name, "web@4");
  EXPECT_EQ(folded->delta_pages, 4U);
  EXPECT_EQ(folded->pages, 4U);  // 1, 10, 101, 200
  EXPECT_EQ(folded->chain, 1U);
  EXPECT_EQ(folded->runs, 0U);
  EXPECT_EQ(store.verify("web@5")->detail, "");
  EXPECT_EQ(entries_of(store.directory()), (std::vector<std::string>{"web", "web@4", "web@5"}));
  EXPECT_EQ(entries_of(place("web@5")),
            (std::vector<std::string>{"delta", "hashes", "machine", "manifest", "memory", "pin"}));

  ASSERT_TRUE(store.remove("web@4").ok());  // nothing lies on it any more
  ASSERT_TRUE(store.remove("web").ok());
  const auto opened = *OpenTemplate::open(place("web@5"));
  EXPECT_GE(opened.memory_file(), 0);
  EXPECT_EQ(content_of(opened), memory);
  EXPECT_EQ(opened.machine_state()->SerializeAsString(), test_machine_state().SerializeAsString());
  EXPECT_EQ(store.verify("web@5")->detail, "");
}

TEST_F(Fold, ZeroPagesAreHolesOfTheNewMemory) {
  ASSERT_TRUE(store.fold("web@5").ok());
  const UniqueFd file = *open_file(place("web@5") / "memory", O_RDONLY);
  EXPECT_EQ(::lseek(file.get(), 0, SEEK_DATA), static_cast<off_t>(kPageBytes));
  EXPECT_EQ(::lseek(file.get(), 102 * kPageBytes, SEEK_DATA), static_cast<off_t>(200 * kPageBytes));
  EXPECT_EQ(::lseek(file.get(), 201 * kPageBytes, SEEK_DATA), -1);
  struct stat info {};
  ASSERT_EQ(::fstat(file.get(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0400U);
}

TEST_F(Fold, OfABaseDoesNothing) {
  const auto folded = store.fold("web");
  ASSERT_TRUE(folded.ok());
  EXPECT_EQ(entries_of(place("web")), (std::vector<std::string>{"hashes", "machine", "manifest", "memory", "pin"}));
  ASSERT_TRUE(store.fold("web@4").ok());
  EXPECT_TRUE(store.fold("web@4").ok());  // and again
  EXPECT_EQ(store.fold("nosuch").error().code(), Errc::kNotFound);
}

TEST_F(Fold, ShortensTheChainOfThoseAbove) {
  ASSERT_TRUE(store.fold("web@4").ok());
  EXPECT_EQ(content_of(store, "web@4"), middle);
  const auto opened = *OpenTemplate::open(place("web@5"));
  EXPECT_EQ(opened.info().chain, 2U);
  EXPECT_EQ(opened.info().runs, 3U);
  EXPECT_EQ(content_of(opened), memory);
  EXPECT_EQ(store.verify("web@5")->detail, "");
  EXPECT_TRUE(store.remove("web").ok());
  EXPECT_EQ(content_of(store, "web@5"), memory);
}

TEST_F(Fold, AMappedVmKeepsItsMemoryAndItsPins) {
  auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
  {
    const auto opened = *OpenTemplate::open(place("web@5"));
    ASSERT_TRUE(ram->map_template(opened.image()).ok());
    ASSERT_TRUE(store.fold("web@5").ok());
    EXPECT_EQ(store.show("web@5")->pins, 1U);  // taken before the fold, and still there
    const Status removed = store.remove("web@5");
    ASSERT_FALSE(removed.ok());
    EXPECT_NE(removed.error().message().find("in use by 1"), std::string::npos) << removed.error().message();
    EXPECT_EQ(store.remove("web@4").error().code(), Errc::kFailedPrecondition);  // pinned as part of the old chain
    EXPECT_EQ(opened.machine_state()->SerializeAsString(), test_machine_state().SerializeAsString());
    EXPECT_EQ(content_of(opened), memory);
  }
  for (const std::string name : {"web@5", "web@4", "web"}) EXPECT_TRUE(store.remove(name).ok()) << name;
  EXPECT_EQ(std::memcmp(ram->host_base(), memory.data(), memory.size()), 0);  // read for the first time now
  std::array<std::byte, kPageBytes> page{};
  ASSERT_TRUE(ram->template_page(200, page).ok());
  EXPECT_EQ(std::memcmp(page.data(), memory.data() + 200 * kPageBytes, kPageBytes), 0);
}

TEST_F(Fold, OneAtATime) {
  const UniqueFd other = *open_file(place("web@5"), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(store.fold("web@5").error().code(), Errc::kAborted);
}

TEST_F(Fold, CanFollowASealWhoseWriterStillLives) {
  TemplateWriter writer = *store.begin_delta(delta_over("web@5"));
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  ASSERT_TRUE(writer.seal().ok());
  EXPECT_TRUE(store.fold("web@6").ok());
}

// A reader that opened the old directory before the exchange begins again and gets the new one.
TEST_F(Fold, OpeningDuringAFoldNeverFails) {
  std::vector<std::string> failures;
  set_seal_step_hook([&](std::string_view step) {
    const auto opened = OpenTemplate::open(place("web@5"));
    if (!opened) failures.push_back(std::string(step) + ": " + opened.error().message());
    if (opened && content_of(*opened) != memory) failures.push_back(std::string(step) + ": content");
  });
  const auto folded = store.fold("web@5");
  set_seal_step_hook(nullptr);
  ASSERT_TRUE(folded.ok()) << folded.error().message();
  EXPECT_EQ(failures, std::vector<std::string>());
}

TEST_F(Fold, DamageOfTheDeltaListIsFound) {
  ASSERT_TRUE(store.fold("web@5").ok());
  const auto file = place("web@5") / "delta";
  const std::string good = *read_file(file, kMiB);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    const UniqueFd fd = *open_file(file, O_RDWR);
    ASSERT_TRUE(write_all(fd.get(), as_bytes(bad), 0).ok());
    EXPECT_NE(store.verify("web@5")->detail, "") << at;
    ASSERT_TRUE(write_all(fd.get(), as_bytes(good), 0).ok());
  }
  EXPECT_EQ(store.verify("web@5")->detail, "");
  std::filesystem::remove(file);
  EXPECT_EQ(OpenTemplate::open(place("web@5")).error().code(), Errc::kDataLoss);
}

TEST_F(Fold, DamageBelowIsNotFoldedIn) {
  const UniqueFd hashes = *open_file(place("web@4") / "hashes", O_RDWR);
  ASSERT_EQ(::pwrite(hashes.get(), "?", 1, 60), 1);
  const auto folded = store.fold("web@5");
  ASSERT_FALSE(folded.ok());
  EXPECT_EQ(folded.error().code(), Errc::kDataLoss);
  EXPECT_NE(folded.error().message().find("web@4"), std::string::npos) << folded.error().message();
  EXPECT_EQ(entries_of(store.directory()), (std::vector<std::string>{"web", "web@4", "web@5"}));
}

// A page damaged below keeps its hash through the fold, so that verify finds it afterwards, too.
TEST_F(Fold, DamagedPagesStayVisible) {
  const UniqueFd pages = *open_file(place("web@5") / "pages", O_RDWR);
  ASSERT_EQ(::pwrite(pages.get(), "?", 1, 3 * kPageBytes), 1);  // page 200
  EXPECT_EQ(store.verify("web@5")->bad, std::vector<PageIndex>{200});
  ASSERT_TRUE(store.fold("web@5").ok());
  EXPECT_EQ(store.verify("web@5")->bad, std::vector<PageIndex>{200});
}

TEST_F(Fold, ImportsWithoutItsParent) {
  TemplateStore other = *TemplateStore::open(dir.path() / "other");
  ASSERT_TRUE(store.fold("web@5").ok());
  const auto imported = other.import_linked(place("web@5"));
  ASSERT_TRUE(imported.ok()) << imported.error().message();
  EXPECT_EQ(imported->digest, delta.digest);
  EXPECT_EQ(content_of(other, "web@5"), memory);
  EXPECT_EQ(other.verify("web@5")->detail, "");
}

/// What a peer sends of a folded generation, received by another store.
Result<TemplateInfo> receive(TemplateStore& to, const OpenTemplate& from, std::span<const std::byte> memory) {
  const TemplateInfo& info = from.info();
  TemplateStore::NewTemplate wanted = wanted_template(info.name);
  wanted.id = info.id;
  wanted.folded = {.parent_digest = info.parent_digest, .parent_id = info.parent_id, .parent_name = info.parent_name};
  TemplateWriter writer = FVMM_TRY(to.begin(wanted));
  FVMM_TRY(writer.add_pages(0, memory));
  HashCursor cursor = FVMM_TRY(from.delta_hashes());
  for (; cursor.entry(); FVMM_TRY(cursor.advance())) FVMM_TRY(writer.add_delta_hashes(std::span(&*cursor.entry(), 1)));
  FVMM_TRY(writer.set_machine_state(test_machine_state()));
  return writer.seal(&info.digest);
}

TEST_F(Fold, TravelsWholeAndKeepsItsDigest) {
  TemplateStore other = *TemplateStore::open(dir.path() / "other");
  const auto unfolded =
      *OpenTemplate::open(place("web@5"));  // whole content and hash list are the same before the fold
  const auto copy = receive(other, unfolded, memory);
  ASSERT_TRUE(copy.ok()) << copy.error().message();
  EXPECT_EQ(copy->digest, delta.digest);
  EXPECT_EQ(copy->delta_pages, 4U);
  EXPECT_EQ(other.verify("web@5")->detail, "");
  ASSERT_TRUE(other.remove("web@5").ok());

  ASSERT_TRUE(store.fold("web@5").ok());
  const auto folded = *OpenTemplate::open(place("web@5"));
  ASSERT_TRUE(receive(other, folded, memory).ok());
  EXPECT_EQ(content_of(other, "web@5"), memory);
  EXPECT_EQ(other.verify("web@5")->detail, "");
  EXPECT_EQ(OpenTemplate::open(place("web"))->delta_hashes().error().code(), Errc::kFailedPrecondition);
}

TEST_F(Fold, PagesThatAreNotThoseOfTheListAreRefused) {
  TemplateStore other = *TemplateStore::open(dir.path() / "other");
  const auto opened = *OpenTemplate::open(place("web@5"));
  memory[200 * kPageBytes] ^= std::byte{1};
  const auto refused = receive(other, opened, memory);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  EXPECT_NE(refused.error().message().find("page 200"), std::string::npos) << refused.error().message();
  EXPECT_TRUE(entries_of(other.directory()).empty());

  TemplateStore::NewTemplate wanted = wanted_template("web@5");
  wanted.folded.emplace();
  EXPECT_EQ(other.begin(wanted).error().code(), Errc::kInvalidArgument);
  TemplateWriter plain = *other.begin(wanted_template("plain"));
  EXPECT_EQ(plain.add_delta_hashes({}).error().code(), Errc::kFailedPrecondition);
}

TEST(SparseCopy, PunchesWhereTheSourceHasHoles) {
  const testing::TempDir dir;
  const UniqueFd from = *open_file(dir.path() / "from", O_RDWR | O_CREAT);
  const UniqueFd to = *open_file(dir.path() / "to", O_RDWR | O_CREAT);
  ASSERT_EQ(::ftruncate(from.get(), 8 * kPageBytes), 0);
  ASSERT_TRUE(write_all(from.get(), testing::marked_page(3), 2 * kPageBytes).ok());
  const std::vector<std::byte> old(8 * kPageBytes, std::byte{9});
  ASSERT_TRUE(write_all(to.get(), old, 0).ok());

  ASSERT_TRUE(copy_sparse(from.get(), kPageBytes, to.get(), 3 * kPageBytes, 4 * kPageBytes, Holes::kPunch).ok());
  std::vector<std::byte> expected = old;
  std::fill_n(expected.begin() + 3 * kPageBytes, 4 * kPageBytes, std::byte{0});
  std::ranges::copy(testing::marked_page(3), expected.begin() + 4 * kPageBytes);
  std::vector<std::byte> back(8 * kPageBytes);
  ASSERT_TRUE(read_all(to.get(), back, 0).ok());
  EXPECT_EQ(back, expected);
  EXPECT_EQ(::lseek(to.get(), 0, SEEK_HOLE), static_cast<off_t>(3 * kPageBytes));

  ASSERT_TRUE(copy_sparse(from.get(), 0, to.get(), 0, 3 * kPageBytes, Holes::kSkip).ok());
  std::ranges::copy(testing::marked_page(3), expected.begin() + 2 * kPageBytes);
  ASSERT_TRUE(read_all(to.get(), back, 0).ok());
  EXPECT_EQ(back, expected);
}

}  // namespace
}  // namespace fvmm::memory
