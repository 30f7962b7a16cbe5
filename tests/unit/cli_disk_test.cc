// --disk: its words, and what is said of the others.
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/disk_option.h"

namespace fvmm::cli {
namespace {

TEST(CliDisk, TakesItsWordsInAnyOrderAndMakesPathsAbsolute) {
  const auto disk = parse_disk("shared,id=root,base=/b/../base,path=top");
  ASSERT_TRUE(disk.ok()) << disk.error().message();
  EXPECT_EQ(disk->path(), (std::filesystem::current_path() / "top").string());
  EXPECT_EQ(disk->base(), "/base");
  EXPECT_EQ(disk->id(), "root");
  EXPECT_TRUE(disk->shared());
  EXPECT_FALSE(disk->readonly());
  EXPECT_TRUE(parse_disk("path=/a,readonly")->readonly());
}

TEST(CliDisk, SaysWhatIsMissingTwiceOrNotKnown) {
  for (const auto& [text, wanted] :
       std::initializer_list<std::pair<const char*, const char*>>{{"", "there are path=FILE"},
                                                                  {"readonly", "path=FILE is missing"},
                                                                  {"/a", "there are path=FILE"},
                                                                  {"path", "there are path=FILE"},
                                                                  {"path=", "has no value"},
                                                                  {"path=/a,path=/b", "is there twice"},
                                                                  {"path=/a,", "there are path=FILE"},
                                                                  {"path=/a,readonly=1", "there are path=FILE"},
                                                                  {"path=/a,size=1G", "\"size=1G\""}}) {
    const auto disk = parse_disk(text);
    ASSERT_FALSE(disk.ok()) << text;
    EXPECT_EQ(disk.error().code(), Errc::kInvalidArgument);
    EXPECT_NE(disk.error().message().find(wanted), std::string::npos) << text << ": " << disk.error().message();
  }
}

TEST(CliDisk, PrintsWhatADiskIs) {
  EXPECT_EQ(disk_text(*parse_disk("path=/a")), "/a");
  EXPECT_EQ(disk_text(*parse_disk("path=/a,base=/b,shared,id=x")), "/a over /b, shared, id x");
  EXPECT_EQ(disk_text(*parse_disk("path=/a,readonly")), "/a, readonly");
}

}  // namespace
}  // namespace fvmm::cli
