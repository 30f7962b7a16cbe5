// CPU templates as files of a host: listed, shown, refused, and carried along by the VMs made with them.
#include <fstream>

#include "support/daemons.h"
#include "support/temp_dir.h"

namespace fvmm::test {
namespace {

class DaemonCpuTemplate : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    a_ = &cluster_.add("A", {"--test-hooks", "--warm-workers", "0", "--cpu-templates", files_.path().string()});
  }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(files_.path() / (name + ".json")) << text;
  }
  Ctl create(const std::string& vm, const std::string& cpu) {
    return a_->ctl({"vm", "create", vm, "--memory", "64M", "--kernel", guest("workload.elf"), "--cmdline",
                    "seed=7 ws=4 rate=1000 beat=50", "--cpu-template", cpu, "--start"});
  }
  /// The features of one word that a guest gets by it here, with a space before and behind each.
  std::string features(const std::string& cpu, const std::string& word) {
    const Ctl shown = a_->ctl({"cpu-template", "show", cpu});
    const auto* words = shown.at("features").if_array();
    if (words == nullptr) return "";
    for (const auto& one : *words) {
      if (one.at("word").as_string() == word) return " " + std::string(one.at("features").as_string()) + " ";
    }
    return "";
  }

  ::fvmm::testing::TempDir files_;
  Cluster cluster_;
  Host* a_ = nullptr;
};

TEST_F(DaemonCpuTemplate, FilesAreListedBesideTheBuiltInOnesWithWhatIsWrongWithThem) {
  write("fleet", R"({"version": 1, "description": "of us all", "without": ["lahf_lm"]})");
  write("broken", R"({"version": 1, "without": ["warp_drive"]})");
  write("host", R"({"version": 1})");
  write("tomorrow", R"({"version": 1, "require": ["1.ecx:16"]})");  // a reserved bit: no CPU has it
  const Ctl list = a_->ctl({"cpu-template", "list"});
  ASSERT_EQ(list.code, 0) << list;
  std::map<std::string, std::string> refused;  // by name; of files
  for (const auto& one : list.at("templates").as_array()) {
    if (one.at("file").as_string().empty()) continue;
    refused[std::string(one.at("template").at("name").as_string())] = std::string(one.at("refused").as_string());
  }
  ASSERT_EQ(refused.size(), 4U) << list;
  EXPECT_EQ(refused["fleet"], "");
  EXPECT_NE(refused["broken"].find("warp_drive"), std::string::npos) << refused["broken"];
  EXPECT_NE(refused["host"].find("built in"), std::string::npos) << refused["host"];
  EXPECT_NE(refused["tomorrow"].find("1.ecx:16"), std::string::npos) << refused["tomorrow"];
  EXPECT_EQ(features("fleet", "0x80000001.ecx").find(" lahf_lm "), std::string::npos);
  EXPECT_NE(features("host", "0x80000001.ecx").find(" lahf_lm "), std::string::npos) << "this host has it";
}

TEST_F(DaemonCpuTemplate, WrongOnesMakeNoVm) {
  write("broken", "{");
  write("tomorrow", R"({"version": 1, "require": ["1.ecx:16"]})");
  const std::pair<std::string, std::string> all[] = {
      {"broken", "broken.json"}, {"tomorrow", "1.ecx:16"}, {"absent", "absent.json"}, {"../host", "letters"}};
  for (const auto& [cpu, part] : all) {
    const Ctl made = create("web", cpu);
    EXPECT_EQ(made.code, 1) << made;
    EXPECT_NE(made.err.find(part), std::string::npos) << made;
    EXPECT_EQ(a_->state("web"), "");
  }
}

TEST_F(DaemonCpuTemplate, AVmKeepsTheTextItWasMadeWithAlsoOnAHostThatLacksTheFile) {
  write("fleet", R"({"version": 1, "without": ["lahf_lm"]})");
  ASSERT_EQ(create("web", "fleet").code, 0);
  ASSERT_TRUE(a_->serial_contains("web", "FILLED"));
  std::filesystem::remove(files_.path() / "fleet.json");
  Host& b = cluster_.add("B");

  const Ctl moved = a_->ctl({"migrate", "web", "--to", b.listen(), "--mode", "suspend"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_TRUE(b.verified_after_now("web"));
  const Ctl shown = b.ctl({"vm", "show", "web"});
  EXPECT_EQ(shown.at("config").at("cpu").at("without").at(0).as_string(), "lahf_lm") << shown;
}

TEST_F(DaemonCpuTemplate, AStoppedVmStartsAgainByItsOwnText) {
  write("fleet", R"({"version": 1, "without": ["lahf_lm"]})");
  ASSERT_EQ(create("web", "fleet").code, 0);
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  write("fleet", R"({"version": 1, "require": ["1.ecx:16"]})");
  EXPECT_EQ(a_->ctl({"vm", "start", "web"}).code, 0);
  EXPECT_EQ(create("other", "fleet").code, 1) << "the changed file counts for VMs created now";
}

}  // namespace
}  // namespace fvmm::test
