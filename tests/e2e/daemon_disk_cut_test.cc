// Templates of VMs that write to disks: what a disk held at the instant is part of the template, and each clone has
// disks of its own. The guest remembers in its memory what each block of its disk must hold, so that a disk of another
// instant than the memory is found.
#include "disk/merge.h"
#include "support/disk_guest.h"

namespace fvmm::test {
namespace {

namespace fs = std::filesystem;

class DiskCut : public TwoHosts {
 protected:
  void SetUp() override {
    TwoHosts::SetUp();
    if (a_ == nullptr) return;  // skipped
    base_ = disk_image(cluster_.root() / "base");
    ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + layer() + ",base=" + base_}));
  }
  std::string path(const std::string& name) { return (cluster_.root() / name).string(); }
  std::string layer() { return path("web.layer"); }
  fs::path layers() { return layer() + ".layers"; }
  std::string stored(const std::string& name) { return (a_->state_directory() / "templates" / name).string(); }
  Ctl create(const std::string& name, const std::string& engine = "auto", const std::string& hook = "") {
    std::vector<std::string> words{"template", "create", name, "--from", "web", "--engine", engine};
    if (!hook.empty()) words.insert(words.end(), {"--test-hook", hook});
    return a_->ctl(words);
  }
  static Ctl clone(Host& host, const std::string& name, const std::string& from,
                   const std::vector<std::string>& more = {"--start"}) {
    std::vector<std::string> words{"vm", "clone", name, "--template", from};
    words.insert(words.end(), more.begin(), more.end());
    return host.ctl(words);
  }
  void expect_clone_runs(const std::string& name, const std::string& from) {
    const Ctl made = clone(*a_, name, from);
    ASSERT_EQ(made.code, 0) << made;
    EXPECT_TRUE(disk_guest_goes_on(*a_, name));
  }
  void remove(const std::string& vm) {
    ASSERT_EQ(a_->ctl({"vm", "stop", vm}).code, 0);
    ASSERT_EQ(a_->ctl({"vm", "rm", vm}).code, 0);
  }
  static void expect_refused(const Ctl& ctl, const std::string& text) {
    EXPECT_EQ(ctl.code, 1) << ctl;
    EXPECT_NE(ctl.err.find(text), std::string::npos) << ctl;
  }
  static std::size_t files_in(const fs::path& directory) {
    std::error_code error;
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory, error), {}));
  }
  /// The VM starts from its kernel and finds on its disk what it wrote.
  void expect_found_again(const std::string& vm = "web") {
    const std::size_t before = a_->serial(vm).size();
    const Ctl started = a_->ctl({"vm", "start", vm});
    ASSERT_EQ(started.code, 0) << started;
    ASSERT_TRUE(disk_guest_goes_on(*a_, vm));
    const std::string again = a_->serial(vm).substr(before);
    EXPECT_GT(field(again.substr(again.find("FVMM disk")), "old").value_or(0), 10U) << again;
  }
  std::string base_;
};

TEST_F(DiskCut, EachEngineKeepsTheDiskOfItsInstantAndClonesGoOnFromThere) {
  for (const std::string engine : {"cow", "chase", "stop", "chase"}) {
    const std::string name = engine + std::to_string(files_in(layers()));
    const Ctl made = create(name, engine);
    ASSERT_EQ(made.code, 0) << made;
    EXPECT_EQ(made.at("disks").as_array().size(), 1U);
    ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
    for (const auto* number : {"-1", "-2"}) {
      ASSERT_NO_FATAL_FAILURE(expect_clone_runs(name + number, name));
    }
    ASSERT_TRUE(disk_guest_goes_on(*a_, name + "-1")) << "beside its twin";
    for (const auto* number : {"-1", "-2"}) ASSERT_NO_FATAL_FAILURE(remove(name + number));
    EXPECT_TRUE(a_->ctl({"template", "verify", name}).at("good").as_bool());
  }
}

TEST_F(DiskCut, ManyInARowUnderLoadEachClonedAndEachWhole) {
  constexpr std::size_t kTemplates = disk::kMergedAt + 3;
  for (std::size_t i = 0; i < kTemplates; ++i) {
    const std::string name = "t" + std::to_string(i);
    const Ctl made = create(name);
    ASSERT_EQ(made.code, 0) << made;
    ASSERT_NO_FATAL_FAILURE(expect_clone_runs("of-" + name, name));
    ASSERT_NO_FATAL_FAILURE(remove("of-" + name));
  }
  EXPECT_EQ(files_in(layers()), kTemplates + 1 - disk::kMergedAt) << "many layers have become one";
  for (std::size_t i = 0; i < kTemplates; i += 6) {
    EXPECT_TRUE(a_->ctl({"template", "verify", "t" + std::to_string(i)}).at("good").as_bool());
  }
  ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  expect_found_again();
}

TEST_F(DiskCut, ACloneIsTemplatedAsAnyOther) {
  ASSERT_EQ(create("first").code, 0);
  ASSERT_NO_FATAL_FAILURE(expect_clone_runs("child", "first"));
  const Ctl second = a_->ctl({"template", "create", "second", "--from", "child"});
  ASSERT_EQ(second.code, 0) << second;
  ASSERT_NO_FATAL_FAILURE(expect_clone_runs("grandchild", "second"));
  ASSERT_TRUE(disk_guest_goes_on(*a_, "child"));
  EXPECT_EQ(a_->ctl({"template", "fold", "second"}).code, 0);
  EXPECT_TRUE(a_->ctl({"template", "verify", "second"}).at("good").as_bool());
  ASSERT_NO_FATAL_FAILURE(expect_clone_runs("other", "second"));
}

TEST_F(DiskCut, WhatATemplateSharedStaysWithItsVmsWhenItGoes) {
  ASSERT_EQ(create("gold").code, 0);
  ASSERT_EQ(clone(*a_, "child", "gold", {"--disk", "path=" + path("child.layer")}).code, 0);
  EXPECT_FALSE(fs::exists(path("child.layer"))) << "made when it starts";
  ASSERT_EQ(a_->ctl({"vm", "start", "child"}).code, 0);
  ASSERT_TRUE(disk_guest_goes_on(*a_, "child"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "child"}).code, 0);
  ASSERT_NO_FATAL_FAILURE(expect_found_again("child")) << "its template remembers another disk";
  ASSERT_EQ(a_->ctl({"vm", "stop", "child"}).code, 0);
  const std::size_t before = a_->serial("child").size();
  fs::remove(path("child.layer"));
  ASSERT_EQ(a_->ctl({"vm", "start", "child"}).code, 0);
  ASSERT_TRUE(disk_guest_goes_on(*a_, "child"));
  EXPECT_EQ(a_->serial("child").find("FVMM disk", before), std::string::npos) << "from its template again";
  ASSERT_NO_FATAL_FAILURE(remove("child"));
  EXPECT_TRUE(fs::exists(path("child.layer"))) << "a place that was named is its owner's";
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_EQ(a_->ctl({"template", "rm", "gold"}).code, 0);
  expect_found_again();
}

TEST_F(DiskCut, SeveralClonesAtOnceHavePlacesByNumber) {
  ASSERT_EQ(create("gold").code, 0);
  expect_refused(clone(*a_, "c", "gold", {"--disk", "path=/a", "--disk", "path=/b"}), "holds 1 disks, and 2 places");
  expect_refused(clone(*a_, "c", "gold", {"--disk", "path=/a,readonly"}), "only path=FILE and shared");
  const Ctl made = clone(*a_, "c", "gold", {"--count", "3", "--start", "--disk", "path=" + path("c%n.layer")});
  ASSERT_EQ(made.code, 0) << made;
  for (const auto* number : {"1", "2", "3"}) {
    EXPECT_TRUE(fs::exists(path("c" + std::string(number) + ".layer")));
    EXPECT_TRUE(disk_guest_goes_on(*a_, "c-" + std::string(number)));
  }
  expect_refused(clone(*a_, "d", "gold", {"--start", "--disk", "path=" + path("c1.layer")}), "is in use by VM c-1");
  expect_refused(clone(*a_, "d", "gold", {"--start", "--disk", "path=" + base_}), "disk");
  ASSERT_EQ(a_->ctl({"vm", "stop", "c-1"}).code, 0);
  expect_refused(clone(*a_, "d", "gold", {"--start", "--disk", "path=" + path("c1.layer")}), "is there already");
}

TEST_F(DiskCut, ARawDiskIsNotCut) {
  ASSERT_TRUE(boot_disk_guest(*a_, "raw", {"path=" + disk_image(cluster_.root() / "raw")}));
  expect_refused(a_->ctl({"template", "create", "gold", "--from", "raw"}), "which is raw");
  EXPECT_TRUE(disk_guest_goes_on(*a_, "raw"));
}

TEST_F(DiskCut, ATemplateThatFailsAfterItsInstantLeavesAVmThatGoesOn) {
  expect_refused(create("no", "auto", "fail:seal"), "test hook at step seal");
  ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
  EXPECT_EQ(files_in(layers()), 1U);
  ASSERT_EQ(create("gold").code, 0);
  ASSERT_NO_FATAL_FAILURE(expect_clone_runs("child", "gold"));
  ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
}

TEST_F(DiskCut, AWorkerThatDiesAfterTheInstantLeavesADiskThatIsWhole) {
  EXPECT_NE(create("no", "auto", "kill:seal").code, 0);
  ASSERT_TRUE(wait_until([&] { return a_->state("web") == "lost"; }));
  ASSERT_NO_FATAL_FAILURE(expect_found_again());
  ASSERT_EQ(create("silver").code, 0) << "what was left unsealed is sealed";
  ASSERT_EQ(create("gold").code, 0);
  EXPECT_TRUE(a_->ctl({"template", "verify", "gold"}).at("good").as_bool());
  ASSERT_NO_FATAL_FAILURE(expect_clone_runs("child", "gold"));
}

TEST_F(DiskCut, ALayerThatWasSpoiledIsNamed) {
  ASSERT_EQ(create("gold").code, 0);
  fs::path file;
  for (const auto& entry : fs::directory_iterator(stored("gold"))) {
    if (entry.path().filename().string().starts_with("layer-")) file = entry.path();
  }
  const UniqueFd fd = open_file(file, O_RDWR).value();
  const auto begin = static_cast<std::uint64_t>(::lseek(fd.get(), 64 * 1024, SEEK_DATA));
  ASSERT_TRUE(write_all(fd.get(), as_bytes("spoiled"), begin + 100).ok());
  const Ctl verified = a_->ctl({"template", "verify", "gold"});
  EXPECT_NE(verified.code, 0);
  EXPECT_NE((verified.out + verified.err).find(file.filename().string()), std::string::npos) << verified;
  const Ctl imported = b_->ctl({"template", "import", stored("gold"), "--link"});
  expect_refused(imported, "not what was sealed");
}

TEST_F(DiskCut, ATemplateThatIsImportedBringsItsDisks) {
  ASSERT_EQ(create("gold").code, 0);
  expect_refused(a_->ctl({"template", "push", "gold", "--to", b_->listen()}), "which a push does not carry");
  const Ctl imported = b_->ctl({"template", "import", stored("gold"), "--link"});
  ASSERT_EQ(imported.code, 0) << imported;
  ASSERT_EQ(clone(*b_, "child", "gold").code, 0);
  EXPECT_TRUE(disk_guest_goes_on(*b_, "child"));
}

// What a host keeps of a VM that has left is of memory alone: a start is from the kernel, and finds the disk as it is.
TEST_F(DiskCut, AVmThatCameBackStartsAgainFromItsKernel) {
  ASSERT_TRUE(boot_disk_guest(*a_, "sea", {"path=" + path("sea.layer") + ",base=" + base_ + ",shared"}));
  const Ctl made = a_->ctl({"template", "create", "gold", "--from", "sea"});
  ASSERT_EQ(made.code, 0) << made;
  const auto move = [](Host& from, Host& to) {
    return from.ctl({"migrate", "sea", "--to", to.listen(), "--mode", "suspend", "--max-downtime", "500ms"});
  };
  Ctl moved = move(*a_, *b_);
  ASSERT_EQ(moved.code, 0) << moved;
  ASSERT_TRUE(disk_guest_goes_on(*b_, "sea"));
  expect_refused(clone(*b_, "child", "gold"), "of memory alone");
  moved = move(*b_, *a_);
  ASSERT_EQ(moved.code, 0) << moved;
  ASSERT_TRUE(disk_guest_goes_on(*a_, "sea"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "sea"}).code, 0);
  expect_found_again("sea");
}

}  // namespace
}  // namespace fvmm::test
