// One VM between two hosts, a hundred times under load: its memory verifies wherever it is, each leg is as short as the
// way back allows, and nothing grows: not the stores, not the processes.
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "support/daemons.h"

namespace fvmm::test {
namespace {

constexpr int kLegs = 100;
constexpr int kFirstLook = 20;                 // by then every page that the guest ever writes has been written
constexpr int kTemplatesMax = 8;               // the template, a chain of the way back, and what the VM runs on
constexpr std::int64_t kDescriptorsSlack = 4;  // a connection under way
constexpr std::int64_t kMemorySlackKib = 8 * 1024;
constexpr std::int64_t kStoreSlackKib = 16 * 1024;  // a generation before it is squashed, or after

/// What a host takes: its store on disk, its processes in memory.
struct Footprint {
  std::int64_t templates = 0;
  std::int64_t store_kib = 0;
  std::int64_t daemon_descriptors = 0;
  std::int64_t daemon_kib = 0;  // Pss
  std::int64_t worker_descriptors = 0;
  std::int64_t worker_kib = 0;  // Pss, guest RAM included
};
std::ostream& operator<<(std::ostream& out, const Footprint& f) {
  return out << f.templates << " templates, store " << f.store_kib << " KiB, daemon " << f.daemon_descriptors
             << " descriptors " << f.daemon_kib << " KiB, workers " << f.worker_descriptors << " descriptors "
             << f.worker_kib << " KiB";
}

std::int64_t descriptors(pid_t pid) {
  std::error_code error;
  const std::filesystem::directory_iterator all("/proc/" + std::to_string(pid) + "/fd", error);
  return error ? -1 : std::distance(all, {});
}

std::int64_t pss_kib(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/smaps_rollup");
  for (std::string word; in >> word;) {
    std::int64_t kib = 0;
    if (word == "Pss:" && in >> kib) return kib;
  }
  return -1;
}

Footprint footprint_of(const Host& host) {
  Footprint now;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(host.state_directory() / "templates")) {
    struct stat info {};
    if (::lstat(entry.path().c_str(), &info) == 0) now.store_kib += info.st_blocks / 2;
  }
  now.templates = std::distance(std::filesystem::directory_iterator(host.state_directory() / "templates"), {});
  now.daemon_descriptors = descriptors(host.daemon_pid());
  now.daemon_kib = pss_kib(host.daemon_pid());
  for (const pid_t worker : host.workers()) {
    now.worker_descriptors += descriptors(worker);
    now.worker_kib += pss_kib(worker);
  }
  return now;
}

void expect_no_growth(const std::string& host, const Footprint& before, const Footprint& after) {
  SCOPED_TRACE(host);
  std::cout << host << " after " << kFirstLook << " legs: " << before << "\n"
            << host << " after " << kLegs << " legs: " << after << std::endl;
  EXPECT_LE(after.templates, kTemplatesMax);
  EXPECT_LE(after.store_kib, before.store_kib + kStoreSlackKib);
  EXPECT_LE(after.daemon_descriptors, before.daemon_descriptors + kDescriptorsSlack);
  EXPECT_LE(after.worker_descriptors, before.worker_descriptors + kDescriptorsSlack);
#ifndef FVMM_SANITIZED  // a sanitizer keeps what was freed, to find who uses it all the same; leaks it reports itself
  EXPECT_LE(after.daemon_kib, before.daemon_kib + kMemorySlackKib);
  EXPECT_LE(after.worker_kib, before.worker_kib + kMemorySlackKib);
#endif
  for (const std::int64_t figure : {before.daemon_kib, after.daemon_kib, before.daemon_descriptors}) {
    EXPECT_GT(figure, 0) << "it was measured";
  }
}

class RoundTrips : public TwoHostsWithWeb {
 protected:
  void leg(int number) {
    Host& from = number % 2 == 0 ? *a_ : *b_;
    Host& to = number % 2 == 0 ? *b_ : *a_;
    const Ctl moved = from.ctl({"migrate", "web", "--to", to.listen(), "--mode", number % 4 < 2 ? "suspend" : "live",
                                "--max-downtime", "50ms"});
    ASSERT_EQ(moved.code, 0) << moved;
    if (moved.text("why_mode").find("way back") != std::string::npos) ++by_way_back_;
    ASSERT_TRUE(wait_until([&] { return from.workers().empty(); })) << "it has kept the way back";
    ASSERT_TRUE(to.verified_after_now("web"));
  }
  int by_way_back_ = 0;
};

TEST_F(RoundTrips, AHundredUnderLoadVerifyAndNothingGrows) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  Footprint a_before;
  Footprint b_before;
  for (int number = 0; number < kLegs; ++number) {
    SCOPED_TRACE(number);
    if (number == kFirstLook) {
      a_before = footprint_of(*a_);
      b_before = footprint_of(*b_);
    }
    ASSERT_NO_FATAL_FAILURE(leg(number));
  }
  expect_no_growth("A", a_before, footprint_of(*a_));
  expect_no_growth("B", b_before, footprint_of(*b_));
  std::cout << by_way_back_ << " of " << kLegs << " legs went by the way back" << std::endl;
  EXPECT_GT(by_way_back_, kLegs / 2) << "and not against the template each time";
  EXPECT_EQ(complaint(a_->serial("web")) + complaint(b_->serial("web")), "");
  EXPECT_TRUE(a_->verified_after_now("web"));
  // What it runs on now has been squashed, and no other host has it.
  Host& third = cluster_.add("C");
  const Ctl away = a_->ctl({"migrate", "web", "--to", third.listen(), "--mode", "live", "--max-downtime", "50ms"});
  ASSERT_EQ(away.code, 0) << away;
  EXPECT_TRUE(third.verified_after_now("web"));
}

}  // namespace
}  // namespace fvmm::test
