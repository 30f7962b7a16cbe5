// The disks of a template: files that the store links and counts.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "memory/template_format.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::delta_over;
using testing::entries_of;
using testing::marked_page;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;

class TemplateDisks : public ::testing::Test {
 protected:
  /// A file that is no layer: the store does not look into it.
  DiskLayerFile layer(const std::string& content) {
    const DiskLayerFile out{.id = Id::random(), .file = dir_.path() / ("file-" + content)};
    EXPECT_TRUE(replace_file(out.file, content).ok());
    return out;
  }
  Result<TemplateInfo> store_with(const std::string& name, const std::vector<DiskCut>& cuts, int disks = 2) {
    auto wanted = wanted_template(name);
    for (int i = 0; i < disks; ++i) wanted.config.add_disks();
    TemplateWriter writer = FVMM_TRY(store_.begin(wanted));
    FVMM_TRY(writer.add_pages(0, test_memory(1)));
    FVMM_TRY(writer.set_machine_state(test_machine_state()));
    for (const DiskCut& cut : cuts) FVMM_TRY(writer.add_disk(cut));
    return writer.seal();
  }
  Result<TemplateInfo> delta_with(const std::string& parent, const DiskCut& cut) {
    auto wanted = delta_over(parent);
    for (int i = 0; i < 2; ++i) wanted.config.add_disks();
    TemplateWriter writer = FVMM_TRY(store_.begin_delta(wanted));
    FVMM_TRY(writer.add_pages(1, marked_page(7)));
    FVMM_TRY(writer.set_machine_state(test_machine_state()));
    FVMM_TRY(writer.add_disk(cut));
    return writer.seal();
  }
  void expect_holds(const std::string& name, const std::vector<DiskCut>& cuts) {
    const auto found = store_.find(name);
    ASSERT_TRUE(found.ok()) << found.error().message();
    ASSERT_EQ(found->disks.size(), cuts.size());
    for (std::size_t i = 0; i < cuts.size(); ++i) {
      EXPECT_EQ(found->disks[i].disk, cuts[i].disk);
      ASSERT_EQ(found->disks[i].layers.size(), cuts[i].layers.size());
      for (std::size_t j = 0; j < cuts[i].layers.size(); ++j) {
        EXPECT_EQ(found->disks[i].layers[j].id, cuts[i].layers[j].id);
        EXPECT_EQ(*read_file(found->disks[i].layers[j].file, kMiB), *read_file(cuts[i].layers[j].file, kMiB));
        EXPECT_EQ(inode(found->disks[i].layers[j].file), inode(cuts[i].layers[j].file)) << "linked, not copied";
      }
    }
  }
  static ino_t inode(const std::filesystem::path& path) {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return status.st_ino;
  }
  testing::TempDir dir_;
  TemplateStore store_ = *TemplateStore::open(dir_.path() / "store");
};

TEST_F(TemplateDisks, AreLinkedAndFoundInTheirOrder) {
  const DiskLayerFile base = layer("base"), one = layer("one"), two = layer("two");
  const std::vector<DiskCut> cuts = {{.disk = 0, .layers = {one, base}}, {.disk = 1, .layers = {two, base}}};
  const auto made = store_with("web", cuts);
  ASSERT_TRUE(made.ok()) << made.error().message();
  expect_holds("web", cuts);
  EXPECT_EQ(entries_of(store_.directory() / "web").size(), 5U + 3U) << "one link for the layer that both have";
  ASSERT_TRUE(store_.remove("web").ok());
  EXPECT_TRUE(read_file(one.file, kMiB).ok()) << "its VM still has it";
}

TEST_F(TemplateDisks, StayThroughFoldSquashAndImport) {
  const DiskLayerFile base = layer("base"), one = layer("one"), two = layer("two");
  ASSERT_TRUE(store_with("web", {{.disk = 1, .layers = {base}}}).ok());
  ASSERT_TRUE(delta_with("web", {.disk = 1, .layers = {one, base}}).ok());
  ASSERT_TRUE(delta_with("web@4", {.disk = 1, .layers = {two, one, base}}).ok());
  ASSERT_TRUE(store_.squash("web@5").ok());
  expect_holds("web@5", {{.disk = 1, .layers = {two, one, base}}});
  ASSERT_TRUE(store_.fold("web@4").ok());
  expect_holds("web@4", {{.disk = 1, .layers = {one, base}}});
  auto other = *TemplateStore::open(dir_.path() / "other");
  const auto imported = other.import_linked(store_.directory() / "web@4");
  ASSERT_TRUE(imported.ok()) << imported.error().message();
  ASSERT_EQ(imported->disks.size(), 1U);
  EXPECT_EQ(inode(imported->disks[0].layers[0].file), inode(one.file));
}

TEST_F(TemplateDisks, AFileThatIsMissingOrOfAnotherLengthIsDamage) {
  const DiskLayerFile one = layer("one");
  const auto made = store_with("web", {{.disk = 0, .layers = {one}}});
  ASSERT_TRUE(made.ok());
  const auto file = made->disks[0].layers[0].file;
  ASSERT_EQ(::truncate(file.c_str(), 2), 0);
  EXPECT_EQ(store_.find("web").error().code(), Errc::kDataLoss);
  std::filesystem::remove(file);
  EXPECT_EQ(store_.find("web").error().code(), Errc::kDataLoss);
  EXPECT_TRUE(store_.remove("web").ok());
}

TEST_F(TemplateDisks, ComeInTheirOrderEachOnceAndBelongToTheVm) {
  const DiskLayerFile one = layer("one");
  const auto code = [&](const std::vector<DiskCut>& cuts, int disks = 2) {
    const auto made = store_with("web", cuts, disks);
    EXPECT_FALSE(made.ok());
    return made.ok() ? Errc::kUnknown : made.error().code();
  };
  EXPECT_EQ(code({{.disk = 1, .layers = {one}}, {.disk = 0, .layers = {one}}}), Errc::kAlreadyExists);
  EXPECT_EQ(code({{.disk = 0, .layers = {one}}, {.disk = 0, .layers = {one}}}), Errc::kAlreadyExists);
  EXPECT_EQ(code({{.disk = 0, .layers = {{.id = Id::random(), .file = dir_.path() / "none"}}}}), Errc::kIo);
  EXPECT_EQ(code({{.disk = 2, .layers = {one}}}), Errc::kInvalidArgument) << "its VM has two";
  EXPECT_EQ(code({{.disk = 0, .layers = {}}}), Errc::kInvalidArgument);
  EXPECT_TRUE(store_.list()->empty());
  EXPECT_TRUE(entries_of(store_.directory()).empty()) << "nothing is left of them";
}

TEST_F(TemplateDisks, AManifestThatHoldsDisksHasAVersionOfItsOwn) {
  const auto with = store_with("with", {{.disk = 0, .layers = {layer("one")}}});
  ASSERT_TRUE(with.ok());
  EXPECT_EQ(read_file(with->directory / "manifest", kMiB)->at(8), static_cast<char>(kDisksVersion));
  const auto without = store_with("without", {});
  ASSERT_TRUE(without.ok());
  EXPECT_EQ(read_file(without->directory / "manifest", kMiB)->at(8), 1) << "older programs read it";
}

}  // namespace
}  // namespace fvmm::memory
