// The project's own guests under QEMU, a second and independent VMM: what they print must not depend on ours.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"

extern char** environ;

namespace fvmm {
namespace {

using std::chrono_literals::operator""s;

constexpr auto kLineWait = 60s;  // machines without hardware virtualisation emulate the guests' boot
constexpr std::size_t kLinesMax = 2000;
constexpr const char* kQemu = "/usr/bin/qemu-system-x86_64";

/// One printed line: its words, and "key=value" words as a map.
struct Line {
  std::string text;
  std::map<std::string, std::string> fields;

  [[nodiscard]] bool starts(const std::string& prefix) const { return text.rfind(prefix, 0) == 0; }
  [[nodiscard]] std::uint64_t number(const std::string& key) const {
    const auto at = fields.find(key);
    return at == fields.end() ? ~std::uint64_t{0} : std::strtoull(at->second.c_str(), nullptr, 10);
  }
  [[nodiscard]] std::string value(const std::string& key) const {
    const auto at = fields.find(key);
    return at == fields.end() ? "" : at->second;
  }
};

Line parse(const std::string& text) {
  Line line{text, {}};
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const auto equals = word.find('=');
    if (equals != std::string::npos) line.fields[word.substr(0, equals)] = word.substr(equals + 1);
  }
  return line;
}

/// A QEMU process running one guest, its serial port on two pipes. Killed when it goes out of scope.
class QemuGuest {
 public:
  QemuGuest(const std::string& elf, int ram_mib, const std::string& options) {
    std::array<int, 2> to_guest{};
    std::array<int, 2> from_guest{};
    if (::pipe2(to_guest.data(), O_CLOEXEC) != 0) return;
    in_.reset(to_guest[1]);
    const UniqueFd child_in(to_guest[0]);
    if (::pipe2(from_guest.data(), O_CLOEXEC) != 0) return;
    out_.reset(from_guest[0]);
    const UniqueFd child_out(from_guest[1]);
    std::vector<std::string> words = {kQemu,
                                      "-accel",
                                      "kvm",
                                      "-M",
                                      "microvm",
                                      "-cpu",
                                      "qemu64,-cx16",
                                      "-m",
                                      std::to_string(ram_mib),
                                      "-nodefaults",
                                      "-no-user-config",
                                      "-no-reboot",
                                      "-display",
                                      "none",
                                      "-serial",
                                      "stdio",
                                      "-kernel",
                                      std::string(FVMM_GUESTS_DIR "/") + elf,
                                      "-append",
                                      options};
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, child_in.get(), STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, child_out.get(), STDOUT_FILENO);
    if (::posix_spawn(&pid_, kQemu, &actions, nullptr, argv.data(), environ) != 0) pid_ = -1;
    ::posix_spawn_file_actions_destroy(&actions);
  }
  ~QemuGuest() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  QemuGuest(const QemuGuest&) = delete;
  QemuGuest& operator=(const QemuGuest&) = delete;
  QemuGuest(QemuGuest&&) = delete;
  QemuGuest& operator=(QemuGuest&&) = delete;

  /// The next line for which `wanted` holds; an empty one when QEMU ended or the wait is over. log() has all lines.
  Line wait_for(const std::function<bool(const Line&)>& wanted) {
    const Deadline deadline = Deadline::after(kLineWait);
    for (std::size_t lines = 0; lines < kLinesMax; ++lines) {
      while (buffer_.find('\n') == std::string::npos) {
        if (!fill(deadline)) return {};
      }
      const auto end = buffer_.find('\n');
      const Line line = parse(buffer_.substr(0, end));
      buffer_.erase(0, end + 1);
      log_ += line.text + "\n";
      if (wanted(line)) return line;
    }
    return {};
  }
  Line wait_for(const std::string& prefix) {
    return wait_for([&](const Line& line) { return line.starts(prefix); });
  }
  void type(char c) { EXPECT_EQ(::write(in_.get(), &c, 1), 1); }
  [[nodiscard]] const std::string& log() const { return log_; }

 private:
  bool fill(const Deadline& deadline) {
    pollfd wait{.fd = out_.get(), .events = POLLIN, .revents = 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.left()).count();
    const int ready = ::poll(&wait, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) return true;
    if (ready <= 0) return false;
    std::array<char, 4096> bytes{};
    const ssize_t n = ::read(out_.get(), bytes.data(), bytes.size());
    if (n <= 0) return false;
    buffer_.append(bytes.data(), static_cast<std::size_t>(n));
    return true;
  }

  pid_t pid_ = -1;
  UniqueFd in_;
  UniqueFd out_;
  std::string buffer_;
  std::string log_;
};

class GuestsInQemu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::access("/dev/kvm", R_OK | W_OK) != 0) {
      const char* required = std::getenv("FVMM_REQUIRE_KVM");
      if (required != nullptr && std::string(required) == "1") FAIL() << "FVMM_REQUIRE_KVM=1, and no /dev/kvm";
      GTEST_SKIP() << "no access to /dev/kvm";
    }
    if (::access(kQemu, X_OK) != 0) GTEST_SKIP() << "no " << kQemu;
  }
};

bool swept(const Line& line) {
  return line.starts("HB") && line.number("sweeps") >= 2 && line.number("step") > 512;
}

TEST_F(GuestsInQemu, WorkloadFillsDirtiesAndVerifiesAllRam) {
  QemuGuest guest("workload.elf", 128, "seed=3 ws=1 rate=5000");
  const Line boot = guest.wait_for("FVMM workload");
  EXPECT_EQ(boot.value("seed"), "3");
  EXPECT_EQ(boot.number("ws_pages"), 256U);
  EXPECT_EQ(boot.number("ram_pages"), 128U * 256U);
  const Line beat = guest.wait_for(swept);
  EXPECT_EQ(beat.number("errors"), 0U) << guest.log();
  EXPECT_EQ(beat.number("pages"), boot.number("pages"));
  EXPECT_LE(beat.number("sweep_step"), beat.number("step"));
}

TEST_F(GuestsInQemu, WorkloadReachesRamAboveTheHole) {
  QemuGuest guest("workload.elf", 4608, "fill=0 spread=1 ws=1 rate=5000");
  const Line boot = guest.wait_for("FVMM workload");
  EXPECT_EQ(boot.number("ram_pages"), 4608U * 256U);
  EXPECT_EQ(boot.number("pages"), 256U);
  EXPECT_GT(boot.number("ws_stride") * 255, 4096U * 256U) << "the last slot lies above 4 GiB";
  const Line beat = guest.wait_for(swept);
  EXPECT_EQ(beat.number("errors"), 0U) << guest.log();
}

TEST_F(GuestsInQemu, WorkloadSleepsBetweenVerificationsAndStillSweeps) {
  QemuGuest guest("workload.elf", 64, "ws=1 rate=5000 cpu=20");
  const Line beat = guest.wait_for(swept);
  EXPECT_EQ(beat.number("errors"), 0U) << guest.log();
}

TEST_F(GuestsInQemu, WorkloadReportsEveryKindOfPlantedFault) {
  QemuGuest guest("workload.elf", 64, "ws=1 rate=5000 plant=3");
  const Line planted = guest.wait_for("PLANTED");
  EXPECT_GE(planted.number("step"), 256U) << "versions are planted after the first cycle";
  const Line beat =
      guest.wait_for([&](const Line& l) { return l.starts("HB") && l.number("sweep_step") > planted.number("step"); });
  EXPECT_EQ(beat.number("errors"), 9U) << guest.log();
  for (const char* kind : {"zero", "flip", "alien", "swapped", "stale", "ahead", "torn", "own"}) {
    EXPECT_NE(guest.log().find(std::string(" kind=") + kind + " "), std::string::npos) << kind << "\n" << guest.log();
  }
}

TEST_F(GuestsInQemu, WorkloadObeysPauseResumeAndQuit) {
  QemuGuest guest("workload.elf", 64, "ws=1 rate=5000 verify=0");
  guest.wait_for("HB n=2 ");
  guest.type('p');
  const Line paused = guest.wait_for("PAUSED");
  EXPECT_EQ(guest.wait_for("HB").number("step"), paused.number("step"));
  guest.type('r');
  EXPECT_EQ(guest.wait_for("RESUMED").number("step"), paused.number("step"));
  EXPECT_GT(guest.wait_for("HB").number("step"), paused.number("step"));
  guest.type('q');
  EXPECT_TRUE(guest.wait_for("QUIT").starts("QUIT")) << guest.log();
}

TEST_F(GuestsInQemu, IdleTicksInOrder) {
  QemuGuest guest("idle.elf", 64, "tick=100");
  for (std::uint64_t n = 1; n <= 5; ++n) EXPECT_EQ(guest.wait_for("TICK").number("n"), n) << guest.log();
}

TEST_F(GuestsInQemu, RegistersStayAsSet) {
  QemuGuest guest("regs.elf", 64, "");
  const Line beat = guest.wait_for([](const Line& line) { return line.starts("REGS") && line.number("n") >= 3; });
  EXPECT_TRUE(beat.starts("REGS ok")) << guest.log();
  EXPECT_EQ(guest.log().find("ERR"), std::string::npos) << guest.log();
}

}  // namespace
}  // namespace fvmm
