#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "memory/template_format.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::delta_over;
using testing::store_delta;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;

bool is_damage(const Error& error) {
  return error.code() == Errc::kDataLoss || error.code() == Errc::kFailedPrecondition;
}

/// web <- web@4 <- web@5; a test spoils files of web@4.
class DeltaDamage : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
    ASSERT_TRUE(store_delta(store, delta_over("web"), {{1, 0x101}, {2, 0}, {100, 0x202}}).ok());
    ASSERT_TRUE(store_delta(store, delta_over("web@4"), {{3, 1}}).ok());
  }
  [[nodiscard]] std::filesystem::path file(const char* name) const { return store.directory() / "web@4" / name; }
  void put(const char* name, std::string_view content) const {
    const UniqueFd fd = *open_file(file(name), O_RDWR | O_TRUNC);
    ASSERT_TRUE(write_all(fd.get(), as_bytes(content), 0).ok());
  }
  /// Opening the delta above it fails, typed, and says which generation is the reason.
  void expect_refused_from_above(const std::string& what) const {
    const auto above = OpenTemplate::open(store.directory() / "web@5");
    ASSERT_FALSE(above.ok()) << what;
    EXPECT_TRUE(is_damage(above.error())) << what << ": " << above.error().message();
    EXPECT_NE(above.error().message().find("web@4"), std::string::npos) << what << ": " << above.error().message();
  }

  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
};

TEST_F(DeltaDamage, OnlyDeltasNeedAReaderOfVersion2) {
  EXPECT_EQ((*read_file(store.directory() / "web" / "manifest", kMiB))[8], 1);
  EXPECT_EQ((*read_file(file("manifest"), kMiB))[8], 2);
  EXPECT_EQ((*read_file(file("hashes"), kMiB))[8], 1);
}

TEST_F(DeltaDamage, EveryByteOfTheManifestCounts) {
  const std::string good = *read_file(file("manifest"), kMiB);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    put("manifest", bad);
    const auto opened = OpenTemplate::open(store.directory() / "web@4");
    ASSERT_FALSE(opened.ok()) << at;
    EXPECT_TRUE(is_damage(opened.error())) << at << ": " << opened.error().message();
  }
  expect_refused_from_above("manifest");
}

TEST_F(DeltaDamage, EveryByteOfTheHashesIsSeenWhenItIsOpened) {
  const std::string good = *read_file(file("hashes"), kMiB);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    put("hashes", bad);
    expect_refused_from_above("hashes " + std::to_string(at));
  }
}

TEST_F(DeltaDamage, VerifyNamesChangedPagesAndZeroPagesThatAreNot) {
  const UniqueFd pages = *open_file(file("pages"), O_RDWR);
  ASSERT_EQ(::pwrite(pages.get(), "?", 1, kPageBytes + 7), 1);  // page 2, which is zero
  ASSERT_EQ(::pwrite(pages.get(), "?", 1, 2 * kPageBytes), 1);  // page 100
  const auto report = store.verify("web@4");
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->bad, (std::vector<PageIndex>{2, 100}));
  EXPECT_EQ(report->pages_bad, 2U);
  EXPECT_EQ(report->pages_checked, 3U);
  EXPECT_EQ(store.verify("web@5")->detail, "");  // its own pages are good
}

TEST_F(DeltaDamage, MissingAndShortFilesAreTypedAndNamed) {
  for (const char* name : {"pages", "hashes", "machine"}) {
    std::filesystem::rename(file(name), dir.path() / "away");
    expect_refused_from_above(name);
    std::filesystem::rename(dir.path() / "away", file(name));
    const std::string good = *read_file(file(name), kMiB);
    put(name, good.substr(0, good.size() - 1));
    expect_refused_from_above(name);
    put(name, good);
  }
  EXPECT_TRUE(OpenTemplate::open(store.directory() / "web@5").ok());
}

// Hashes and pages agree with each other, but not with the digest that peers compare.
TEST_F(DeltaDamage, DigestIsComputedFromTheParents) {
  auto manifest = *decode_manifest(*read_file(file("manifest"), kMiB));
  manifest.set_digest(Id::random().raw());
  put("manifest", encode_manifest(manifest));
  const auto report = store.verify("web@4");
  ASSERT_TRUE(report.ok());
  EXPECT_NE(report->detail.find("digest"), std::string::npos) << report->detail;
  expect_refused_from_above("digest");  // and it is no longer the parent of web@5
}

TEST_F(DeltaDamage, WellSealedNonsenseInTheManifestIsRefused) {
  const auto good = *decode_manifest(*read_file(file("manifest"), kMiB));
  ASSERT_TRUE(store.fold("web@4").ok());
  const auto folded = *decode_manifest(*read_file(file("manifest"), kMiB));
  const auto refused = [](v1::TemplateManifest bad, auto spoil) {
    spoil(bad);
    const auto decoded = decode_manifest(encode_manifest(bad));
    return !decoded.ok() && is_damage(decoded.error());
  };
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_parent_digest(Digest{}.raw()); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.clear_parent_digest(); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_parent_id(Id{}.raw()); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_parent_id("short"); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.clear_parent_name(); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_parent_name("../web"); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_runs(m.memory_bytes() / kPageBytes + 1); }));
  EXPECT_TRUE(refused(good, [](auto& m) { m.set_kind(v1::TEMPLATE_BASE); }));  // a base that was no delta has no parent
  EXPECT_TRUE(refused(folded, [](auto& m) { m.mutable_delta()->set_bytes(47); }));
  EXPECT_TRUE(refused(folded, [](auto& m) { m.mutable_delta()->set_bytes(~0ULL); }));
  EXPECT_TRUE(refused(folded, [](auto& m) { m.mutable_delta()->clear_checksum(); }));
}

}  // namespace
}  // namespace fvmm::memory
