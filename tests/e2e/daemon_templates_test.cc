// Templates through fvmmctl: made of running and paused VMs and of clones, checked, pushed, linked, pinned and removed.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "support/daemons.h"

namespace fvmm::test {
namespace {

class TemplatesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    host_ = &cluster_.add("A");
  }
  Cluster& cluster() { return cluster_; }
  Host& host() { return *host_; }
  Ctl create(const std::string& name, const std::string& vm) {
    return host().ctl({"template", "create", name, "--from", vm});
  }
  static std::string digest_of(const Ctl& info) {
    const auto* ref = info.at("ref").if_object();
    return ref == nullptr ? "" : Host::text(*ref, "digest");
  }
  static std::string id_of(const Ctl& info) {
    const auto* ref = info.at("ref").if_object();
    return ref == nullptr ? "" : Host::text(*ref, "id");
  }
  static std::vector<std::string> names(Host& of) {
    std::vector<std::string> found;
    const Ctl list = of.ctl({"template", "list"});
    EXPECT_EQ(list.code, 0) << list;
    for (const auto& one : list.at("templates").as_array()) {
      found.emplace_back(one.at("ref").at("name").as_string());
    }
    return found;
  }
  static std::filesystem::path directory_of(const Host& of, const std::string& name) {
    return of.state_directory() / "templates" / name;
  }
  static ino_t inode(const std::filesystem::path& file) {
    struct stat info {};
    EXPECT_EQ(::stat(file.c_str(), &info), 0) << file;
    return info.st_ino;
  }
  double delta_pages(const std::string& vm) { return host().ctl({"vm", "show", vm}).number("delta_pages"); }

 private:
  Cluster cluster_;
  Host* host_ = nullptr;
};

constexpr double kWorkingSetPages = 1024;  // 4 MiB, as boot_workload() has it

TEST_F(TemplatesTest, ARunningVmGoesOnUponItsTemplateAndItsDeltaGrowsFromNothing) {
  ASSERT_TRUE(boot_workload(host(), "web", "64M", "seed=7 ws=4 rate=200"));
  const double before = delta_pages("web");
  EXPECT_GT(before, 10'000) << "on the zero template everything it filled differs";

  const Ctl created = create("base", "web");

  ASSERT_EQ(created.code, 0) << created;
  EXPECT_GT(created.number("pause_ms"), 0);
  EXPECT_GT(created.number("pages"), 10'000);
  EXPECT_LT(delta_pages("web"), kWorkingSetPages) << "rebased: only what it wrote since";
  EXPECT_EQ(host().vm("web").at("template").at("digest").as_string(), digest_of(created));
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_TRUE(wait_until([&] { return delta_pages("web") >= kWorkingSetPages / 2; })) << "its writes are its delta";
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(TemplatesTest, APausedVmStaysPausedAndItsClonesContinueItsInstant) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_TRUE(host().next_heartbeat("web"));
  ASSERT_EQ(host().ctl({"vm", "pause", "web"}).code, 0);
  const std::uint64_t stood_at = heartbeats(host().serial("web")).back().n;

  ASSERT_EQ(create("base", "web").code, 0);

  EXPECT_EQ(host().state("web"), "paused");
  ASSERT_EQ(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  EXPECT_TRUE(host().verified_after_now("copy"));
  EXPECT_LE(heartbeats(host().serial("copy")).front().n, stood_at + 2) << "it did not boot, it went on";
  EXPECT_EQ(host().serial("copy").find("FILLED"), std::string::npos);
  ASSERT_EQ(host().ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(TemplatesTest, ListShowAndVerifyAgree) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  EXPECT_TRUE(names(host()).empty());
  const Ctl created = create("base", "web");
  ASSERT_EQ(created.code, 0) << created;

  EXPECT_EQ(names(host()), std::vector<std::string>{"base"});
  const Ctl shown = host().ctl({"template", "show", "base"});
  EXPECT_EQ(shown.code, 0) << shown;
  EXPECT_EQ(id_of(shown), id_of(created));
  EXPECT_EQ(digest_of(shown), digest_of(created));
  EXPECT_EQ(shown.number("pages"), created.number("pages"));
  EXPECT_EQ(shown.at("config").at("memory_bytes").as_int64(), 64 << 20);
  EXPECT_GE(shown.number("pins"), 1) << "the VM itself runs on it";
  const Ctl verified = host().ctl({"template", "verify", "base"});
  EXPECT_EQ(verified.code, 0) << verified;
  EXPECT_TRUE(verified.at("good").as_bool());
  EXPECT_EQ(verified.number("pages_checked"), 16'384);
  EXPECT_EQ(verified.number("pages_bad"), 0);
}

TEST_F(TemplatesTest, APushArrivesOnceAndASecondFindsItThere) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(create("base", "web").code, 0);

  const Ctl pushed = host().ctl({"template", "push", "base", "--to", peer.listen()});

  ASSERT_EQ(pushed.code, 0) << pushed;
  EXPECT_FALSE(pushed.at("already_there").as_bool());
  EXPECT_GT(pushed.number("bytes_sent"), 40.0 * (1 << 20)) << "its filled memory is incompressible";
  EXPECT_EQ(digest_of(peer.ctl({"template", "show", "base"})), digest_of(host().ctl({"template", "show", "base"})));
  EXPECT_EQ(peer.ctl({"template", "verify", "base"}).code, 0);
  ASSERT_EQ(peer.ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  EXPECT_TRUE(peer.verified_after_now("copy"));

  const Ctl again = host().ctl({"template", "push", "base", "--to", peer.listen()});
  EXPECT_EQ(again.code, 0) << again;
  EXPECT_TRUE(again.at("already_there").as_bool());
  EXPECT_EQ(again.number("bytes_sent"), 0);
}

TEST_F(TemplatesTest, AnImportByLinkSharesTheFilesAndOutlivesTheOriginal) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(create("base", "web").code, 0);

  const Ctl imported = peer.ctl({"template", "import", directory_of(host(), "base").string(), "--link"});

  ASSERT_EQ(imported.code, 0) << imported;
  EXPECT_EQ(inode(directory_of(peer, "base") / "memory"), inode(directory_of(host(), "base") / "memory"));
  const Ctl migrated = host().ctl({"migrate", "web", "--to", peer.listen(), "--mode", "suspend"});
  ASSERT_EQ(migrated.code, 0) << migrated;
  EXPECT_TRUE(peer.verified_after_now("web"));
  ASSERT_TRUE(wait_until([&] { return host().workers().empty(); })) << "the way back is kept";
  const Ctl removed = host().ctl({"template", "rm", "base"});
  ASSERT_EQ(removed.code, 0) << "what is kept for the way back goes with it\n" << removed;
  EXPECT_EQ(peer.ctl({"template", "verify", "base"}).code, 0);
  ASSERT_EQ(peer.ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  EXPECT_TRUE(peer.verified_after_now("copy"));
}

TEST_F(TemplatesTest, AnImportOfATakenNameOrOfNothingIsRefused) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(create("base", "web").code, 0);
  const std::string directory = directory_of(host(), "base").string();
  ASSERT_EQ(peer.ctl({"template", "import", directory, "--link"}).code, 0);

  EXPECT_EQ(peer.ctl({"template", "import", directory, "--link"}).code, 1);
  const Ctl nothing = peer.ctl({"template", "import", directory + "-none", "--link"});
  EXPECT_EQ(nothing.code, 1);
  EXPECT_NE(nothing.err.find(directory + "-none"), std::string::npos) << nothing;
  EXPECT_EQ(peer.ctl({"template", "import", directory}).code, 1) << "without --link";
  EXPECT_EQ(names(peer), std::vector<std::string>{"base"});
}

TEST_F(TemplatesTest, ATemplateInUseIsKeptAndFreedByTheEndOfItsLastVm) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(create("base", "web").code, 0);
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);

  const Ctl kept = host().ctl({"template", "rm", "base"});

  EXPECT_EQ(kept.code, 1);
  EXPECT_NE(kept.err.find("in use"), std::string::npos) << kept;
  EXPECT_TRUE(host().verified_after_now("copy"));
  ASSERT_EQ(host().ctl({"vm", "stop", "copy"}).code, 0);
  EXPECT_EQ(host().ctl({"template", "rm", "base"}).code, 0);
  EXPECT_TRUE(names(host()).empty());
  EXPECT_FALSE(std::filesystem::exists(directory_of(host(), "base")));
}

TEST_F(TemplatesTest, ATemplateOfACloneIsWholeWithoutTheOneItCameFrom) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  const Ctl first = create("base", "web");
  ASSERT_EQ(first.code, 0) << first;
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  ASSERT_TRUE(host().verified_after_now("copy"));

  const Ctl second = host().ctl({"template", "create", "second", "--from", "copy", "--engine", "stop"});

  ASSERT_EQ(second.code, 0) << second;
  EXPECT_NE(digest_of(second), digest_of(first));
  EXPECT_NE(id_of(second), id_of(first));
  EXPECT_EQ(host().ctl({"template", "rm", "base"}).code, 0) << "nothing runs on it any more";
  EXPECT_EQ(host().ctl({"template", "verify", "second"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "clone", "third", "--template", "second", "--start"}).code, 0);
  EXPECT_TRUE(host().verified_after_now("third"));
  EXPECT_TRUE(host().verified_after_now("copy"));
}

/// Each engine, of a guest under load: what it made is one instant, and the guest runs on upon it.
class EngineTest : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineTest, ATemplateOfARunningGuestIsOneInstantAndItsDeltaCountsFromThere) {
  FVMM_NEEDS_KVM();
  Cluster cluster;
  Host& host = cluster.add("A");
  Host& peer = cluster.add("B");
  ASSERT_TRUE(boot_workload(host, "web", "64M", "seed=7 ws=8 rate=20000"));
  for (const std::string name : {"t1", "t2"}) {
    const Ctl made = host.ctl({"template", "create", name, "--from", "web", "--engine", GetParam()});
    if (name == "t2" && std::string(GetParam()) == "stop") {
      EXPECT_EQ(made.text("kind"), "base") << made;
    } else if (name == "t2") {
      EXPECT_EQ(made.text("kind"), "delta") << made;
      EXPECT_EQ(made.text("parent"), "t1") << made;
    }
    ASSERT_EQ(made.code, 0) << made;
    EXPECT_EQ(made.text("engine"), GetParam());
    EXPECT_GT(made.number("pause_ms"), 0);
    EXPECT_TRUE(host.ctl({"template", "verify", name}).at("good").as_bool());
    ASSERT_EQ(host.ctl({"vm", "clone", name + "-copy", "--template", name, "--start"}).code, 0);
    EXPECT_TRUE(host.verified_after_now(name + "-copy"));
    EXPECT_TRUE(host.verified_after_now("web"));
    ASSERT_EQ(host.ctl({"vm", "stop", name + "-copy"}).code, 0);
  }
  const Ctl pushed = host.ctl({"template", "push", "t2", "--to", peer.listen()});
  ASSERT_EQ(pushed.code, 0) << pushed;
  const Ctl moved = host.ctl({"migrate", "web", "--to", peer.listen(), "--mode", "live", "--max-downtime", "100ms"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(moved.text("template"), "t2");
  EXPECT_TRUE(peer.verified_after_now("web"));
}

INSTANTIATE_TEST_SUITE_P(Engines, EngineTest, ::testing::Values("stop", "chase", "cow"),
                         [](const auto& engine) { return std::string(engine.param); });

TEST(TemplateChainTest, FoldMakesItWholeAndRemovalFollowsTheChain) {
  FVMM_NEEDS_KVM();
  Cluster cluster;
  Host& host = cluster.add("A");
  Host& peer = cluster.add("B");
  ASSERT_TRUE(boot_workload(host, "web"));
  ASSERT_EQ(host.ctl({"template", "create", "t1", "--from", "web"}).code, 0);
  ASSERT_EQ(host.ctl({"template", "create", "t2", "--from", "web"}).code, 0);
  ASSERT_EQ(host.ctl({"vm", "stop", "web"}).code, 0);
  const Ctl refused = host.ctl({"template", "rm", "t1"});
  EXPECT_EQ(refused.code, 1) << refused;
  EXPECT_NE(refused.err.find("t2"), std::string::npos) << refused;
  const std::string digest = Host::text(host.ctl({"template", "show", "t2"}).at("ref").as_object(), "digest");
  const Ctl folded = host.ctl({"template", "fold", "t2"});
  ASSERT_EQ(folded.code, 0) << folded;
  EXPECT_EQ(folded.text("kind"), "base");
  EXPECT_EQ(Host::text(folded.at("ref").as_object(), "digest"), digest) << "a fold keeps the digest";
  EXPECT_EQ(host.ctl({"template", "rm", "t1"}).code, 0);
  EXPECT_TRUE(host.ctl({"template", "verify", "t2"}).at("good").as_bool());
  const Ctl pushed = host.ctl({"template", "push", "t2", "--to", peer.listen()});
  ASSERT_EQ(pushed.code, 0) << pushed;
  EXPECT_EQ(Host::text(peer.ctl({"template", "show", "t2"}).at("ref").as_object(), "digest"), digest);
  EXPECT_TRUE(peer.ctl({"template", "verify", "t2"}).at("good").as_bool());
  ASSERT_EQ(peer.ctl({"vm", "clone", "copy", "--template", "t2", "--start"}).code, 0);
  EXPECT_TRUE(peer.verified_after_now("copy"));
}

}  // namespace
}  // namespace fvmm::test
