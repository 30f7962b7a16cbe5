// What a person can get wrong: each mistake gets an exit code, a message that names the thing and the fix, and costs
// nothing. Mistakes of a peer are in daemon_peer_test.cc.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>

#include <fstream>

#include "base/units.h"
#include "support/daemons.h"
#include "support/tiny_kernel.h"

namespace fvmm::test {
namespace {

class BadInputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    host_ = &cluster_.add("A");
  }
  Cluster& cluster() { return cluster_; }
  Host& host() { return *host_; }
  Ctl create(const std::string& vm, const std::string& kernel, const std::string& memory = "64M") {
    return host().ctl({"vm", "create", vm, "--memory", memory, "--kernel", kernel, "--start"});
  }
  std::string file(const std::string& name, std::string_view content) {
    return write_text(host().directory() / name, content);
  }
  static ::testing::AssertionResult fails(const Ctl& ctl, int code, const std::vector<std::string>& words) {
    if (ctl.code != code) return ::testing::AssertionFailure() << "not exit " << code << ": " << ctl;
    for (const std::string& word : words) {
      if (ctl.err.find(word) == std::string::npos) {
        return ::testing::AssertionFailure() << "\"" << word << "\" is not in: " << ctl;
      }
    }
    const auto* error = ctl.at("error").if_object();
    if (error == nullptr || Host::text(*error, "message").empty()) {
      return ::testing::AssertionFailure() << "the error is not on stdout as JSON: " << ctl;
    }
    return ::testing::AssertionSuccess();
  }
  static std::string error_code(const Ctl& ctl) {
    const auto* error = ctl.at("error").if_object();
    return error == nullptr ? "" : Host::text(*error, "code");
  }
  /// No VM, no directory, no worker was left by what was refused.
  void expect_no_vm() {
    EXPECT_EQ(host().ctl({"vm", "list"}).at("vms").as_array().size(), 0U);
    EXPECT_TRUE(std::filesystem::is_empty(host().state_directory() / "vms"));
    EXPECT_TRUE(wait_until([&] { return host().workers().empty(); }));
  }

 private:
  Cluster cluster_;
  Host* host_ = nullptr;
};

TEST_F(BadInputTest, AKernelThatCannotBootIsNamedWithTheReasonAndLeavesNoVm) {
  const std::string whole = read_text(guest("workload.elf"));
  const std::string none = (host().directory() / "none.elf").string();
  EXPECT_TRUE(fails(create("web", none), 1, {none, "No such file"}));
  const std::string empty = file("empty.elf", "");
  EXPECT_TRUE(fails(create("web", empty), 1, {empty, "not an ELF file"}));
  const std::string text = file("text.elf", std::string(5000, 'x'));
  EXPECT_TRUE(fails(create("web", text), 1, {text, "not an ELF file", "vmlinux"}));
  const std::string headers = file("headers.elf", whole.substr(0, 100));
  EXPECT_TRUE(fails(create("web", headers), 1, {headers, "cut short"}));
  const std::string half = file("half.elf", whole.substr(0, whole.size() / 2));
  EXPECT_TRUE(fails(create("web", half), 1, {half, "cut short"}));
  const std::string plain = file("plain.elf", tiny_kernel("\xf4", false));
  EXPECT_TRUE(fails(create("web", plain), 1, {plain, "PVH", "CONFIG_PVH"}));
  EXPECT_TRUE(fails(create("web", host().directory().string()), 1, {"not a regular file"}));
  expect_no_vm();
  EXPECT_TRUE(boot_workload(host(), "web")) << "the name is still free";
}

TEST_F(BadInputTest, AKernelThatGoesAwayBeforeTheStartLeavesTheVmAsItWas) {
  const std::string kernel = file("kernel.elf", read_text(guest("workload.elf")));
  ASSERT_EQ(host().ctl({"vm", "create", "web", "--memory", "64M", "--kernel", kernel}).code, 0);
  std::filesystem::remove(kernel);

  EXPECT_TRUE(fails(host().ctl({"vm", "start", "web"}), 1, {"web", kernel}));

  EXPECT_EQ(host().state("web"), "created");
  file("kernel.elf", read_text(guest("workload.elf")));
  EXPECT_EQ(host().ctl({"vm", "start", "web"}).code, 0);
}

TEST_F(BadInputTest, AMemorySizeThatCannotBeIsRefusedWithTheRule) {
  const std::string kernel = guest("workload.elf");
  EXPECT_TRUE(fails(create("web", kernel, "67108865"), 1, {"67108865", "4096"}));
  EXPECT_TRUE(fails(create("web", kernel, "16773120"), 1, {"16 MiB"}));  // one page below the least
  EXPECT_TRUE(fails(create("web", kernel, "65G"), 1, {"64 GiB"}));
  const auto host_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * kPageBytes;
  if (host_bytes < 64 * kGiB) {  // a larger one can run it; daemon_checks_test has the rule
    EXPECT_TRUE(fails(create("web", kernel, "64G"), 1, {"web", "64 GiB", "available", "less memory"}));
  }
  EXPECT_TRUE(fails(create("web", kernel, "much"), 2, {"--memory", "much"}));
  EXPECT_TRUE(fails(create("web", kernel, "0"), 1, {"16 MiB"}));
  expect_no_vm();
}

TEST_F(BadInputTest, OtherValuesThatCannotBeAreNamed) {
  const auto wrong = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"vm", "create", "web", "--memory", "64M", "--kernel", guest("workload.elf")};
    words.insert(words.end(), more.begin(), more.end());
    return host().ctl(words);
  };
  EXPECT_TRUE(fails(wrong({"--vcpus", "17"}), 1, {"vcpus", "16", "17"}));
  EXPECT_TRUE(fails(wrong({"--cpu-template", "fast"}), 1, {"fast", "baseline"}));
  EXPECT_TRUE(fails(wrong({"--cmdline", std::string(4096, 'x')}), 1, {"4096", "4095"}));
  EXPECT_TRUE(fails(wrong({"--initrd", "/no/initrd"}), 1, {"/no/initrd"}));
  EXPECT_TRUE(fails(wrong({"--colour", "red"}), 2, {"--colour", "--help"}));
  EXPECT_TRUE(fails(host().ctl({"vm", "create", "a/b", "--memory", "64M", "--kernel", guest("workload.elf")}), 1,
                    {"a/b", "letters"}));
  EXPECT_TRUE(
      fails(host().ctl({"vm", "create", std::string(65, 'n'), "--memory", "64M", "--kernel", guest("workload.elf")}), 1,
            {"64"}));
  EXPECT_TRUE(fails(host().ctl({"vm"}), 2, {"--help"}));
  EXPECT_TRUE(fails(host().ctl({"migrate", "web"}), 2, {"--to"}));
  expect_no_vm();
}

TEST_F(BadInputTest, NamesThatAreNotThereAndNamesThatAreTaken) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  for (const auto* verb : {"start", "pause", "resume", "stop", "rm", "show", "logs", "console"}) {
    EXPECT_TRUE(fails(host().ctl({"vm", verb, "ghost"}), 1, {"ghost"})) << verb;
  }
  for (const auto* verb : {"show", "verify", "rm"}) {
    EXPECT_TRUE(fails(host().ctl({"template", verb, "ghost"}), 1, {"ghost"})) << verb;
  }
  EXPECT_TRUE(fails(host().ctl({"vm", "clone", "copy", "--template", "ghost", "--start"}), 1, {"ghost"}));
  EXPECT_TRUE(fails(host().ctl({"template", "create", "base", "--from", "ghost"}), 1, {"ghost"}));
  EXPECT_TRUE(fails(host().ctl({"template", "push", "ghost", "--to", "127.0.0.1:9"}), 1, {"ghost"}));
  EXPECT_TRUE(fails(host().ctl({"migrate", "ghost", "--to", "127.0.0.1:9"}), 1, {"ghost"}));
  EXPECT_TRUE(fails(create("web", guest("workload.elf")), 1, {"web", "exists"}));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  EXPECT_TRUE(fails(host().ctl({"template", "create", "base", "--from", "web"}), 1, {"base", "exists"}));
  EXPECT_TRUE(fails(host().ctl({"vm", "clone", "web", "--template", "base", "--start"}), 1, {"web", "exists"}));
  EXPECT_TRUE(fails(host().ctl({"vm", "clone", "copy", "--template", "base", "--count", "257"}), 2, {"256", "257"}));
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_EQ(host().ctl({"vm", "list"}).at("vms").as_array().size(), 1U);
}

TEST_F(BadInputTest, ClonesAreMadeAllOrNone) {
  ASSERT_TRUE(boot_workload(host(), "copy-2"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "copy-2"}).code, 0);

  EXPECT_TRUE(fails(host().ctl({"vm", "clone", "copy", "--template", "base", "--count", "3", "--start"}), 1,
                    {"copy-2", "exists"}));

  EXPECT_EQ(host().ctl({"vm", "list"}).at("vms").as_array().size(), 1U);
  EXPECT_TRUE(host().verified_after_now("copy-2"));
}

TEST_F(BadInputTest, MigrationsThatCannotBeginLeaveTheVmWhereItIs) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  const auto to = [&](const std::string& peer, const std::string& mode) {
    return host().ctl({"migrate", "web", "--to", peer, "--mode", mode});
  };
  EXPECT_TRUE(fails(host().ctl({"migrate", "web", "--to", "127.0.0.1:9", "--bandwidth", "1"}), 2, {"Kbit", "Gbit"}));
  EXPECT_TRUE(fails(host().ctl({"migrate", "web", "--to", "127.0.0.1:9", "--bandwidth", "1Kbit"}), 1, {"1Mbit"}));
  EXPECT_TRUE(fails(to("192.0.2.1:7000", "auto"), 1, {"192.0.2.1", "loopback"}));
  EXPECT_TRUE(fails(to("nonsense", "auto"), 1, {"nonsense", "HOST:PORT"}));
  EXPECT_TRUE(fails(to("127.0.0.1:9", "warp"), 2, {"warp"}));
  const Ctl away = to("127.0.0.1:9", "auto");  // nothing listens on the discard port
  EXPECT_EQ(away.code, 1) << away;
  EXPECT_NE(away.err.find("127.0.0.1:9"), std::string::npos) << away;
  EXPECT_NE(away.err.find("refused"), std::string::npos) << away;
  EXPECT_EQ(host().state("web"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_TRUE(fails(host().ctl({"template", "push", "base", "--to", "192.0.2.1:7000"}), 1, {"192.0.2.1", "loopback"}));
  EXPECT_TRUE(fails(host().ctl({"migrate", "cancel", "web"}), 1, {"web", "not migrating"}));
  EXPECT_EQ(host().ctl({"migrate", "resolve", "web"}).code, 1);
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(BadInputTest, ADaemonThatIsNotThereIsExitThree) {
  host().end_daemon();
  EXPECT_TRUE(fails(host().ctl({"vm", "list"}), 3, {host().socket(), "fvmmd"}));
  EXPECT_TRUE(fails(host().ctl({"migrate", "web", "--to", "127.0.0.1:9"}), 3, {host().socket()}));
  host().start();
  EXPECT_EQ(host().ctl({"vm", "list"}).code, 0);
}

/// fvmmd with directories of its own and one more option, run to its end: exit code and what it said.
std::pair<int, std::string> run_fvmmd(const std::filesystem::path& directory, const std::vector<std::string>& more) {
  std::filesystem::create_directories(directory);
  const auto log = directory / "log";
  std::vector<std::string> arguments{std::string(FVMM_BIN_DIR) + "/fvmmd", "--runtime-dir",
                                     (directory / "run").string(), "--state-dir", (directory / "state").string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  Process process(arguments, log, log);
  const int code = process.wait(std::chrono::seconds(20)).value_or(-1);
  return {code, read_text(log)};
}

TEST_F(BadInputTest, AnFvmmdThatMayNotRunSaysWhyAndEnds) {
  const auto directory = cluster().root() / "extra";
  const auto [open_code, open_said] = run_fvmmd(directory, {"--listen", "0.0.0.0:0"});
  EXPECT_EQ(open_code, 1) << open_said;
  EXPECT_NE(open_said.find("0.0.0.0"), std::string::npos) << open_said;
  EXPECT_NE(open_said.find("loopback"), std::string::npos) << open_said;
  const auto [port_code, port_said] = run_fvmmd(directory, {"--listen", host().listen()});
  EXPECT_EQ(port_code, 1) << port_said;
  EXPECT_NE(port_said.find(host().listen()), std::string::npos) << port_said;
  const auto [state_code, state_said] = run_fvmmd(directory, {"--state-dir", host().state_directory().string()});
  EXPECT_NE(state_code, 0) << state_said;
  const auto [usage_code, usage_said] = run_fvmmd(directory, {"--no-such-option"});
  EXPECT_EQ(usage_code, 2) << usage_said;
  EXPECT_EQ(host().ctl({"vm", "list"}).code, 0) << "the one that runs is not disturbed";
}

TEST_F(BadInputTest, AStateDirectoryInUseIsNotSharedByASecondFvmmd) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  const auto directory = cluster().root() / "second";
  std::filesystem::create_directories(directory);
  std::filesystem::create_directory_symlink(host().state_directory(), directory / "state");

  const auto [code, said] = run_fvmmd(directory, {});

  EXPECT_EQ(code, 1) << said;
  EXPECT_NE(said.find("another fvmmd"), std::string::npos) << said;
  EXPECT_NE(said.find("--state-dir"), std::string::npos) << said;
  EXPECT_TRUE(host().verified_after_now("web"));
}

/// Inverts one byte of a page in a stored template.
void damage(const Host& host, const std::string& name, std::uint64_t page) {
  const auto path = host.state_directory() / "templates" / name / "memory";
  std::filesystem::permissions(path, std::filesystem::perms::owner_write, std::filesystem::perm_options::add);
  std::fstream memory(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto at = static_cast<std::streamoff>(page * 4096 + 77);
  memory.seekg(at);
  const char byte = static_cast<char>(~memory.get());
  memory.seekp(at);
  memory.put(byte);
  memory.close();
  ASSERT_TRUE(memory.good());
}

TEST_F(BadInputTest, ADamagedTemplateIsNamedByVerifyAndNoPeerOrStoreTakesIt) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  constexpr std::uint64_t kPage = 9000;
  damage(host(), "base", kPage);

  const Ctl verified = host().ctl({"template", "verify", "base"});

  EXPECT_EQ(verified.code, 1) << verified;
  EXPECT_NE(verified.err.find("template base is damaged: page 9000"), std::string::npos) << verified;
  EXPECT_EQ(verified.number("pages_bad"), 1);
  const Ctl pushed = host().ctl({"template", "push", "base", "--to", peer.listen()});
  EXPECT_TRUE(fails(pushed, 1, {"base", "digest"}));
  EXPECT_EQ(error_code(pushed), "DATA_LOSS");
  const auto directory = (host().state_directory() / "templates" / "base").string();
  EXPECT_TRUE(fails(peer.ctl({"template", "import", directory, "--link"}), 1, {"page 9000"}));
  EXPECT_TRUE(std::filesystem::is_empty(peer.state_directory() / "templates")) << "nothing half-made stays";
  EXPECT_EQ(peer.ctl({"template", "show", "base"}).code, 1);
}

TEST_F(BadInputTest, ATemplateCutShortIsRefusedBeforeAnyVmIsMadeOfIt) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  const auto memory = host().state_directory() / "templates" / "base" / "memory";
  std::filesystem::resize_file(memory, 32 << 20);

  EXPECT_TRUE(fails(host().ctl({"template", "verify", "base"}), 1, {"base"}));
  EXPECT_TRUE(fails(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}), 1, {"base"}));
  EXPECT_TRUE(fails(host().ctl({"template", "push", "base", "--to", "127.0.0.1:9"}), 1, {"base"}));
  EXPECT_EQ(host().state("copy"), "");
  EXPECT_EQ(host().ctl({"vm", "start", "web"}).code, 0) << "it never needed the template to boot";
}

TEST_F(BadInputTest, ATemplatePageThatCannotBeReadFailsThatVmAlone) {
  ASSERT_TRUE(boot_workload(host(), "other"));
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);

  // To whoever maps the file, pages beyond its end read as a disk that fails: SIGBUS.
  std::filesystem::resize_file(host().state_directory() / "templates" / "base" / "memory", 32 << 20);

  ASSERT_TRUE(wait_until([&] { return host().state("copy") == "failed"; })) << host().state("copy");
  const std::string detail = host().ctl({"vm", "show", "copy"}).text("detail");
  for (const auto* part : {"template", "cannot be read", "template verify"}) {
    EXPECT_NE(detail.find(part), std::string::npos) << detail;
  }
  EXPECT_TRUE(host().verified_after_now("other"));
}

/// A tmpfs as a host's state directory, in a mount namespace of this test program alone: nothing of it outlives us.
class SmallDisk {
 public:
  SmallDisk(std::filesystem::path at, const std::string& options) : at_(std::move(at)) {
    std::filesystem::create_directories(at_);
    mounted_ = ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
               ::mount("fvmm-test", at_.c_str(), "tmpfs", 0, options.c_str()) == 0;
    error_ = errno;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  SmallDisk(SmallDisk&&) = delete;
  SmallDisk& operator=(SmallDisk&&) = delete;
  [[nodiscard]] bool mounted() const { return mounted_; }
  [[nodiscard]] const char* why_not() const { return ::strerror(error_); }

 private:
  std::filesystem::path at_;
  bool mounted_ = false;
  int error_ = 0;
};

/// What is in the store beside sealed templates.
std::vector<std::string> half_made(const Host& host) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(host.state_directory() / "templates")) {
    if (entry.path().filename().string().starts_with('.')) found.push_back(entry.path().filename().string());
  }
  return found;
}

TEST_F(BadInputTest, ADiskTooSmallForATemplateIsRefusedWithBothSizesAndTheGuestGoesOn) {
  const SmallDisk disk(cluster().root() / "S" / "state", "size=48m");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root: " << disk.why_not();
  Host& small = cluster().add("S");
  ASSERT_TRUE(boot_workload(small, "web"));

  const Ctl created = small.ctl({"template", "create", "base", "--from", "web"});

  EXPECT_TRUE(fails(created, 1, {"base", "need", "free"}));
  EXPECT_EQ(error_code(created), "RESOURCE_EXHAUSTED");
  EXPECT_TRUE(half_made(small).empty());
  EXPECT_EQ(small.state("web"), "running");
  EXPECT_TRUE(small.verified_after_now("web"));
  Host& peer = host();
  ASSERT_TRUE(boot_workload(peer, "big"));
  ASSERT_EQ(peer.ctl({"template", "create", "base", "--from", "big"}).code, 0);
  EXPECT_TRUE(fails(peer.ctl({"template", "push", "base", "--to", small.listen()}), 1, {"base", "need", "free"}));
  EXPECT_TRUE(half_made(small).empty());
  EXPECT_TRUE(peer.verified_after_now("big"));
}

// The disk runs out of files instead of bytes: that can be had one file earlier or later, so that the template fails
// at its first file, at each one between, and at its manifest.
TEST_F(BadInputTest, ADiskThatFillsAtAnyStepOfSealingCostsNothing) {
  const SmallDisk disk(cluster().root() / "S" / "state", "size=200m,nr_inodes=100");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root: " << disk.why_not();
  Host& small = cluster().add("S");
  ASSERT_TRUE(boot_workload(small, "web"));
  std::vector<std::filesystem::path> fillers;
  for (;;) {
    fillers.push_back(small.state_directory() / ("filler" + std::to_string(fillers.size())));
    if (!std::ofstream(fillers.back())) break;
  }
  fillers.pop_back();

  unsigned failures = 0;
  Ctl created;
  for (; failures < 16; ++failures) {
    created = small.ctl({"template", "create", "base", "--from", "web"});
    if (created.code == 0) break;
    EXPECT_TRUE(fails(created, 1, {"No space left"})) << "with " << failures << " files free";
    EXPECT_TRUE(half_made(small).empty()) << "with " << failures << " files free";
    EXPECT_EQ(small.state("web"), "running");
    ASSERT_FALSE(fillers.empty());
    std::filesystem::remove(fillers.back());
    fillers.pop_back();
  }

  EXPECT_EQ(created.code, 0) << created;
  EXPECT_GE(failures, 4U) << "directory, memory, hashes, machine state and manifest each need one";
  EXPECT_TRUE(small.verified_after_now("web"));
  EXPECT_EQ(small.ctl({"template", "verify", "base"}).code, 0);
}

}  // namespace
}  // namespace fvmm::test
