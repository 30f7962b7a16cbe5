// Resident templates through fvmmctl: made, mapped, pinned, found again, and gone.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "support/daemons.h"
#include "support/userfault.h"

namespace fvmm::test {
namespace {

/// A directory on tmpfs that ends with the test.
class RamDirectory {
 public:
  RamDirectory() {
    std::string name = "/dev/shm/fvmm-e2e-XXXXXX";
    FVMM_CHECK(::mkdtemp(name.data()) != nullptr, "mkdtemp");
    path_ = name;
  }
  ~RamDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  RamDirectory(const RamDirectory&) = delete;
  RamDirectory& operator=(const RamDirectory&) = delete;
  RamDirectory(RamDirectory&&) = delete;
  RamDirectory& operator=(RamDirectory&&) = delete;
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

class ResidentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    host_ = &add("A");
    ASSERT_TRUE(boot_workload(host(), "web"));
  }
  Host& host() { return *host_; }
  Host& add(const std::string& name) {
    return cluster_.add(name, {"--test-hooks", "--warm-workers", "0", "--resident-dir", (ram_ / name).string()});
  }
  [[nodiscard]] std::size_t files(const std::string& host) const {
    std::error_code none;
    std::filesystem::directory_iterator it(ram_ / host, none);
    return none ? 0 : static_cast<std::size_t>(std::distance(it, {}));
  }
  /// How many of its workers map a resident file.
  [[nodiscard]] int mapping(const Host& host) const {
    int count = 0;
    for (const pid_t pid : host.workers()) {
      std::ostringstream maps;
      maps << std::ifstream("/proc/" + std::to_string(pid) + "/maps").rdbuf();
      count += maps.str().find((ram_ / host.name()).string()) != std::string::npos ? 1 : 0;
    }
    return count;
  }
  static std::string memory_of(Host& host, const std::string& name) {
    return host.ctl({"template", "show", name}).text("template_memory");
  }

 private:
  RamDirectory ram_;  // outlives the daemons
  Cluster cluster_;
  Host* host_ = nullptr;
};

TEST_F(ResidentTest, AClonesMemoryIsTheResidentFileAndEngineCowWorksOnIt) {
  const Ctl made = host().ctl({"template", "create", "base", "--from", "web", "--template-memory", "resident"});
  ASSERT_EQ(made.code, 0) << made;
  EXPECT_EQ(made.text("template_memory"), "resident");
  ASSERT_EQ(files("A"), 1U);
  EXPECT_EQ(mapping(host()), 0) << "the VM itself stays mapped as it was";
  ASSERT_EQ(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  EXPECT_EQ(mapping(host()), 1);
  EXPECT_TRUE(host().verified_after_now("copy"));
  if (const std::string why_not = testing::no_userfault(); why_not.empty()) {
    const Ctl later = host().ctl({"template", "create", "later", "--from", "copy", "--engine", "cow"});
    ASSERT_EQ(later.code, 0) << later;
    EXPECT_EQ(later.text("kind"), "delta");
    EXPECT_TRUE(host().ctl({"template", "verify", "later"}).at("good").as_bool());
    ASSERT_EQ(host().ctl({"vm", "clone", "third", "--template", "later", "--start"}).code, 0);
    EXPECT_TRUE(host().verified_after_now("third"));
    EXPECT_TRUE(host().verified_after_now("copy"));
  }
  const Ctl kept = host().ctl({"template", "unload", "base"});
  EXPECT_EQ(kept.code, 1);
  EXPECT_NE(kept.err.find("stop or migrate"), std::string::npos) << kept;
}

TEST_F(ResidentTest, ItOutlivesTheDaemonAndIsStoredAgainWhenAsked) {
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  EXPECT_EQ(memory_of(host(), "base"), "stored");
  ASSERT_EQ(host().ctl({"template", "load", "base"}).code, 0);
  EXPECT_EQ(memory_of(host(), "base"), "resident");
  host().kill_daemon();
  host().start();
  EXPECT_EQ(memory_of(host(), "base"), "resident");
  ASSERT_EQ(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  EXPECT_EQ(mapping(host()), 1);
  EXPECT_TRUE(host().verified_after_now("copy"));
  ASSERT_EQ(host().ctl({"vm", "stop", "copy"}).code, 0);
  const Ctl unloaded = host().ctl({"template", "unload", "base"});
  ASSERT_EQ(unloaded.code, 0) << unloaded;
  EXPECT_EQ(unloaded.text("template_memory"), "stored");
  EXPECT_EQ(files("A"), 0U);
  ASSERT_EQ(host().ctl({"vm", "clone", "more", "--template", "base", "--start"}).code, 0);
  EXPECT_EQ(mapping(host()), 0);
  EXPECT_TRUE(host().verified_after_now("more"));
}

TEST_F(ResidentTest, AVmThatComesInMapsItAndItGoesWithItsTemplate) {
  Host& peer = add("B");
  ASSERT_TRUE(share_template(host(), peer, "web", "base"));
  ASSERT_EQ(peer.ctl({"template", "load", "base"}).code, 0);
  const Ctl moved = host().ctl({"migrate", "web", "--to", peer.listen(), "--mode", "suspend"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(mapping(peer), 1);
  EXPECT_TRUE(peer.verified_after_now("web"));
  ASSERT_EQ(peer.ctl({"vm", "stop", "web"}).code, 0);
  const Ctl removed = peer.ctl({"template", "rm", "base"});
  ASSERT_EQ(removed.code, 0) << removed;
  EXPECT_EQ(files("B"), 0U);
}

}  // namespace
}  // namespace fvmm::test
