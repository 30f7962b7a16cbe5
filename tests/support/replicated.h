// Two hosts, and "web" on A, which a test replicates to B. After support/daemons.h.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "support/daemons.h"

namespace fvmm::test {

class DaemonReplicate : public TwoHostsWithWeb {
 protected:
  void TearDown() override {}  // a host may be gone: each test looks where it can

  Ctl replicate(const std::vector<std::string>& more = {}) {
    std::vector<std::string> words{"replicate", "start", "web", "--to", b_->listen(), "--interval", "20ms"};
    words.insert(words.end(), more.begin(), more.end());
    return a_->ctl(words);
  }
  double sealed() { return a_->ctl({"replicate", "status", "web"}).number("generation_sealed"); }
  bool seals(double more) {
    const double before = std::max(0.0, sealed());
    return wait_until([&] { return sealed() >= before + more; });
  }
  static std::uint64_t step_of(Host& host) {
    const auto beat = host.next_heartbeat("web");
    return beat ? beat->step : 0;
  }
  Ctl recover(const std::vector<std::string>& more = {}) {
    std::vector<std::string> words{"replicate", "recover", "web"};
    words.insert(words.end(), more.begin(), more.end());
    return b_->ctl(words);
  }
  /// Ends the replication, and B never hears of it: as after an older fvmmd, or one that lost its disk.
  void stop_untold() {
    b_->kill_daemon();
    const Ctl stopped = a_->ctl({"replicate", "stop", "web"});
    EXPECT_EQ(stopped.code, 0) << stopped;
    EXPECT_NE(stopped.text("detail").find("has not been told"), std::string::npos) << stopped;
    a_->kill_daemon();
    std::filesystem::remove_all(a_->state_directory() / "replica-stops");
    b_->start();
    a_->start();
  }
  int generations_at_b() {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(b_->state_directory() / "templates")) {
      if (entry.path().filename().string().starts_with("web.")) ++count;
    }
    return count;
  }
  void kill_source() {
    a_->kill_daemon();
    for (const pid_t worker : a_->workers()) ::kill(worker, SIGKILL);
    EXPECT_TRUE(wait_until([&] { return a_->workers().empty(); }));
  }
};

}  // namespace fvmm::test
