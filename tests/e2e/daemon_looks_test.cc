// Looking at a VM costs it nothing that is under way: a monitor may ask as often as it likes.
#include "support/daemons.h"

namespace fvmm::test {
namespace {

class DaemonLooks : public TwoHostsWithWeb {};

TEST_F(DaemonLooks, ACaptureThatLastsIsNotBrokenOffByThem) {
  // All of the guest's memory, through a buffer of a fourth of it, onto a slow link: the capture lasts.
  const Ctl started = a_->ctl({"replicate", "start", "web", "--to", b_->listen(), "--interval", "20ms", "--buffer",
                               "16M", "--bandwidth", "200Mbit"});
  ASSERT_EQ(started.code, 0) << started;
  int looks = 0;
  EXPECT_TRUE(wait_until([&] {
    ++looks;
    EXPECT_EQ(a_->ctl({"vm", "show", "web"}).code, 0);
    return a_->ctl({"replicate", "status", "web"}).number("generation_sealed") >= 1;
  })) << a_->ctl({"replicate", "status", "web"});
  EXPECT_GT(looks, 1) << "the capture did not last long enough to be looked at";
  EXPECT_EQ(a_->ctl({"replicate", "stop", "web"}).code, 0);
}

TEST_F(DaemonLooks, TheLastFiguresStandWhileACaptureHasTheGuest) {
  const double before = a_->ctl({"vm", "show", "web"}).number("delta_pages");
  ASSERT_GT(before, 0);
  const Ctl started = a_->ctl({"replicate", "start", "web", "--to", b_->listen(), "--interval", "20ms", "--buffer",
                               "16M", "--bandwidth", "200Mbit"});
  ASSERT_EQ(started.code, 0) << started;
  for (int look = 0; look < 10; ++look) EXPECT_GE(a_->ctl({"vm", "show", "web"}).number("delta_pages"), before);
  EXPECT_EQ(a_->ctl({"replicate", "stop", "web"}).code, 0);
}

}  // namespace
}  // namespace fvmm::test
