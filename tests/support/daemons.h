// Real daemons for end-to-end tests: each Host is an fvmmd with directories and a peer port of its own, driven through
// fvmmctl as a user would. Include it in one translation unit of a program (it brings Boost.JSON's implementation).
//
//   Cluster cluster;                      // a directory under /tmp; everything in it dies with the test
//   Host& a = cluster.add("A");
//   Host& b = cluster.add("B");
//   ASSERT_TRUE(boot_workload(a, "web"));
//   const Ctl moved = a.ctl({"migrate", "web", "--to", b.listen(), "--mode", "suspend"});
//   ASSERT_EQ(moved.code, 0) << moved;
//   EXPECT_TRUE(b.verified_after_now("web"));
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <boost/json/src.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "support/heartbeats.h"
#include "support/kvm.h"
#include "support/process.h"

namespace fvmm::test {

inline constexpr std::chrono::seconds kCtlWait{90};    // for one fvmmctl
inline constexpr std::chrono::seconds kGuestWait{60};  // for a guest to print or to verify something

/// Polls a condition that another process makes true.
inline bool wait_until(const std::function<bool()>& condition, std::chrono::milliseconds limit = kGuestWait) {
  const Deadline deadline = Deadline::after(limit);
  while (!condition()) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

/// One run of fvmmctl: its exit code (-1: it outlived kCtlWait), and the object on the last line of its output.
struct Ctl {
  int code = -1;
  std::string out;
  std::string err;
  boost::json::object json;  // empty when the output is no JSON object

  [[nodiscard]] const boost::json::value& at(std::string_view key) const {
    static const boost::json::value none;
    const auto* found = json.if_contains(key);
    return found == nullptr ? none : *found;
  }
  [[nodiscard]] std::string text(std::string_view key) const {
    const auto* found = at(key).if_string();
    return found == nullptr ? "" : std::string(*found);
  }
  /// Numbers of any kind; -1 when absent.
  [[nodiscard]] double number(std::string_view key) const {
    boost::json::error_code error;
    const double value = at(key).to_number<double>(error);
    return error ? -1 : value;
  }
};
inline std::ostream& operator<<(std::ostream& out, const Ctl& ctl) {
  return out << "fvmmctl: exit " << ctl.code << "\nstdout: " << ctl.out << "\nstderr: " << ctl.err << "\n";
}

/// An fvmmctl under way.
class RunningCtl {
 public:
  RunningCtl(std::vector<std::string> arguments, std::filesystem::path base)
      : base_(std::move(base)), process_(std::move(arguments), base_.string() + ".out", base_.string() + ".err") {}
  /// Waits for its end.
  Ctl finish(std::chrono::milliseconds limit = kCtlWait) {
    Ctl result;
    result.code = process_.wait(limit).value_or(-1);
    result.out = read_text(base_.string() + ".out");
    result.err = read_text(base_.string() + ".err");
    const auto end = result.out.find_last_not_of('\n');
    if (end == std::string::npos) return result;
    const auto begin = result.out.rfind('\n', end);
    boost::json::error_code error;
    auto value = boost::json::parse(result.out.substr(begin == std::string::npos ? 0 : begin + 1,
                                                      end - (begin == std::string::npos ? 0 : begin + 1) + 1),
                                    error);
    if (!error && value.is_object()) result.json = value.as_object();
    return result;
  }
  [[nodiscard]] bool ended() { return process_.wait(std::chrono::milliseconds(0)).has_value(); }
  void signal(int number) const { process_.signal(number); }

 private:
  std::filesystem::path base_;
  Process process_;
};

/// One host: an fvmmd and its workers. Owner: the Cluster.
class Host {
 public:
  Host(std::string name, const std::filesystem::path& root, std::vector<std::string> extra)
      : name_(std::move(name)), root_(root / name_), extra_(std::move(extra)) {
    std::filesystem::create_directories(runtime());
    std::filesystem::create_directories(state_directory());
    listen_ = "127.0.0.1:" + std::to_string(free_port());
    start();
  }
  ~Host() {
    if (::testing::Test::HasFailure()) print_logs();
    daemon_.reset();
    end_workers();
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  Host(Host&&) = delete;
  Host& operator=(Host&&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& listen() const { return listen_; }  // HOST:PORT, the same after a restart
  [[nodiscard]] std::filesystem::path directory() const { return root_; }
  [[nodiscard]] std::filesystem::path runtime() const { return root_ / "run"; }
  [[nodiscard]] std::filesystem::path state_directory() const { return root_ / "state"; }
  [[nodiscard]] std::string socket() const { return (runtime() / "fvmmd.sock").string(); }

  /// Starts fvmmd and waits until it answers; after kill_daemon() or end_daemon() with the same directories and port.
  void start() {
    std::vector<std::string> arguments{std::string(FVMM_BIN_DIR) + "/fvmmd",
                                       "--runtime-dir",
                                       runtime().string(),
                                       "--state-dir",
                                       state_directory().string(),
                                       "--listen",
                                       listen_};
    arguments.insert(arguments.end(), extra_.begin(), extra_.end());
    daemon_ = std::make_unique<Process>(std::move(arguments), log(), log());
    const bool up = wait_until([this] {
      return daemon_->wait(std::chrono::milliseconds(0)) || ctl({"host", "show"}).code == 0;
    });
    if (!up || daemon_->wait(std::chrono::milliseconds(0)))
      ADD_FAILURE() << "fvmmd " << name_ << " did not start: " << read_text(log());
  }
  [[nodiscard]] pid_t daemon_pid() const { return daemon_ ? daemon_->pid() : 0; }
  /// SIGKILL of fvmmd alone: its workers go on.
  void kill_daemon() { end_daemon(SIGKILL); }
  void end_daemon(int number = SIGTERM) {
    daemon_->signal(number);
    EXPECT_TRUE(daemon_->wait(std::chrono::seconds(20))) << "fvmmd " << name_ << " does not end";
    daemon_.reset();
  }

  /// `fvmmctl --socket ... --output json WORDS`, to its end.
  Ctl ctl(const std::vector<std::string>& words, std::chrono::milliseconds limit = kCtlWait) {
    return begin(words).finish(limit);
  }
  RunningCtl begin(const std::vector<std::string>& words) {
    std::vector<std::string> arguments{std::string(FVMM_BIN_DIR) + "/fvmmctl", "--socket", socket(), "--output",
                                       "json"};
    arguments.insert(arguments.end(), words.begin(), words.end());
    return {std::move(arguments), root_ / ("ctl-" + std::to_string(++ctls_))};
  }

  /// The VM in `vm list`; empty when there is none of that name.
  boost::json::object vm(const std::string& wanted) {
    const Ctl list = ctl({"vm", "list"});
    EXPECT_EQ(list.code, 0) << list;
    const auto* vms = list.at("vms").if_array();
    if (vms == nullptr) return {};
    for (const auto& one : *vms) {
      if (one.at("config").at("name").as_string() == wanted) return one.as_object();
    }
    return {};
  }
  /// "running", "paused", "moved", ...; "" when no VM has that name.
  std::string state(const std::string& wanted) { return text(vm(wanted), "state"); }
  static std::string text(const boost::json::object& object, std::string_view key) {
    const auto* found = object.if_contains(key);
    return found == nullptr || !found->is_string() ? "" : std::string(found->as_string());
  }

  /// What the guest has written on this host so far. It stays readable while the VM's directory is there.
  std::string serial(const std::string& wanted) {
    if (!ids_.contains(wanted)) {
      const auto found = vm(wanted);
      if (found.empty()) return "";
      ids_[wanted] = std::string(found.at("config").at("id").as_string());
    }
    return read_text(state_directory() / "vms" / ids_[wanted] / "serial.log");
  }
  bool serial_contains(const std::string& wanted, const std::string& text) {
    return wait_until([&] { return serial(wanted).find(text) != std::string::npos; });
  }
  /// A heartbeat that is printed after this call; nothing when none comes.
  std::optional<Heartbeat> next_heartbeat(const std::string& wanted) {
    const std::size_t before = heartbeats(serial(wanted)).size();
    std::vector<Heartbeat> beats;
    wait_until([&] { return (beats = heartbeats(serial(wanted))).size() > before; });
    if (beats.size() <= before) return std::nullopt;
    return beats.back();
  }
  /// Whether the guest, running here, verified all of its memory in a sweep begun after this call, and never
  /// complained.
  ::testing::AssertionResult verified_after_now(const std::string& wanted) {
    const auto now = next_heartbeat(wanted);
    if (!now) return ::testing::AssertionFailure() << wanted << " prints no heartbeat on " << name_;
    Heartbeat last;
    const bool swept = wait_until([&] {
      const auto beats = heartbeats(serial(wanted));
      if (!beats.empty()) last = beats.back();
      return last.sweep_step >= now->step || last.errors != 0;
    });
    const std::string said = complaint(serial(wanted));
    if (last.errors != 0 || !said.empty()) {
      return ::testing::AssertionFailure() << wanted << " on " << name_ << ": errors=" << last.errors << " " << said;
    }
    if (!swept)
      return ::testing::AssertionFailure() << wanted << " on " << name_ << " ended no sweep after step " << now->step;
    return ::testing::AssertionSuccess() << wanted << " verified by step " << last.step;
  }

  /// Worker processes of this host, warm ones included.
  [[nodiscard]] std::vector<pid_t> workers() const { return processes_with((runtime() / "workers").string()); }
  [[nodiscard]] std::string daemon_log() const { return read_text(log()); }

 private:
  [[nodiscard]] std::filesystem::path log() const { return root_ / "fvmmd.log"; }

  static std::uint16_t free_port() {
    const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof(address);
    const bool good = ::bind(probe.get(), reinterpret_cast<sockaddr*>(&address), bytes) == 0 &&
                      ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &bytes) == 0;
    FVMM_CHECK(good, "a free port");
    return ntohs(address.sin_port);
  }
  void end_workers() const {
    const bool gone = wait_until([this] {
      const auto left = workers();
      for (const pid_t pid : left) ::kill(pid, SIGKILL);
      return left.empty();
    });
    EXPECT_TRUE(gone) << "a worker of " << name_ << " survives SIGKILL";
  }
  void print_logs() const {
    std::error_code error;
    std::vector<std::filesystem::path> logs{log()};
    for (const auto* pattern : {"run/workers", "state/vms"}) {
      for (std::filesystem::recursive_directory_iterator it(root_ / pattern, error), end; !error && it != end;
           it.increment(error)) {
        if (it->path().extension() == ".log") logs.push_back(it->path());
      }
    }
    for (const auto& file : logs) {
      const std::string content = read_text(file);
      constexpr std::size_t kShown = 6000;
      std::cout << "--- " << file.string() << "\n"
                << content.substr(content.size() > kShown ? content.size() - kShown : 0) << std::endl;
    }
  }

  const std::string name_;
  const std::filesystem::path root_;
  const std::vector<std::string> extra_;
  std::string listen_;
  std::unique_ptr<Process> daemon_;
  std::map<std::string, std::string> ids_;  // of VMs by name; a directory is named by its VM's id
  int ctls_ = 0;
};

/// Some hosts in one directory under /tmp. A watchdog process ends what is left when the test program itself is killed.
class Cluster {
 public:
  Cluster() {
    std::string name = "/tmp/fvmm-e2e-XXXXXX";
    FVMM_CHECK(::mkdtemp(name.data()) != nullptr, "mkdtemp");
    root_ = name;
    int ends[2];
    FVMM_CHECK(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    const UniqueFd read_end(ends[0]);
    alive_.reset(ends[1]);  // closed by the kernel however we end
    const std::string script =
        "trap '' TERM INT HUP; read end; for p in /proc/[0-9]*; do [ ${p#/proc/} = $$ ] || ! grep -qs \"$0/\" "
        "$p/cmdline || "
        "kill -9 ${p#/proc/}; done; rm -rf \"$0\"";
    watchdog_ = std::make_unique<Process>(std::vector<std::string>{"sh", "-c", script, root_.string()}, "/dev/null",
                                          "/dev/null", read_end.get());
  }
  ~Cluster() {
    hosts_.clear();
    watchdog_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  Cluster(Cluster&&) = delete;
  Cluster& operator=(Cluster&&) = delete;

  /// A host with test hooks and without warm workers, so that every worker process carries a VM.
  Host& add(const std::string& name, std::vector<std::string> options = {"--test-hooks", "--warm-workers", "0"}) {
    hosts_.push_back(std::make_unique<Host>(name, root_, std::move(options)));
    return *hosts_.back();
  }
  [[nodiscard]] const std::filesystem::path& root() const { return root_; }

  /// How many hosts say that they run the VM (a migrating VM runs at its source).
  int runners(const std::string& vm) {
    int count = 0;
    for (const auto& host : hosts_) {
      const std::string state = host->state(vm);
      if (state == "running" || state == "migrating") ++count;
    }
    return count;
  }
  /// Whether the guest writes on at most one host: looks at every serial log twice, with heartbeats due in between.
  ::testing::AssertionResult at_most_one_runs(const std::string& vm) {
    std::vector<std::size_t> before;
    for (const auto& host : hosts_) before.push_back(host->serial(vm).size());
    std::this_thread::sleep_for(
        std::chrono::milliseconds(300));  // three beats of boot_workload(); longer hides nothing
    std::string writers;
    int count = 0;
    for (std::size_t i = 0; i < hosts_.size(); ++i) {
      if (hosts_[i]->serial(vm).size() == before[i]) continue;
      writers += " " + hosts_[i]->name();
      ++count;
    }
    const int said = runners(vm);
    if (count <= 1 && said <= 1) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << vm << " runs more than once: writes on" << writers << ", " << said
                                         << " say so";
  }

 private:
  std::filesystem::path root_;
  UniqueFd alive_;
  std::unique_ptr<Process> watchdog_;
  std::vector<std::unique_ptr<Host>> hosts_;
};

/// workload.elf, started and with its memory filled. A beat is 50 ms.
inline ::testing::AssertionResult boot_workload(Host& host, const std::string& vm, const std::string& memory = "64M",
                                                const std::string& words = "seed=7 ws=4 rate=2000") {
  const Ctl created = host.ctl({"vm", "create", vm, "--memory", memory, "--kernel", guest("workload.elf"), "--cmdline",
                                words + " beat=50", "--start"});
  if (created.code != 0) return ::testing::AssertionFailure() << created;
  if (!host.serial_contains(vm, "FILLED")) return ::testing::AssertionFailure() << vm << " does not fill its memory";
  return ::testing::AssertionSuccess();
}

/// The VM's memory becomes a template that the other host holds, too: a migration by suspend then moves a delta.
inline ::testing::AssertionResult share_template(Host& from, Host& to, const std::string& vm, const std::string& name) {
  const Ctl created = from.ctl({"template", "create", name, "--from", vm});
  if (created.code != 0) return ::testing::AssertionFailure() << created;
  const Ctl pushed = from.ctl({"template", "push", name, "--to", to.listen()});
  if (pushed.code != 0) return ::testing::AssertionFailure() << pushed;
  return ::testing::AssertionSuccess();
}

/// Two hosts; at its end VM "web" runs on one of them at most.
class TwoHosts : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    a_ = &cluster_.add("A");
    b_ = &cluster_.add("B");
  }
  void TearDown() override {
    if (a_ == nullptr) return;  // skipped
    EXPECT_TRUE(cluster_.at_most_one_runs("web"));
  }

  Cluster cluster_;
  Host* a_ = nullptr;
  Host* b_ = nullptr;
};

/// The same, and "web" runs on A from the beginning.
class TwoHostsWithWeb : public TwoHosts {
 protected:
  void SetUp() override {
    TwoHosts::SetUp();
    if (a_ == nullptr) return;  // skipped
    ASSERT_TRUE(boot_workload(*a_, "web"));
  }
};

}  // namespace fvmm::test
