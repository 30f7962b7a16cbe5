// Virtio devices between two real daemons: configured by fvmmctl, carried by templates, clones and migrations.
#include "support/daemons.h"

namespace fvmm::test {
namespace {

class DaemonVirtio : public TwoHosts {
 protected:
  void boot(const std::string& vm) {
    const Ctl created = a_->ctl({"vm", "create", vm, "--memory", "64M", "--kernel", guest("virtio.elf"), "--cmdline",
                                 "beat=50", "--rng", "--console", "--start"});
    ASSERT_EQ(created.code, 0) << created;
    ASSERT_TRUE(a_->serial_contains(vm, "VQ n=3 "));
  }
  /// The guest has answers on this host, and no complaint.
  void expect_good(Host& host, const std::string& vm) {
    const std::size_t before = host.serial(vm).size();
    EXPECT_TRUE(wait_until([&] { return host.serial(vm).find("VQ n=", before + 200) != std::string::npos; }));
    const std::string all = host.serial(vm);
    EXPECT_EQ(all.find("ERR "), std::string::npos) << all;
    EXPECT_NE(all.rfind(" errors=0 "), std::string::npos) << all;
  }
};

TEST_F(DaemonVirtio, DevicesMigrateAndAreCloned) {
  boot("web");
  EXPECT_TRUE(Host::text(a_->vm("web"), "virtio_console_path").ends_with(".hvc0"));
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  const Ctl cloned = a_->ctl({"vm", "clone", "copy", "--template", "base", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  expect_good(*a_, "copy");

  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen(), "--mode", "suspend"});
  ASSERT_EQ(moved.code, 0) << moved;
  expect_good(*b_, "web");
  const std::string console = Host::text(b_->vm("web"), "virtio_console_path");
  EXPECT_TRUE(std::filesystem::is_socket(console)) << console;

  const Ctl stopped = b_->ctl({"vm", "stop", "web"});
  ASSERT_EQ(stopped.code, 0) << stopped;
  EXPECT_TRUE(wait_until([&] { return !std::filesystem::exists(console); })) << "nothing stays behind";
}

TEST_F(DaemonVirtio, AVmWithoutAVirtioConsoleSaysHowToGetOne) {
  const Ctl created = a_->ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("idle.elf"), "--start"});
  ASSERT_EQ(created.code, 0) << created;
  const Ctl console = a_->ctl({"vm", "console", "web", "--virtio"});
  EXPECT_EQ(console.code, 1) << console;
  EXPECT_NE(console.err.find("--console"), std::string::npos) << console;
}

}  // namespace
}  // namespace fvmm::test
