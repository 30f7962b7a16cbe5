#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include "base/file.h"
#include "memory/guest_memory.h"
#include "memory/template_format.h"
#include "support/crash.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::kTestMemoryBytes;
using testing::on_tmpfs;
using testing::status_of_child;
using testing::store_delta;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;
using testing::was_killed;
using testing::write_into;
using testing::Writes;

using Names = std::vector<std::string>;
constexpr PageIndex kLast = kTestMemoryBytes / kPageBytes - 1;

const Writes kFirst = {{1, 0x101}, {2, 0}, {100, 0x202}, {101, 0x303}, {kLast, 0}};
const Writes kSecond = {{0, 0}, {100, 0}, {101, 0x404}, {200, 0x505}};
const Writes kThird = {{1, 0x606}, {201, 0x707}};

/// web <- web@4 <- web@5 <- web@6, and what web@6 shows.
struct Line {
  explicit Line(const std::filesystem::path& directory) : store(*TemplateStore::open(directory)) {
    EXPECT_TRUE(store_template(store, wanted_template("web"), memory).ok());
    std::string parent = "web";
    for (const Writes& writes : {kFirst, kSecond, kThird}) {
      newest = *store_delta(store, delta_over(parent), writes);
      write_into(writes, memory);
      parent = newest.name;
    }
  }
  [[nodiscard]] std::filesystem::path place(const std::string& name) const { return store.directory() / name; }

  TemplateStore store;
  std::vector<std::byte> memory = test_memory(1);
  TemplateInfo newest;
};

class Squash : public ::testing::Test {
 protected:
  void expect_whole(const std::string& name) {
    EXPECT_EQ(content_of(store, name), line.memory);
    EXPECT_EQ(store.verify(name)->detail, "");
  }
  testing::TempDir dir;
  Line line{dir.path() / "store"};
  TemplateStore& store = line.store;
};

TEST_F(Squash, MakesOneDeltaOfTheSameIdentityOverTheTemplate) {
  const auto squashed = store.squash("web@6");
  ASSERT_TRUE(squashed.ok()) << squashed.error().message();
  EXPECT_TRUE(squashed->is_delta());
  EXPECT_EQ(squashed->id, line.newest.id);
  EXPECT_EQ(squashed->digest, line.newest.digest);
  EXPECT_EQ(squashed->generation, line.newest.generation);
  EXPECT_EQ(squashed->created, line.newest.created);
  EXPECT_EQ(squashed->parent_name, "web@5") << "its lineage stays";
  EXPECT_EQ(squashed->parent_digest, line.newest.parent_digest);
  EXPECT_EQ(squashed->below_name, "web");
  EXPECT_EQ(squashed->pages, 8U);  // 0, 1, 2, 100, 101, 200, 201, last; zero pages too
  EXPECT_EQ(squashed->delta_pages, 2U);
  EXPECT_EQ(squashed->chain, 2U);
  EXPECT_EQ(squashed->runs, 4U);
  EXPECT_EQ(OpenTemplate::open(line.place("web@6"))->runs().size(), 4U);
  expect_whole("web@6");
  EXPECT_EQ(entries_of(store.directory()), (Names{"web", "web@4", "web@5", "web@6"}));
  EXPECT_EQ(entries_of(line.place("web@6")), (Names{"delta", "hashes", "machine", "manifest", "pages", "pin"}));
  const auto opened = *OpenTemplate::open(line.place("web@6"));
  EXPECT_EQ(opened.machine_state()->SerializeAsString(), test_machine_state().SerializeAsString());
  EXPECT_EQ(std::filesystem::file_size(line.place("web@6") / "pages"), 8 * kPageBytes);
}

TEST_F(Squash, WhatLayBetweenCanGoAndTheTemplateCannot) {
  ASSERT_TRUE(store.squash("web@6").ok());
  EXPECT_TRUE(store.remove("web@5").ok()) << "its child by lineage does not lie on it";
  EXPECT_TRUE(store.remove("web@4").ok());
  const Status kept = store.remove("web");
  ASSERT_FALSE(kept.ok());
  EXPECT_NE(kept.error().message().find("\"web@6\" descends from it"), std::string::npos) << kept.error().message();
  EXPECT_EQ(store.find("web@6")->chain, 2U);
  expect_whole("web@6");
}

TEST_F(Squash, GcTakesWhatLayBetween) {
  ASSERT_TRUE(store.squash("web@6").ok());
  const auto collected = store.gc([](const TemplateInfo& info) { return info.name == "web@6"; });
  ASSERT_TRUE(collected.ok());
  EXPECT_EQ(testing::names_of(collected->removed), (Names{"web@5", "web@4"}));
  expect_whole("web@6");
}

TEST_F(Squash, OfWhatLiesOnATemplateOrIsOneDoesNothing) {
  const auto before = *read_file(line.place("web@4") / "manifest", kMiB);
  EXPECT_TRUE(store.squash("web@4").ok());
  EXPECT_EQ(*read_file(line.place("web@4") / "manifest", kMiB), before);
  EXPECT_EQ(store.squash("web")->kind, v1::TEMPLATE_BASE);
  ASSERT_TRUE(store.squash("web@6").ok());
  EXPECT_EQ(store.squash("web@6")->chain, 2U);  // and again
  EXPECT_EQ(store.squash("nosuch").error().code(), Errc::kNotFound);
}

TEST_F(Squash, TheLineGoesOnAndIsSquashedAgain) {
  ASSERT_TRUE(store.squash("web@6").ok());
  const Writes more = {{2, 0x11}, {3, 0x22}, {101, 0}};
  const TemplateInfo next = *store_delta(store, delta_over("web@6"), more);
  const TemplateInfo last = *store_delta(store, delta_over("web@7"), {{9, 0x33}});
  EXPECT_EQ(last.chain, 4U);
  write_into(more, line.memory);
  write_into({{9, 0x33}}, line.memory);
  const auto squashed = store.squash("web@8");
  ASSERT_TRUE(squashed.ok()) << squashed.error().message();
  EXPECT_EQ(squashed->chain, 2U);
  EXPECT_EQ(squashed->digest, last.digest);
  for (const char* name : {"web@7", "web@6", "web@5", "web@4"}) EXPECT_TRUE(store.remove(name).ok()) << name;
  expect_whole("web@8");
}

TEST_F(Squash, FoldMakesABaseOfItWithTheSameDigest) {
  ASSERT_TRUE(store.squash("web@6").ok());
  const auto folded = store.fold("web@6");
  ASSERT_TRUE(folded.ok()) << folded.error().message();
  EXPECT_FALSE(folded->is_delta());
  EXPECT_EQ(folded->digest, line.newest.digest);
  EXPECT_EQ(folded->delta_pages, 2U);
  for (const char* name : {"web@5", "web@4", "web"}) EXPECT_TRUE(store.remove(name).ok()) << name;
  expect_whole("web@6");
}

TEST_F(Squash, InTheMiddleShortensTheChainOfThoseAbove) {
  ASSERT_TRUE(store.squash("web@5").ok());
  EXPECT_EQ(store.find("web@6")->chain, 3U);
  expect_whole("web@6");
  EXPECT_TRUE(store.remove("web@4").ok());
  EXPECT_FALSE(store.remove("web@5").ok());
  expect_whole("web@6");
}

TEST_F(Squash, GoesDownToTheFirstNamedGenerationOnly) {
  TemplateStore::NewDelta named = delta_over("web@5");
  named.name = "golden";
  ASSERT_TRUE(store_delta(store, named, {{50, 1}}).ok());
  ASSERT_TRUE(store_delta(store, delta_over("golden"), {{60, 2}}).ok());
  ASSERT_TRUE(store_delta(store, delta_over("golden@7"), {{61, 3}}).ok());
  const std::vector<std::byte> shown = content_of(store, "golden@8");
  const std::uint64_t runs = store.find("golden@8")->runs;
  const auto squashed = store.squash("golden@8");
  ASSERT_TRUE(squashed.ok()) << squashed.error().message();
  EXPECT_EQ(squashed->below_name, "golden");
  EXPECT_EQ(squashed->pages, 2U);
  EXPECT_EQ(squashed->chain, 5U);
  EXPECT_LE(squashed->runs, runs);
  EXPECT_LE(OpenTemplate::open(line.place("golden@8"))->runs().size(), squashed->runs);
  EXPECT_EQ(content_of(store, "golden@8"), shown);
  EXPECT_EQ(store.remove("golden").error().code(), Errc::kFailedPrecondition);
}

TEST(SquashOnZero, GoesDownToABaseOfOurs) {
  const testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path());
  auto wanted = wanted_template("vm@1");
  wanted.generation = 1;
  std::vector<std::byte> memory = test_memory(1);
  ASSERT_TRUE(store_template(store, wanted, memory).ok());
  ASSERT_TRUE(store_delta(store, delta_over("vm@1"), kFirst).ok());
  ASSERT_TRUE(store_delta(store, delta_over("vm@2"), kSecond).ok());
  write_into(kFirst, memory);
  write_into(kSecond, memory);
  EXPECT_EQ(store.squash("vm@3")->below_name, "vm@1");
  EXPECT_TRUE(store.remove("vm@2").ok());
  EXPECT_FALSE(store.remove("vm@1").ok());
  EXPECT_EQ(content_of(store, "vm@3"), memory);
}

TEST_F(Squash, AMappedVmKeepsItsMemoryAndItsPins) {
  auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
  {
    const auto opened = *OpenTemplate::open(line.place("web@6"));
    ASSERT_TRUE(ram->map_template(opened.image()).ok());
    ASSERT_TRUE(store.squash("web@6").ok());
    EXPECT_EQ(store.show("web@6")->pins, 1U);
    EXPECT_EQ(store.remove("web@6").error().code(), Errc::kFailedPrecondition);
    EXPECT_EQ(store.remove("web@5").error().code(), Errc::kFailedPrecondition);  // pinned as part of the old chain
  }
  EXPECT_TRUE(store.remove("web@5").ok());
  EXPECT_EQ(std::memcmp(ram->host_base(), line.memory.data(), kTestMemoryBytes), 0);
}

TEST_F(Squash, OneAtATimeAndOpeningMeanwhileNeverFails) {
  const UniqueFd other = *open_file(line.place("web@6"), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(store.squash("web@6").error().code(), Errc::kAborted);
  ASSERT_EQ(::flock(other.get(), LOCK_UN), 0);
  Names failures;
  set_seal_step_hook([&](std::string_view step) {
    const auto opened = OpenTemplate::open(line.place("web@6"));
    if (!opened || content_of(*opened) != line.memory) failures.emplace_back(step);
  });
  const auto squashed = store.squash("web@6");
  set_seal_step_hook(nullptr);
  ASSERT_TRUE(squashed.ok()) << squashed.error().message();
  EXPECT_EQ(failures, Names());
}

TEST_F(Squash, TravelsByHardLinkToAStoreThatHasItsTemplate) {
  TemplateStore other = *TemplateStore::open(dir.path() / "other");
  ASSERT_TRUE(store.squash("web@6").ok());
  EXPECT_EQ(other.import_linked(line.place("web@6")).error().code(), Errc::kFailedPrecondition);
  ASSERT_TRUE(other.import_linked(line.place("web")).ok());
  const auto imported = other.import_linked(line.place("web@6"));
  ASSERT_TRUE(imported.ok()) << imported.error().message();
  EXPECT_EQ(imported->digest, line.newest.digest);
  EXPECT_EQ(content_of(other, "web@6"), line.memory);
}

TEST_F(Squash, HashListIsThatOfTheDelta) {
  std::vector<PageIndex> pages;
  ASSERT_TRUE(store.squash("web@6").ok());
  const auto opened = *OpenTemplate::open(line.place("web@6"));
  DigestChain chain(line.newest.parent_digest, kTestMemoryBytes);
  HashCursor cursor = *opened.delta_hashes();
  while (cursor.entry()) {
    pages.push_back(cursor.entry()->page);
    chain.add(cursor.entry()->page, cursor.entry()->hash);
    ASSERT_TRUE(cursor.advance().ok());
  }
  EXPECT_EQ(pages, (std::vector<PageIndex>{1, 201}));
  EXPECT_EQ(chain.finish(), line.newest.digest);
}

TEST_F(Squash, DamageOfItsListsAndPagesIsFound) {
  ASSERT_TRUE(store.squash("web@6").ok());
  for (const char* name : {"delta", "hashes", "pages"}) {
    const auto file = line.place("web@6") / name;
    const std::string good = *read_file(file, kMiB);
    for (std::size_t at = 0; at<good.size(); at += good.size()> 1000 ? 1777 : 1) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x10);
      const UniqueFd fd = *open_file(file, O_RDWR);
      ASSERT_TRUE(write_all(fd.get(), as_bytes(bad), 0).ok());
      const auto report = store.verify("web@6");
      EXPECT_TRUE(!report.ok() || report->detail != "") << name << " " << at;
      ASSERT_TRUE(write_all(fd.get(), as_bytes(good), 0).ok());
    }
  }
  EXPECT_EQ(store.verify("web@6")->detail, "");
}

TEST_F(Squash, DamageBelowIsNotTakenIn) {
  const UniqueFd hashes = *open_file(line.place("web@5") / "hashes", O_RDWR);
  ASSERT_EQ(::pwrite(hashes.get(), "?", 1, 60), 1);
  const auto squashed = store.squash("web@6");
  ASSERT_FALSE(squashed.ok());
  EXPECT_EQ(squashed.error().code(), Errc::kDataLoss);
  EXPECT_EQ(entries_of(store.directory()), (Names{"web", "web@4", "web@5", "web@6"}));
}

TEST_F(Squash, WellSealedNonsenseInTheManifestIsRefused) {
  const auto plain = *decode_manifest(*read_file(line.place("web@6") / "manifest", kMiB));
  ASSERT_TRUE(store.squash("web@6").ok());
  const std::string file = *read_file(line.place("web@6") / "manifest", kMiB);
  EXPECT_EQ(file[8], 3) << "its version";
  const auto good = *decode_manifest(file);
  const auto refused = [](v1::TemplateManifest bad, auto spoil) {
    spoil(bad);
    const auto decoded = decode_manifest(encode_manifest(bad));
    return !decoded.ok() && decoded.error().code() == Errc::kDataLoss;
  };
  EXPECT_TRUE(refused(plain, [&](auto& m) { *m.mutable_lies_on() = good.lies_on(); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.clear_lies_on(); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.clear_delta(); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.mutable_lies_on()->set_id(Id{}.raw()); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.mutable_lies_on()->set_digest("short"); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.mutable_lies_on()->set_name("../web"); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.mutable_delta()->set_bytes(hash_table_bytes(9)); }));  // of 8 pages
  EXPECT_TRUE(refused(good, [](auto& m) { m.mutable_delta()->clear_checksum(); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_kind(v1::TEMPLATE_BASE); }));
}

TEST(SquashSteps, EveryFileIsSyncedBeforeTheManifestAndTheManifestBeforeTheExchange) {
  const testing::TempDir dir;
  Line line(dir.path());
  Names steps;
  set_seal_step_hook([&](std::string_view step) { steps.emplace_back(step); });
  const bool done = line.store.squash("web@6").ok();
  set_seal_step_hook(nullptr);
  ASSERT_TRUE(done);
  EXPECT_EQ(steps, (Names{"write-hashes", "fsync-hashes", "write-pages", "fsync-pages", "link-delta", "link-machine",
                          "link-pin", "write-manifest", "fsync-manifest", "fsync-staging", "exchange", "fsync-store",
                          "remove-old"}));
  for (const std::string& step : steps) {  // killed before it
    const testing::TempDir other;
    Line fresh(other.path());
    ASSERT_TRUE(was_killed(status_of_child([&] {
      set_seal_step_hook([&](std::string_view at) {
        if (at == step) ::raise(SIGKILL);
      });
      (void)fresh.store.squash("web@6");
    }))) << step;
    const bool exchanged = step == "fsync-store" || step == "remove-old";
    for (const bool swept : {false, true}) {
      if (swept) {
        ASSERT_TRUE(fresh.store.sweep().ok());
      }
      const auto found = fresh.store.find("web@6");
      ASSERT_TRUE(found.ok()) << step << ": " << found.error().message();
      EXPECT_EQ(found->chain, exchanged ? 2U : 4U) << step;
      EXPECT_EQ(found->digest, fresh.newest.digest) << step;
      EXPECT_EQ(content_of(fresh.store, "web@6"), fresh.memory) << step;
      EXPECT_EQ(fresh.store.verify("web@6")->detail, "") << step;
    }
    EXPECT_EQ(entries_of(other.path()), (Names{"web", "web@4", "web@5", "web@6"})) << step;
    EXPECT_EQ(fresh.store.squash("web@6")->chain, 2U) << step;
    EXPECT_TRUE(fresh.store.remove("web@5").ok()) << step;
    EXPECT_EQ(content_of(fresh.store, "web@6"), fresh.memory) << step;
  }
}

TEST(SquashFullDisk, FailsTypedAndLeavesTheDeltaAsItWas) {
  for (const std::uint64_t left : {0U, 1U, 4U, 200U}) {  // 200: the check of free space, which wants 1 MiB to spare
    const testing::TempDir dir;
    const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&]() -> std::string {
      TemplateStore store = *TemplateStore::open(dir.path());
      auto wanted = wanted_template("web");
      wanted.bytes_expected = kMiB;
      if (!store_template(store, wanted, test_memory(1))) return "template";
      if (!store_delta(store, delta_over("web"), kFirst) || !store_delta(store, delta_over("web@4"), kSecond))
        return "delta";
      const UniqueFd ballast = *open_file(dir.path() / "ballast", O_RDWR | O_CREAT);
      const std::vector<std::byte> block(kPageBytes, std::byte{1});
      std::uint64_t at = 0;
      for (; write_all(ballast.get(), block, at).ok();) at += kPageBytes;
      if (::ftruncate(ballast.get(), static_cast<off_t>(at - left * kPageBytes)) != 0) return "ftruncate";
      std::string bad = testing::not_exhausted(store.squash("web@5"), "squash");
      if (bad.empty() && entries_of(dir.path()) != (Names{"ballast", "web", "web@4", "web@5"}))
        bad = "something was left";
      if (bad.empty() && store.verify("web@5")->detail != "") bad = "damaged";
      if (bad.empty() && store.find("web@5")->chain != 3) bad = "squashed";
      return bad;
    });
    SKIP_OR_EXPECT_GOOD(wrong);
  }
}

}  // namespace
}  // namespace fvmm::memory
