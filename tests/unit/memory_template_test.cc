#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "base/file.h"
#include "memory/guest_memory.h"
#include "support/stored_template.h"

namespace fvmm::memory {
namespace {

using testing::entries_of;
using testing::kTestMemoryBytes;
using testing::kTestMemoryPages;
using testing::names_of;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;

class Template : public ::testing::Test {
 protected:
  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
};

TEST_F(Template, RoundTripKeepsMemoryStateAndConfig) {
  const auto memory = test_memory(1);
  const auto sealed = store_template(store, wanted_template("web"), memory);
  ASSERT_TRUE(sealed.ok()) << sealed.error().message();

  const auto opened = OpenTemplate::open(store.directory() / "web");
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  const TemplateInfo& info = opened->info();
  EXPECT_EQ(info.id, sealed->id);
  EXPECT_EQ(info.digest, sealed->digest);
  EXPECT_EQ(info.name, "web");
  EXPECT_EQ(info.generation, 3U);
  EXPECT_EQ(info.memory_bytes, kTestMemoryBytes);
  EXPECT_EQ(info.pages, kTestMemoryPages);
  EXPECT_EQ(info.config.name(), "web1");
  EXPECT_EQ(info.created.size(), std::string("2026-01-01T00:00:00Z").size());
  EXPECT_EQ(info.directory, store.directory() / "web");
  std::vector<std::byte> back(kTestMemoryBytes);
  ASSERT_TRUE(read_all(opened->memory_file(), back, 0).ok());
  EXPECT_EQ(back, memory);
  const auto state = opened->machine_state();
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->SerializeAsString(), test_machine_state().SerializeAsString());
}

TEST_F(Template, ZeroPagesAreHoles) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  const auto opened = *OpenTemplate::open(store.directory() / "web");
  EXPECT_EQ(::lseek(opened.memory_file(), 0, SEEK_HOLE), static_cast<off_t>(3 * kPageBytes));
  EXPECT_EQ(::lseek(opened.memory_file(), 3 * kPageBytes, SEEK_DATA), static_cast<off_t>(10 * kPageBytes));
  EXPECT_LT(opened.info().stored_bytes, 16 * kTestMemoryPages * kPageBytes);
}

TEST_F(Template, MemoryFileIsMappableAndCannotBeWrittenThroughTheView) {
  const auto memory = test_memory(1);
  TemplateWriter writer = *store.begin(wanted_template("web"));
  ASSERT_TRUE(writer.add_pages(0, memory).ok());
  auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
  ASSERT_TRUE(ram->map_private(writer.memory_file()).ok());  // before the seal: the paused VM is rebased
  EXPECT_EQ(std::memcmp(ram->host_base(), memory.data(), memory.size()), 0);
  EXPECT_EQ(::pwrite(writer.memory_file(), "x", 1, 0), -1);
}

TEST_F(Template, DigestDoesNotDependOnChunks) {
  const auto memory = test_memory(1);
  const auto whole = store_template(store, wanted_template("whole"), memory);
  TemplateWriter writer = *store.begin(wanted_template("pieces"));
  const std::span<const std::byte> bytes(memory);
  ASSERT_TRUE(writer.add_pages(0, bytes.first(kPageBytes)).ok());
  ASSERT_TRUE(writer.add_pages(1, bytes.subspan(kPageBytes, 3 * kPageBytes)).ok());
  ASSERT_TRUE(writer.add_pages(10, bytes.subspan(10 * kPageBytes)).ok());  // 4 to 9 are zero: left out
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  const auto pieces = writer.seal(&whole->digest);
  ASSERT_TRUE(pieces.ok()) << pieces.error().message();
  EXPECT_EQ(pieces->digest, whole->digest);
  EXPECT_NE(pieces->id, whole->id);
}

TEST_F(Template, DigestIsTheChainOfItsPages) {
  const auto memory = test_memory(1);
  const auto sealed = store_template(store, wanted_template("web"), memory);
  DigestChain chain(Digest{}, kTestMemoryBytes);
  for (const PageIndex page : {0UL, 1UL, 2UL, 10UL, kTestMemoryBytes / kPageBytes - 1}) {
    chain.add(page, hash_page(std::span(memory).subspan(page * kPageBytes).first<kPageBytes>()));
  }
  EXPECT_EQ(sealed->digest, chain.finish());
}

TEST_F(Template, MemoryOfZerosHasNoPages) {
  const auto sealed = store_template(store, wanted_template("empty"), std::vector<std::byte>(kTestMemoryBytes));
  ASSERT_TRUE(sealed.ok());
  EXPECT_EQ(sealed->pages, 0U);
  EXPECT_EQ(store.verify("empty")->detail, "");
}

// More pages than one write, one hash batch and one verify chunk hold.
TEST_F(Template, LongRunsSurvive) {
  auto wanted = wanted_template("long");
  wanted.memory_bytes = 48 * kMiB;
  std::vector<std::byte> memory(wanted.memory_bytes, std::byte{7});
  const auto sealed = store_template(store, wanted, memory);
  ASSERT_TRUE(sealed.ok());
  EXPECT_EQ(sealed->pages, 12288U);
  const auto report = store.verify("long");
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->detail, "");
  EXPECT_EQ(report->pages_checked, 12288U);
}

TEST_F(Template, OrderViolationsAreRefusedAndHarmless) {
  const auto memory = test_memory(1);
  const std::span<const std::byte> bytes(memory);
  const std::uint64_t pages = kTestMemoryBytes / kPageBytes;
  TemplateWriter writer = *store.begin(wanted_template("web"));
  ASSERT_TRUE(writer.add_pages(0, bytes.first(3 * kPageBytes)).ok());
  const auto refused = [&](PageIndex first, std::span<const std::byte> piece) {
    const Status status = writer.add_pages(first, piece);
    return !status.ok() && status.error().code() == Errc::kInvalidArgument;
  };
  EXPECT_TRUE(refused(2, bytes.first(kPageBytes)));              // overlap
  EXPECT_TRUE(refused(0, bytes.first(kPageBytes)));              // back
  EXPECT_TRUE(refused(3, bytes.first(kPageBytes - 1)));          // part of a page
  EXPECT_TRUE(refused(pages - 1, bytes.first(2 * kPageBytes)));  // past the end
  EXPECT_TRUE(refused(pages + 1, {}));
  EXPECT_TRUE(refused(~PageIndex{0}, bytes.first(kPageBytes)));
  ASSERT_TRUE(writer.add_pages(3, bytes.subspan(3 * kPageBytes)).ok());
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  const auto expected = store_template(store, wanted_template("expected"), memory);
  EXPECT_TRUE(writer.seal(&expected->digest).ok());
}

TEST_F(Template, SealWantsAMachineState) {
  TemplateWriter writer = *store.begin(wanted_template("web"));
  const auto sealed = writer.seal();
  ASSERT_FALSE(sealed.ok());
  EXPECT_EQ(sealed.error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(entries_of(store.directory()).empty());
}

TEST_F(Template, SealRefusesAnotherDigestAndLeavesNothing) {
  TemplateWriter writer = *store.begin(wanted_template("web"));
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  const Digest other = Id::random();
  const auto sealed = writer.seal(&other);
  ASSERT_FALSE(sealed.ok());
  EXPECT_EQ(sealed.error().code(), Errc::kDataLoss);
  EXPECT_TRUE(entries_of(store.directory()).empty());
}

TEST_F(Template, SpentWriterRefusesEverything) {
  TemplateWriter writer = *store.begin(wanted_template("web"));
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  ASSERT_TRUE(writer.seal().ok());
  EXPECT_EQ(writer.add_pages(0, {}).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(writer.set_machine_state(test_machine_state()).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(writer.seal().error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(entries_of(store.directory()), std::vector<std::string>{"web"});
}

TEST_F(Template, AbandonedWriterLeavesNothing) {
  {
    TemplateWriter writer = *store.begin(wanted_template("web"));
    ASSERT_TRUE(writer.add_pages(0, test_memory(1)).ok());
    EXPECT_EQ(entries_of(store.directory()).size(), 1U);
  }
  EXPECT_TRUE(entries_of(store.directory()).empty());
}

TEST_F(Template, MachineStateHasALimit) {
  TemplateWriter writer = *store.begin(wanted_template("web"));
  v1::MachineState state;
  state.add_devices()->set_bytes(std::string(16 * kMiB, 'x'));
  EXPECT_EQ(writer.set_machine_state(state).error().code(), Errc::kResourceExhausted);
}

TEST_F(Template, NamesAreCheckedAtEveryDoor) {
  const std::vector<std::string> bad = {"", ".", "..", ".hidden", "a/b", "../web", "a b", std::string(65, 'a'), "a\n"};
  for (const std::string& name : bad) {
    EXPECT_EQ(store.begin(wanted_template(name)).error().code(), Errc::kInvalidArgument) << name;
    EXPECT_EQ(store.find(name).error().code(), Errc::kInvalidArgument) << name;
    EXPECT_EQ(store.remove(name).error().code(), Errc::kInvalidArgument) << name;
    EXPECT_EQ(store.verify(name).error().code(), Errc::kInvalidArgument) << name;
  }
  EXPECT_TRUE(store.begin(wanted_template(std::string(64, 'a'))).ok());
}

TEST_F(Template, MemorySizeIsChecked) {
  auto wanted = wanted_template("web");
  wanted.memory_bytes = kRamBytesMin - kPageBytes;
  EXPECT_EQ(store.begin(wanted).error().code(), Errc::kInvalidArgument);
}

TEST_F(Template, TakenNameIsRefusedAtBeginAndAtSeal) {
  TemplateWriter slow = *store.begin(wanted_template("web"));
  ASSERT_TRUE(slow.set_machine_state(test_machine_state()).ok());
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  EXPECT_EQ(store.begin(wanted_template("web")).error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(slow.seal().error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(entries_of(store.directory()), std::vector<std::string>{"web"});
  EXPECT_EQ(store.verify("web")->detail, "");
}

TEST_F(Template, ListIsSortedAndHasOnlySealedOnes) {
  ASSERT_TRUE(store_template(store, wanted_template("b"), test_memory(1)).ok());
  ASSERT_TRUE(store_template(store, wanted_template("a"), test_memory(2)).ok());
  std::filesystem::create_directory(store.directory() / "not-a-template");
  const TemplateWriter unsealed = *store.begin(wanted_template("c"));
  EXPECT_EQ(names_of(*store.list()), (std::vector<std::string>{"a", "b"}));
}

TEST_F(Template, FindByIdWantsTheSameContent) {
  const auto sealed = *store_template(store, wanted_template("web"), test_memory(1));
  EXPECT_EQ(store.find(sealed.id, sealed.digest)->name, "web");
  EXPECT_EQ(store.find(sealed.id, Id::random()).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(store.find(Id::random(), sealed.digest).error().code(), Errc::kNotFound);
  const auto missing = store.find("nosuch");
  EXPECT_EQ(missing.error().code(), Errc::kNotFound);
  EXPECT_NE(missing.error().message().find("nosuch"), std::string::npos);
}

TEST_F(Template, IdGivenByTheCallerIsKept) {
  auto wanted = wanted_template("web");
  wanted.id = Id::random();
  EXPECT_EQ(store_template(store, wanted, test_memory(1))->id, wanted.id);
}

TEST_F(Template, RemoveDeletesAllAndOnlyOnce) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  ASSERT_TRUE(store.remove("web").ok());
  EXPECT_TRUE(entries_of(store.directory()).empty());
  EXPECT_EQ(store.remove("web").error().code(), Errc::kNotFound);
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kNotFound);
}

TEST_F(Template, RemoveLeavesForeignDirectoriesAlone) {
  std::filesystem::create_directory(store.directory() / "mine");
  EXPECT_EQ(store.remove("mine").error().code(), Errc::kNotFound);
  EXPECT_EQ(entries_of(store.directory()), std::vector<std::string>{"mine"});
}

TEST_F(Template, PinnedTemplateCannotBeRemoved) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  EXPECT_EQ(store.show("web")->pins, 0U);
  {
    const auto first = *OpenTemplate::open(store.directory() / "web");
    const auto second = *OpenTemplate::open(store.directory() / "web");
    EXPECT_EQ(store.show("web")->pins, 2U);
    const Status removed = store.remove("web");
    ASSERT_FALSE(removed.ok());
    EXPECT_EQ(removed.error().code(), Errc::kFailedPrecondition);
    EXPECT_NE(removed.error().message().find("in use by 2"), std::string::npos) << removed.error().message();
  }
  EXPECT_EQ(store.show("web")->pins, 0U);
  EXPECT_TRUE(store.remove("web").ok());
}

// A pin belongs to a process and ends with it, however it ends.
TEST_F(Template, PinOfAnotherProcessHoldsUntilItDies) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto pinned = OpenTemplate::open(store.directory() / "web");
    if (!pinned || ::write(ready[1], "y", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char answer = 0;
  ASSERT_EQ(::read(ready[0], &answer, 1), 1);
  EXPECT_EQ(store.remove("web").error().code(), Errc::kFailedPrecondition);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(store.remove("web").ok());
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(Template, TemplateBeingRemovedCannotBeOpened) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  const UniqueFd remover = *open_file(store.directory() / "web" / "pin", O_RDONLY);
  ASSERT_EQ(::flock(remover.get(), LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kNotFound);
}

TEST_F(Template, SweepKeepsWhatIsBeingWritten) {
  TemplateWriter writer = *store.begin(wanted_template("web"));
  ASSERT_TRUE(writer.add_pages(0, test_memory(1)).ok());
  ASSERT_TRUE(store.sweep().ok());
  ASSERT_TRUE(writer.set_machine_state(test_machine_state()).ok());
  EXPECT_TRUE(writer.seal().ok());
}

TEST_F(Template, SweepRemovesLeftoversOfStagingAndRemoval) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  std::filesystem::create_directory(store.directory() / ".staging-0123");
  std::filesystem::create_directory(store.directory() / ".trash-0123");
  std::filesystem::copy(store.directory() / "web" / "machine", store.directory() / ".trash-0123" / "machine");
  ASSERT_TRUE(store.sweep().ok());
  EXPECT_EQ(entries_of(store.directory()), std::vector<std::string>{"web"});
}

TEST_F(Template, OpenAcceptsATrailingSlash) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web" / "")->info().name, "web");
}

TEST(TemplateStoreOpen, RefusesAFileInThePlaceOfTheDirectory) {
  testing::TempDir dir;
  ASSERT_TRUE(replace_file(dir.path() / "store", "x").ok());
  EXPECT_FALSE(TemplateStore::open(dir.path() / "store" / "below").ok());
}

}  // namespace
}  // namespace fvmm::memory
