#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::names_of;
using testing::store_delta;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;

using Names = std::vector<std::string>;

bool keep_none(const TemplateInfo&) {
  return false;
}

/// web <- web@4 <- web@5, and other@7 on web, too.
class Gc : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
    ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 1}}).ok());
    ASSERT_TRUE(store_delta(store, delta_over("web@4"), {{2, 1}}).ok());
    auto other = delta_over("web");
    other.name = "other@7";
    ASSERT_TRUE(store_delta(store, other, {{3, 1}}).ok());
  }
  [[nodiscard]] std::filesystem::path place(const std::string& name) const { return store.directory() / name; }

  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
};

TEST_F(Gc, RemovesWholeLinesAndKeepsWhatPeopleNamed) {
  std::uint64_t stored = 0;
  const auto before = *store.list();
  for (const auto& info : before) stored += info.name == "web" ? 0 : info.stored_bytes;
  const auto collected = store.gc(keep_none);
  ASSERT_TRUE(collected.ok()) << collected.error().message();
  EXPECT_EQ(names_of(collected->removed), (Names{"web@5", "other@7", "web@4"}));
  EXPECT_EQ(collected->bytes_freed, stored);
  EXPECT_EQ(entries_of(store.directory()), Names{"web"});
}

TEST_F(Gc, KeepsWhatIsWantedAndAllBelowIt) {
  const auto collected = store.gc([](const TemplateInfo& info) { return info.name == "web@5"; });
  ASSERT_TRUE(collected.ok());
  EXPECT_EQ(names_of(collected->removed), Names{"other@7"});
  EXPECT_EQ(names_of(*store.list()), (Names{"web", "web@4", "web@5"}));
}

TEST_F(Gc, KeepsWhatIsPinned) {
  const auto pinned = *OpenTemplate::open(place("web@4"));
  EXPECT_EQ(names_of(store.gc(keep_none)->removed), (Names{"web@5", "other@7"}));
  EXPECT_EQ(names_of(*store.list()), (Names{"web", "web@4"}));
}

TEST_F(Gc, AFoldReleasesWhatLiesBelow) {
  ASSERT_TRUE(store.fold("web@5").ok());
  const auto before = content_of(store, "web@5");
  const auto collected = store.gc([](const TemplateInfo& info) { return info.name == "web@5"; });
  EXPECT_EQ(names_of(collected->removed).size(), 2U);
  EXPECT_EQ(names_of(*store.list()), (Names{"web", "web@5"}));
  EXPECT_EQ(content_of(store, "web@5"), before);
}

TEST_F(Gc, RemoveNamesTheDescendant) {
  const Status removed = store.remove("web@4");
  ASSERT_FALSE(removed.ok());
  EXPECT_EQ(removed.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(removed.error().message().find("\"web@5\" descends"), std::string::npos) << removed.error().message();
  EXPECT_EQ(content_of(store, "web@5").size(), testing::kTestMemoryBytes);
}

// What cannot be read may descend from anything: only plain damage may not stand in the way.
TEST_F(Gc, AGenerationOfTheFutureProtectsAllOthers) {
  const UniqueFd manifest = *open_file(place("other@7") / "manifest", O_RDWR);
  ASSERT_EQ(::pwrite(manifest.get(), "\x09", 1, 8), 1);
  EXPECT_TRUE(store.gc(keep_none)->removed.empty());
  EXPECT_EQ(store.remove("web@5").error().code(), Errc::kFailedPrecondition);
  ASSERT_EQ(::pwrite(manifest.get(), "????????", 8, 0), 8);
  EXPECT_EQ(names_of(store.gc(keep_none)->removed), (Names{"web@5", "web@4"}));
}

TEST_F(Gc, ADamagedParentIsNotRemovedUnderItsDelta) {
  const UniqueFd manifest = *open_file(place("web@4") / "manifest", O_RDWR);
  ASSERT_EQ(::pwrite(manifest.get(), "????????", 8, 0), 8);
  EXPECT_EQ(OpenTemplate::open(place("web@5")).error().code(), Errc::kDataLoss);
  EXPECT_EQ(store.remove("web@4").error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(store.remove("web@5").ok());
  EXPECT_TRUE(store.remove("web@4").ok());
}

TEST_F(Gc, ListShowsTheLines) {
  const auto all = *store.list();
  ASSERT_EQ(names_of(all), (Names{"other@7", "web", "web@4", "web@5"}));
  EXPECT_EQ(all[0].chain, 2U);
  EXPECT_EQ(all[1].chain, 1U);
  EXPECT_EQ(all[3].chain, 3U);
  EXPECT_EQ(all[3].runs, 2U);
  EXPECT_EQ(all[3].parent_name, "web@4");
  EXPECT_TRUE(all[3].is_delta());
}

class ImportDelta : public Gc {
 protected:
  TemplateStore other = *TemplateStore::open(dir.path() / "other");
};

TEST_F(ImportDelta, WantsItsParentFirst) {
  const auto early = other.import_linked(place("web@4"));
  ASSERT_FALSE(early.ok());
  EXPECT_EQ(early.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(early.error().message().find("parent \"web\""), std::string::npos) << early.error().message();
  EXPECT_TRUE(entries_of(other.directory()).empty());
  for (const std::string name : {"web", "web@4", "web@5"}) {
    const auto imported = other.import_linked(place(name));
    ASSERT_TRUE(imported.ok()) << imported.error().message();
  }
  EXPECT_EQ(other.find("web@5")->chain, 3U);
  EXPECT_EQ(content_of(other, "web@5"), content_of(store, "web@5"));
  EXPECT_EQ(other.verify("web@5")->detail, "");
}

TEST_F(ImportDelta, RefusesADamagedOne) {
  ASSERT_TRUE(other.import_linked(place("web")).ok());
  const UniqueFd pages = *open_file(place("web@4") / "pages", O_RDWR);
  ASSERT_EQ(::pwrite(pages.get(), "??", 2, 100), 2);
  const auto imported = other.import_linked(place("web@4"));
  ASSERT_FALSE(imported.ok());
  EXPECT_EQ(imported.error().code(), Errc::kDataLoss);
  EXPECT_NE(imported.error().message().find("page 1"), std::string::npos) << imported.error().message();
}

}  // namespace
}  // namespace fvmm::memory
