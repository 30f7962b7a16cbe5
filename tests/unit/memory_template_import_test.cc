#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "support/stored_template.h"

namespace fvmm::memory {
namespace {

using testing::entries_of;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;

ino_t inode_of(const std::filesystem::path& path) {
  struct stat info {};
  EXPECT_EQ(::stat(path.c_str(), &info), 0);
  return info.st_ino;
}

class Import : public ::testing::Test {
 protected:
  testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "store");
  TemplateStore other = *TemplateStore::open(dir.path() / "other");
};

TEST_F(Import, SharesBlocksAndIdentityButNotPins) {
  const auto sealed = *store_template(store, wanted_template("web"), test_memory(1));
  const auto imported = other.import_linked(store.directory() / "web");
  ASSERT_TRUE(imported.ok()) << imported.error().message();
  EXPECT_EQ(imported->id, sealed.id);
  EXPECT_EQ(imported->digest, sealed.digest);
  EXPECT_EQ(imported->directory, other.directory() / "web");
  for (const char* file : {"memory", "hashes", "machine"}) {
    EXPECT_EQ(inode_of(store.directory() / "web" / file), inode_of(other.directory() / "web" / file)) << file;
  }
  EXPECT_NE(inode_of(store.directory() / "web" / "pin"), inode_of(other.directory() / "web" / "pin"));

  const auto pinned_here = *OpenTemplate::open(other.directory() / "web");
  EXPECT_TRUE(store.remove("web").ok());
  EXPECT_EQ(other.verify("web")->detail, "");
}

TEST_F(Import, RefusesATakenNameAndATakenId) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  ASSERT_TRUE(store_template(other, wanted_template("web"), test_memory(2)).ok());
  EXPECT_EQ(other.import_linked(store.directory() / "web").error().code(), Errc::kAlreadyExists);

  ASSERT_TRUE(other.remove("web").ok());
  ASSERT_TRUE(other.import_linked(store.directory() / "web").ok());
  std::filesystem::rename(other.directory() / "web", other.directory() / "renamed");
  const auto again = other.import_linked(store.directory() / "web");
  EXPECT_EQ(again.error().code(), Errc::kAlreadyExists);
  EXPECT_NE(again.error().message().find("renamed"), std::string::npos);
}

TEST_F(Import, RefusesADamagedTemplateAndLeavesNothing) {
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  const UniqueFd memory = *open_file(store.directory() / "web" / "memory", O_RDWR);
  ASSERT_EQ(::pwrite(memory.get(), "??", 2, kPageBytes), 2);
  const auto imported = other.import_linked(store.directory() / "web");
  ASSERT_FALSE(imported.ok());
  EXPECT_EQ(imported.error().code(), Errc::kDataLoss);
  EXPECT_NE(imported.error().message().find("page 1"), std::string::npos);
  EXPECT_TRUE(entries_of(other.directory()).empty());
}

TEST_F(Import, RefusesWhatIsNoTemplate) {
  EXPECT_EQ(other.import_linked(dir.path() / "nosuch").error().code(), Errc::kNotFound);
}

TEST_F(Import, AnotherFilesystemIsNamedAsSuch) {
  const testing::TempDir far("/dev/shm");
  struct stat here {};
  struct stat there {};
  ASSERT_EQ(::stat(dir.path().c_str(), &here), 0);
  ASSERT_EQ(::stat(far.path().c_str(), &there), 0);
  if (here.st_dev == there.st_dev) GTEST_SKIP() << "/tmp and /dev/shm are one filesystem";
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  TemplateStore far_store = *TemplateStore::open(far.path());
  const auto imported = far_store.import_linked(store.directory() / "web");
  ASSERT_FALSE(imported.ok());
  EXPECT_EQ(imported.error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(imported.error().sys_errno(), EXDEV);
  EXPECT_TRUE(entries_of(far.path()).empty());
}

}  // namespace
}  // namespace fvmm::memory
