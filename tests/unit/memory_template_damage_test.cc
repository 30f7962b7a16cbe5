#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "memory/template_format.h"
#include "memory/template_verify.h"
#include "support/stored_template.h"

namespace fvmm::memory {
namespace {

using testing::kTestMemoryBytes;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;

bool is_damage(const Error& error) {
  return error.code() == Errc::kDataLoss || error.code() == Errc::kFailedPrecondition;
}

/// One stored template whose files a test may spoil.
class Damage : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
    ASSERT_EQ(store.verify("web")->detail, "");
  }
  [[nodiscard]] std::filesystem::path file(const char* name) const { return store.directory() / "web" / name; }
  void put(const char* name, std::string_view content) const {
    const UniqueFd fd = *open_file(file(name), O_RDWR | O_TRUNC);
    ASSERT_TRUE(write_all(fd.get(), as_bytes(content), 0).ok());
  }
  void truncate(const char* name, std::uint64_t bytes) const {
    ASSERT_EQ(::truncate(file(name).c_str(), static_cast<off_t>(bytes)), 0);
  }

  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
};

TEST_F(Damage, EveryByteOfTheManifestCounts) {
  const std::string good = *read_file(file("manifest"), kMiB);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    put("manifest", bad);
    const auto opened = OpenTemplate::open(store.directory() / "web");
    ASSERT_FALSE(opened.ok()) << at;
    EXPECT_TRUE(is_damage(opened.error())) << at << ": " << opened.error().message();
  }
}

TEST_F(Damage, EveryLengthOfTheManifestCounts) {
  const std::string good = *read_file(file("manifest"), kMiB);
  for (std::size_t bytes = 0; bytes < good.size(); ++bytes) {
    put("manifest", good.substr(0, bytes));
    EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kDataLoss) << bytes;
  }
  put("manifest", good + "x");
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kDataLoss);
  put("manifest", std::string(kManifestBytesMax + 1, 'x'));
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kDataLoss);
}

TEST_F(Damage, DamagedManifestIsLeftOutOfTheListAndCanBeRemoved) {
  put("manifest", "nonsense");
  EXPECT_TRUE(store.list()->empty());
  EXPECT_EQ(store.find("web").error().code(), Errc::kDataLoss);
  EXPECT_EQ(store.verify("web").error().code(), Errc::kDataLoss);
  EXPECT_TRUE(store.remove("web").ok());
}

TEST_F(Damage, VersionOfTheFutureIsNamed) {
  std::string manifest = *read_file(file("manifest"), kMiB);
  manifest[8] = 5;  // the version, right after the magic
  put("manifest", manifest);
  const auto opened = OpenTemplate::open(store.directory() / "web");
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(opened.error().message().find("version 5"), std::string::npos) << opened.error().message();
}

TEST_F(Damage, EveryByteOfTheHashesCounts) {
  const std::string good = *read_file(file("hashes"), kMiB);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    put("hashes", bad);
    const auto report = store.verify("web");
    ASSERT_TRUE(report.ok()) << at;
    EXPECT_NE(report->detail, "") << at;
  }
}

TEST_F(Damage, EveryByteOfTheMachineStateCounts) {
  const std::string good = *read_file(file("machine"), kMiB);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    put("machine", bad);
    const auto opened = OpenTemplate::open(store.directory() / "web");
    ASSERT_TRUE(opened.ok()) << at;
    const auto state = opened->machine_state();
    ASSERT_FALSE(state.ok()) << at;
    EXPECT_EQ(state.error().code(), Errc::kDataLoss) << at;
    EXPECT_NE(store.verify("web")->detail, "") << at;
  }
}

TEST_F(Damage, MachineStateOfAnotherTemplateIsRefused) {
  v1::MachineState other;
  other.add_vcpus()->set_regs("REGISTERS");  // the same length, whole in itself
  other.set_version(1);
  put("machine", *encode_machine(other));
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web")->machine_state().error().code(), Errc::kDataLoss);
}

TEST_F(Damage, MissingFileIsTypedAndNamed) {
  for (const char* name : {"memory", "hashes", "machine"}) {
    std::filesystem::rename(file(name), dir.path() / "away");
    const auto opened = OpenTemplate::open(store.directory() / "web");
    ASSERT_FALSE(opened.ok());
    EXPECT_EQ(opened.error().code(), Errc::kDataLoss);
    EXPECT_NE(opened.error().message().find(name), std::string::npos) << opened.error().message();
    std::filesystem::rename(dir.path() / "away", file(name));
  }
  EXPECT_EQ(store.verify("web")->detail, "");
}

TEST_F(Damage, MissingManifestMeansNotATemplate) {
  std::filesystem::remove(file("manifest"));
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kNotFound);
  EXPECT_TRUE(store.list()->empty());
  EXPECT_TRUE(store.remove("web").ok());
}

TEST_F(Damage, MissingPinFileRefusesUseButNotRemoval) {
  std::filesystem::remove(file("pin"));
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kDataLoss);
  EXPECT_TRUE(store.remove("web").ok());
}

TEST_F(Damage, TruncatedOrGrownFilesAreSeenWithoutReadingThem) {
  for (const char* name : {"memory", "hashes", "machine"}) {
    const std::uint64_t bytes = std::filesystem::file_size(file(name));
    for (const std::uint64_t wrong : {bytes - 1, bytes + 1}) {
      const std::string good = *read_file(file(name), kGiB);
      truncate(name, wrong);
      const auto opened = OpenTemplate::open(store.directory() / "web");
      ASSERT_FALSE(opened.ok()) << name;
      EXPECT_EQ(opened.error().code(), Errc::kDataLoss);
      put(name, good);
    }
  }
  EXPECT_EQ(store.verify("web")->detail, "");
}

TEST_F(Damage, SymlinkInPlaceOfAFileIsRefused) {
  std::filesystem::rename(file("machine"), dir.path() / "machine");
  std::filesystem::create_symlink(dir.path() / "machine", file("machine"));
  EXPECT_EQ(OpenTemplate::open(store.directory() / "web").error().code(), Errc::kDataLoss);
}

TEST_F(Damage, VerifyNamesTheChangedPage) {
  const UniqueFd memory = *open_file(file("memory"), O_RDWR);
  ASSERT_EQ(::pwrite(memory.get(), "?", 1, 10 * kPageBytes + 4095), 1);
  const auto report = store.verify("web");
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->pages_bad, 1U);
  EXPECT_EQ(report->bad, std::vector<PageIndex>{10});
  EXPECT_NE(report->detail.find("page 10"), std::string::npos) << report->detail;
  EXPECT_EQ(report->pages_checked, kTestMemoryBytes / kPageBytes);
}

TEST_F(Damage, VerifyNamesAPageThatShouldBeAHole) {
  const UniqueFd memory = *open_file(file("memory"), O_RDWR);
  ASSERT_EQ(::pwrite(memory.get(), "?", 1, 2000 * kPageBytes), 1);
  EXPECT_EQ(store.verify("web")->bad, std::vector<PageIndex>{2000});
}

TEST_F(Damage, VerifyNamesAPageThatBecameAHole) {
  const UniqueFd memory = *open_file(file("memory"), O_RDWR);
  ASSERT_EQ(::fallocate(memory.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kPageBytes, kPageBytes), 0);
  EXPECT_EQ(store.verify("web")->bad, std::vector<PageIndex>{1});
}

TEST_F(Damage, ZerosWrittenIntoAHoleAreNoDamage) {
  const UniqueFd memory = *open_file(file("memory"), O_RDWR);
  ASSERT_TRUE(write_all(memory.get(), std::vector<std::byte>(kPageBytes), 100 * kPageBytes).ok());
  EXPECT_EQ(store.verify("web")->detail, "");
}

TEST_F(Damage, VerifyListsAThousandPagesAndCountsTheRest) {
  const UniqueFd memory = *open_file(file("memory"), O_RDWR);
  ASSERT_TRUE(write_all(memory.get(), std::vector<std::byte>(1001 * kPageBytes, std::byte{1}), 100 * kPageBytes).ok());
  const auto report = store.verify("web");
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->pages_bad, 1001U);
  EXPECT_EQ(report->bad.size(), 1000U);
  EXPECT_EQ(report->bad.front(), 100U);
}

// The file shrinks after it was opened: each page that cannot be read is bad, the others are still checked.
TEST_F(Damage, UnreadablePagesAreCountedOneByOne) {
  const auto manifest = decode_manifest(*read_file(file("manifest"), kMiB));
  ASSERT_TRUE(manifest.ok());
  const UniqueFd hashes = *open_file(file("hashes"), O_RDONLY);
  const UniqueFd memory = *open_file(file("memory"), O_RDONLY);
  truncate("memory", 2 * kPageBytes);
  const auto report = verify_memory(memory.get(), hashes.get(), *manifest);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(report->bad, (std::vector<PageIndex>{2, 10, kTestMemoryBytes / kPageBytes - 1}));
}

// Hashes and pages agree with each other, but not with the digest that peers compare.
TEST_F(Damage, DigestIsComparedWithTheChain) {
  auto manifest = *decode_manifest(*read_file(file("manifest"), kMiB));
  manifest.set_digest(Id::random().raw());
  put("manifest", encode_manifest(manifest));
  const auto report = store.verify("web");
  ASSERT_TRUE(report.ok());
  EXPECT_NE(report->detail.find("digest"), std::string::npos) << report->detail;
  EXPECT_EQ(report->pages_bad, 0U);
}

TEST_F(Damage, WellSealedNonsenseInTheManifestIsRefused) {
  const auto good = *decode_manifest(*read_file(file("manifest"), kMiB));
  const auto refused = [&](auto spoil) {
    v1::TemplateManifest bad = good;
    spoil(bad);
    const auto decoded = decode_manifest(encode_manifest(bad));
    return !decoded.ok() && is_damage(decoded.error());
  };
  EXPECT_TRUE(refused([](auto& m) { m.set_kind(v1::TEMPLATE_KIND_NONE); }));
  EXPECT_TRUE(refused([](auto& m) { m.set_id("short"); }));
  EXPECT_TRUE(refused([](auto& m) { m.set_id(Id{}.raw()); }));
  EXPECT_TRUE(refused([](auto& m) { m.clear_digest(); }));
  EXPECT_TRUE(refused([](auto& m) { m.clear_parent_digest(); }));
  EXPECT_TRUE(refused([](auto& m) { m.set_memory_bytes(kRamBytesMax + kPageBytes); }));
  EXPECT_TRUE(refused([](auto& m) { m.set_memory_bytes(kTestMemoryBytes + 1); }));
  EXPECT_TRUE(refused([](auto& m) { m.set_pages(kTestMemoryBytes / kPageBytes + 1); }));
  EXPECT_TRUE(refused([](auto& m) { m.mutable_hashes()->set_bytes(1); }));
  EXPECT_TRUE(refused([](auto& m) { m.mutable_hashes()->clear_checksum(); }));
  EXPECT_TRUE(refused([](auto& m) { m.mutable_machine()->set_bytes(kMachineBytesMax + 1); }));
  EXPECT_TRUE(refused([](auto& m) { m.clear_machine(); }));
}

}  // namespace
}  // namespace fvmm::memory
