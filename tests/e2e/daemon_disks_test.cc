// VMs with disks under real daemons: a guest of ours writes its disks, reads them back, and knows what they must hold.
#include "disk/lock.h"
#include "support/disk_guest.h"

namespace fvmm::test {
namespace {

class DaemonDisks : public TwoHosts {
 protected:
  std::string image(const std::string& name) { return disk_image(cluster_.root() / name); }
  std::string path(const std::string& name) { return (cluster_.root() / name).string(); }
  static Ctl create(Host& host, const std::string& vm, const std::vector<std::string>& disks, bool start = false) {
    std::vector<std::string> words{"vm", "create", vm, "--memory", "32M", "--kernel", guest("blk.elf")};
    for (const std::string& disk : disks) words.insert(words.end(), {"--disk", disk});
    if (start) words.emplace_back("--start");
    return host.ctl(words);
  }
  static void expect_refused(const Ctl& ctl, const std::string& text) {
    EXPECT_EQ(ctl.code, 1) << ctl;
    EXPECT_NE(ctl.err.find(text), std::string::npos) << ctl;
  }
  void migrate(Host& from, Host& to, const std::string& mode, const std::string& hook = "", int code = 0) {
    std::vector<std::string> words{"migrate", "web", "--to", to.listen(), "--mode", mode, "--max-downtime", "500ms"};
    if (!hook.empty()) words.insert(words.end(), {"--test-hook", hook});
    const Ctl moved = from.ctl(words);
    ASSERT_EQ(moved.code, code) << moved;
  }
  void expect_goes_there_and_back(const std::string& disk) {
    ASSERT_TRUE(boot_disk_guest(*a_, "web", {disk}));
    for (const auto* mode : {"suspend", "live"}) {
      ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, mode));
      EXPECT_TRUE(disk_guest_goes_on(*b_, "web"));
      expect_refused(create(*a_, "thief", {disk}, true), "is in use by process ");
      ASSERT_NO_FATAL_FAILURE(migrate(*b_, *a_, mode));
      EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
    }
  }
  /// Whether nobody has the file locked.
  static bool is_free(const std::string& file) {
    const UniqueFd fd = open_file(file, O_RDWR).value();
    return !disk::FileLock::of(fd.get(), file)->taken_by_another(disk::LockKind::kOneWriter).value();
  }
};

TEST_F(DaemonDisks, AGuestFindsWhatItWroteAfterAStopAndItsFileIsFreeMeanwhile) {
  const std::string file = image("disk");
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + file + ",id=first"}));
  ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
  EXPECT_NE(a_->serial("web").find("FVMM disk slot=0 sectors=4096 old=0 "), std::string::npos) << a_->serial("web");
  EXPECT_FALSE(is_free(file));
  const auto disks = a_->vm("web").at("config").at("disks").as_array();
  ASSERT_EQ(disks.size(), 1U);
  EXPECT_EQ(disks[0].at("path").as_string(), file);
  EXPECT_EQ(disks[0].at("id").as_string(), "first");

  ASSERT_EQ(a_->ctl({"vm", "pause", "web"}).code, 0);
  EXPECT_FALSE(is_free(file)) << "a VM that is paused has its disks";
  ASSERT_EQ(a_->ctl({"vm", "resume", "web"}).code, 0);
  ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_TRUE(is_free(file));
  const std::size_t before = a_->serial("web").size();
  ASSERT_EQ(a_->ctl({"vm", "start", "web"}).code, 0);
  ASSERT_TRUE(disk_guest_goes_on(*a_, "web"));
  const std::string again = a_->serial("web").substr(before);
  const auto old = field(again.substr(again.find("FVMM disk")), "old");
  EXPECT_GT(old.value_or(0), 10U) << again;
}

TEST_F(DaemonDisks, LayersOverOneBaseKeepTheirOwnAndLeaveTheBaseAlone) {
  const std::string base = image("base");
  const std::string before = read_text(base);
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + path("web.layer") + ",base=" + base}));
  ASSERT_TRUE(boot_disk_guest(*a_, "other", {"path=" + path("other.layer") + ",base=" + base}, "seed=8 rate=500"));
  EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
  EXPECT_TRUE(disk_guest_goes_on(*a_, "other"));
  EXPECT_EQ(read_text(base), before);
  expect_refused(create(*a_, "writer", {"path=" + base}, true), "base is in use by VM ");
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_EQ(a_->ctl({"vm", "start", "web"}).code, 0);
  EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
  EXPECT_NE(a_->serial("web").rfind(" old=0 "), a_->serial("web").rfind(" old=")) << "the layer was kept";
}

TEST_F(DaemonDisks, SeveralDisksComeInTheirOrderBehindTheOtherDevices) {
  ASSERT_EQ(a_->ctl({"vm", "create", "web", "--memory", "32M", "--kernel", guest("blk.elf"), "--rng", "--disk",
                     "path=" + disk_image(cluster_.root() / "first", 1 << 20), "--disk",
                     "path=" + disk_image(cluster_.root() / "second", 3 << 20), "--cmdline", "beat=50", "--start"})
                .code,
            0);
  ASSERT_TRUE(a_->serial_contains("web", "FVMM disk slot=1 sectors=2048 "));
  EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
}

TEST_F(DaemonDisks, AReadonlyDiskServesManyAndIsNeverWritten) {
  const std::string file = image("disk");
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + file}));
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  const std::string before = read_text(file);
  for (const auto* vm : {"one", "two"}) {
    ASSERT_TRUE(boot_disk_guest(*a_, vm, {"path=" + file + ",readonly"}, "seed=7 rate=500 readonly=1"));
    EXPECT_TRUE(disk_guest_goes_on(*a_, vm));
  }
  EXPECT_EQ(read_text(file), before);
  expect_refused(a_->ctl({"vm", "start", "web"}), "is in use by VM ");
  // Its content stays as it is, so a template of memory alone is whole.
  const Ctl made = a_->ctl({"template", "create", "gold", "--from", "one"});
  ASSERT_EQ(made.code, 0) << made;
  const Ctl cloned = a_->ctl({"vm", "clone", "three", "--template", "gold", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  EXPECT_TRUE(disk_guest_goes_on(*a_, "three"));
}

TEST_F(DaemonDisks, WhatIsWrongWithAFileIsSaidWhenTheVmIsMade) {
  const std::string base = image("base");
  disk_image(cluster_.root() / "odd", 1000);
  expect_refused(create(*a_, "web", {"path=" + path("none")}), "none is missing: make an image");
  expect_refused(create(*a_, "web", {"path=" + path("odd")}), "truncate -s %512");
  expect_refused(create(*a_, "web", {"path=" + path("layer") + ",base=" + path("none")}), "base ");
  expect_refused(create(*a_, "web", {"path=" + base, "path=" + base}), "two disks on one file");
  std::filesystem::create_hard_link(base, path("same"));
  expect_refused(create(*a_, "web", {"path=" + base, "path=" + path("same")}), "are one file");
  EXPECT_EQ(a_->state("web"), "") << "nothing was made";
  EXPECT_EQ(create(*a_, "web", {"path=" + path("layer") + ",base=" + base}).code, 0);
  EXPECT_FALSE(std::filesystem::exists(path("layer"))) << "made when it starts";
}

TEST_F(DaemonDisks, AFileInUseIsRefusedWithWhoHasIt) {
  const std::string file = image("disk");
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + file}));
  ASSERT_EQ(create(*a_, "second", {"path=" + file}).code, 0);
  expect_refused(a_->ctl({"vm", "start", "second"}), "is in use by VM web, which is running");
  // Another daemon's VM, as anybody's process.
  const auto pid = static_cast<long>(a_->vm("web").at("worker_pid").to_number<double>());
  expect_refused(create(*b_, "second", {"path=" + file}, true), "is in use by process " + std::to_string(pid));
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_EQ(a_->ctl({"vm", "start", "second"}).code, 0);
}

TEST_F(DaemonDisks, ASharedImageGoesWithItsVm) {
  expect_goes_there_and_back("path=" + image("disk") + ",shared");
}

TEST_F(DaemonDisks, ASharedLayerGoesWithItsVm) {
  expect_goes_there_and_back("path=" + path("layer") + ",base=" + image("base") + ",shared");
}

TEST_F(DaemonDisks, ARefusedHandOverGivesTheDisksBack) {
  const std::string file = image("disk");
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + file + ",shared"}));
  for (const auto* hook : {"peer-fail:load", "peer-fail:commit", "peer-fail:run", "fail:pages"}) {
    SCOPED_TRACE(hook);
    ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, "suspend", hook, 1));
    EXPECT_EQ(a_->state("web"), "running");
    EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
    EXPECT_FALSE(is_free(file));
    EXPECT_TRUE(wait_until([&] { return b_->state("web").empty() && b_->workers().empty(); })) << "the refused replica";
  }
  ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, "suspend"));
  EXPECT_TRUE(disk_guest_goes_on(*b_, "web"));
}

// Nobody knows whether B runs it. Whoever has its disk meanwhile is not written over, also not by force.
TEST_F(DaemonDisks, AVmThatIsForcedToStartTakesItsDisksFirst) {
  const std::string disk = "path=" + image("disk") + ",shared";
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {disk}));
  ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, "suspend", "peer-kill:run", 4));
  EXPECT_EQ(a_->state("web"), "unsettled");
  expect_refused(create(*a_, "thief", {disk}, true), "is in use by VM web, which is unsettled");
  ASSERT_TRUE(wait_until([&] { return b_->state("web") == "unsettled" && b_->workers().empty(); }));
  ASSERT_EQ(create(*b_, "thief", {disk + ",readonly"}, true).code, 0);
  const Ctl forced = a_->ctl({"migrate", "resolve", "web", "--force-start-here"});
  expect_refused(forced, "may run elsewhere");
  EXPECT_EQ(a_->state("web"), "unsettled");
  ASSERT_EQ(b_->ctl({"vm", "stop", "thief"}).code, 0);
  ASSERT_EQ(a_->ctl({"migrate", "resolve", "web", "--force-start-here"}).code, 0);
  EXPECT_EQ(a_->state("web"), "running");
  EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
}

TEST_F(DaemonDisks, WhatWouldLeaveADiskBehindIsRefusedFirst) {
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + image("disk")}));
  expect_refused(a_->ctl({"migrate", "web", "--to", b_->listen()}), "shared");
  expect_refused(a_->ctl({"replicate", "start", "web", "--to", b_->listen()}), "a replica holds memory only");
  expect_refused(a_->ctl({"template", "create", "gold", "--from", "web"}), "which is raw");
  EXPECT_EQ(a_->state("web"), "running");
  EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
}

TEST_F(DaemonDisks, APeerThatDoesNotReachTheFileRefusesAndNothingHasHappened) {
  const std::string file = image("disk");
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + file + ",shared"}));
  std::filesystem::rename(file, file + ".away");
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen(), "--mode", "suspend"});
  EXPECT_EQ(moved.code, 1) << moved;
  EXPECT_NE((moved.err + moved.out).find("disk is missing"), std::string::npos) << moved;
  std::filesystem::rename(file + ".away", file);
  EXPECT_TRUE(disk_guest_goes_on(*a_, "web"));
}

TEST_F(DaemonDisks, AReplicationToAPeerThatDoesNotReachTheFileIsRefusedAtItsStart) {
  const std::string file = image("disk");
  ASSERT_TRUE(boot_disk_guest(*a_, "web", {"path=" + file}));
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_TRUE(boot_disk_guest(*a_, "reader", {"path=" + file + ",readonly,shared"}, "seed=7 rate=500 readonly=1"));
  std::filesystem::rename(file, file + ".away");
  const std::vector<std::string> start{"replicate", "start", "reader", "--to", b_->listen(), "--interval", "20ms"};
  expect_refused(a_->ctl(start), "disk " + file + " is missing");
  EXPECT_EQ(a_->ctl({"replicate", "status", "reader"}).code, 1) << "nothing has begun";
  std::filesystem::rename(file + ".away", file);
  const Ctl started = a_->ctl(start);
  ASSERT_EQ(started.code, 0) << started;
  EXPECT_TRUE(wait_until([&] { return a_->ctl({"replicate", "status", "reader"}).number("generation_sealed") >= 2; }));
  EXPECT_TRUE(disk_guest_goes_on(*a_, "reader"));
}

}  // namespace
}  // namespace fvmm::test
