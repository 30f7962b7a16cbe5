// A guest that gives memory back, between two real daemons and under seccomp: sized by fvmmctl, carried by templates,
// clones and migrations. The guest says itself whether every page holds what it should, those in the balloon included.
#include "support/daemons.h"

namespace fvmm::test {
namespace {

constexpr double kPage = 4096;

class DaemonBalloon : public TwoHosts {
 protected:
  void boot(const std::string& tracking) {
    const Ctl created =
        a_->ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("balloon.elf"), "--cmdline",
                 "beat=50 rate=500", "--rng", "--balloon", "--tracking", tracking, "--start"});
    ASSERT_EQ(created.code, 0) << created;
    ASSERT_TRUE(a_->serial_contains("web", "BL n=2 "));
  }
  /// -1: `vm show` had no figures just now.
  static double figure(Host& host, const std::string& vm, std::string_view key) {
    const Ctl shown = host.ctl({"vm", "show", vm});
    if (shown.code != 0 || !shown.json.contains("balloon")) return -1;
    const auto& balloon = shown.at("balloon").as_object();
    return balloon.contains(key) ? balloon.at(key).to_number<double>() : 0;
  }
  /// The host asks for so many pages, and the guest says it has given them and all its memory is as it should be.
  static void expect_size(Host& host, const std::string& vm, unsigned pages) {
    const Ctl asked = host.ctl({"vm", "balloon", vm, "--target", std::to_string(4 * pages) + "K"});
    ASSERT_EQ(asked.code, 0) << asked;
    expect_good(host, vm, pages);
    EXPECT_TRUE(shows(host, vm, "actual_bytes", pages * kPage));
    EXPECT_TRUE(shows(host, vm, "target_bytes", pages * kPage));
  }
  static bool shows(Host& host, const std::string& vm, std::string_view key, double value) {
    return wait_until([&] { return figure(host, vm, key) == value; });
  }
  /// Two looks over all its memory from here on, with so many pages in the balloon.
  static void expect_good(Host& host, const std::string& vm, unsigned pages) {
    std::size_t at = host.serial(vm).size();
    const std::string wanted = " actual=" + std::to_string(pages) + " ";
    for (int look = 0; look < 2; ++look) {
      ASSERT_TRUE(wait_until([&] { return host.serial(vm).find(wanted, at) != std::string::npos; })) << host.serial(vm);
      at = host.serial(vm).find(wanted, at) + 1;
    }
    EXPECT_EQ(host.serial(vm).find("ERR "), std::string::npos) << host.serial(vm);
  }
};

class DaemonBalloonUnder : public DaemonBalloon, public ::testing::WithParamInterface<const char*> {};

TEST_P(DaemonBalloonUnder, ItGoesWithTheGuestOverTemplateCloneAndMigration) {
  boot(GetParam());
#ifndef FVMM_SANITIZED
  EXPECT_EQ(a_->ctl({"vm", "show", "web"}).text("seccomp"), "on");
#endif
  expect_size(*a_, "web", 64);
  EXPECT_TRUE(wait_until([&] { return figure(*a_, "web", "given_back_pages") > 0; }));
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  const Ctl cloned = a_->ctl({"vm", "clone", "copy", "--template", "base", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  expect_good(*a_, "copy", 64);
  EXPECT_TRUE(shows(*a_, "copy", "target_bytes", 64 * kPage));
  expect_size(*a_, "copy", 16);
  expect_size(*a_, "copy", 100);  // pages go back to what the template holds

  // Pages that the template holds full and the guest has given back since, and the other way round.
  expect_size(*a_, "web", 0);
  expect_size(*a_, "web", 128);
  for (const std::string& vm : {std::string("web"), std::string("copy")}) {
    const unsigned pages = vm == "web" ? 128 : 100;
    SCOPED_TRACE(vm);
    const Ctl there = a_->ctl({"migrate", vm, "--to", b_->listen(), "--mode", "suspend"});
    ASSERT_EQ(there.code, 0) << there;
    expect_good(*b_, vm, pages);
    EXPECT_TRUE(shows(*b_, vm, "target_bytes", pages * kPage));
    expect_size(*b_, vm, 8);
    expect_size(*b_, vm, 200);
    const Ctl back = b_->ctl({"migrate", vm, "--to", a_->listen(), "--mode", "live", "--max-downtime", "50ms"});
    ASSERT_EQ(back.code, 0) << back;
    expect_good(*a_, vm, 200);
    ASSERT_EQ(a_->ctl({"vm", "stop", vm}).code, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Tracking, DaemonBalloonUnder, ::testing::Values("log", "scan"),
                         [](const auto& one) { return std::string(one.param); });

TEST_F(DaemonBalloon, WhatCannotBeIsRefusedWithAReason) {
  ASSERT_EQ(a_->ctl({"vm", "create", "none", "--memory", "64M", "--kernel", guest("idle.elf"), "--start"}).code, 0);
  const Ctl none = a_->ctl({"vm", "balloon", "none", "--target", "1M"});
  EXPECT_EQ(none.code, 1) << none;
  EXPECT_NE(none.err.find("--balloon"), std::string::npos) << none;
  boot("log");
  for (const char* const target : {"65M", "1000"}) {
    const Ctl refused = a_->ctl({"vm", "balloon", "web", "--target", target});
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_NE(refused.err.find("multiples of 4096"), std::string::npos) << refused;
  }
  EXPECT_EQ(a_->ctl({"vm", "balloon", "web", "--target", "much"}).code, 2);
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_EQ(a_->ctl({"vm", "balloon", "web", "--target", "1M"}).code, 1) << "it is not running";
}

}  // namespace
}  // namespace fvmm::test
