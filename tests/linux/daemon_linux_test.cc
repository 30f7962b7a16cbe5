// Real Linux kernels under real daemons: boot to user space, console, template, clones, migration, restart. Init's
// threads never stop computing, and every mark they write is checked.
#include "disk/open.h"
#include "support/console.h"
#include "support/daemons.h"
#include "support/disk_guest.h"
#include "support/linux_guest.h"
#include "support/packed.h"
#include "support/tiny_kernel.h"

namespace fvmm::test {
namespace {

constexpr unsigned kLinuxDiskBlocks = 64;

class DaemonLinux : public ::testing::Test {
 protected:
  void boot(const std::string& kernel, unsigned cpus, const std::string& memory, const std::string& disk = "") {
    a_ = &cluster_.add("A");
    b_ = &cluster_.add("B");
    cpus_ = cpus;
    std::vector<std::string> words{"vm",
                                   "create",
                                   "tux",
                                   "--memory",
                                   memory,
                                   "--vcpus",
                                   std::to_string(cpus),
                                   "--kernel",
                                   kernel,
                                   "--initrd",
                                   guest("linux-init.cpio"),
                                   "--cmdline",
                                   linux_cmdline(cpus, disk.empty() ? 0 : kLinuxDiskBlocks),
                                   "--start"};
    if (!disk.empty()) words.insert(words.end(), {"--disk", disk});
    const Ctl created = a_->ctl(words);
    ASSERT_EQ(created.code, 0) << created;
    const bool up = wait_until(
        [&] {
          const std::string state = a_->state("tux");
          return a_->serial("tux").find("INIT START") != std::string::npos || state == "failed" || state == "stopped";
        },
        kLinuxBootWait);
    ASSERT_TRUE(up) << "Linux does not reach user space; it wrote:\n" << a_->serial("tux");
    ASSERT_EQ(a_->state("tux"), "running") << Host::text(a_->vm("tux"), "detail");
    ASSERT_TRUE(linux_goes_on(*a_, "tux", cpus_, 1));
  }
  /// What the guest sees of a layer over its base, as one raw image.
  std::string flatten(const std::string& layer, const std::string& base) {
    disk::Stack stack = disk::open_disk({.path = layer, .base = base}).value();
    const UniqueFd out = open_file(cluster_.root() / "flat", O_RDWR | O_CREAT).value();
    std::vector<std::byte> bytes(disk::kClusterBytes);
    for (std::uint64_t cluster = 0; cluster * disk::kClusterBytes < stack.bytes(); ++cluster) {
      const std::uint64_t at = cluster * disk::kClusterBytes;
      const auto part = std::span(bytes).first(std::min(disk::kClusterBytes, stack.bytes() - at));
      const disk::Extent from = stack.find(cluster);
      std::ranges::fill(part, std::byte{0});
      if (!from.zeros()) {
        EXPECT_TRUE(read_all(from.fd, part, from.offset).ok());
      }
      EXPECT_TRUE(write_all(out.get(), part, at).ok());
    }
    return cluster_.root() / "flat";
  }
  void migrate(Host& from, Host& to, const std::string& mode) {
    SCOPED_TRACE(mode);
    const Ctl moved = from.ctl({"migrate", "tux", "--to", to.listen(), "--mode", mode, "--max-downtime", "500ms"});
    ASSERT_EQ(moved.code, 0) << moved;
    std::cout << mode << ": downtime " << moved.number("downtime_ms") << " ms, duration " << moved.number("duration_ms")
              << " ms, pages " << moved.number("pages_sent") << std::endl;
    EXPECT_TRUE(wait_until([&] { return to.state("tux") == "running"; })) << to.state("tux");
    EXPECT_EQ(from.state("tux"), "moved");
    EXPECT_TRUE(linux_goes_on(to, "tux", cpus_));
  }
  void clone_twice_and_let_them_run() {
    ASSERT_EQ(a_->ctl({"template", "create", "gold", "--from", "tux"}).code, 0);
    ASSERT_TRUE(linux_goes_on(*a_, "tux", cpus_, 1)) << "the original goes on";
    const Ctl cloned = a_->ctl({"vm", "clone", "twin", "--template", "gold", "--count", "2", "--start"});
    ASSERT_EQ(cloned.code, 0) << cloned;
    std::set<std::string> ids;
    for (const auto* name : {"tux", "twin-1", "twin-2"}) {
      EXPECT_TRUE(linux_goes_on(*a_, name, cpus_, 1)) << name;
      ids.insert(Host::text(a_->vm(name).at("config").as_object(), "id"));
    }
    EXPECT_EQ(ids.size(), 3U) << "a clone is a VM of its own";
    for (const auto* name : {"twin-1", "twin-2"}) EXPECT_EQ(a_->ctl({"vm", "stop", name}).code, 0);
  }

  /// Unmounted by the guest, its filesystem is clean, and has the file that the guest wrote.
  void expect_clean_after_reboot(const std::string& vm, const std::string& layer, const std::string& base) {
    Console console(*a_, vm);
    console.type("reboot\n");
    EXPECT_TRUE(wait_until([&] { return a_->state(vm) == "stopped"; })) << a_->state(vm);
    const std::string flat = flatten(layer, base);
    int code = -1;
    const std::string checked = run_tool(cluster_.root() / "fsck", {"/sbin/e2fsck", "-f", "-n", flat}, code);
    EXPECT_EQ(code, 0) << checked;
    const std::string found = run_tool(cluster_.root() / "stat", {"/sbin/debugfs", "-R", "stat /blocks", flat}, code);
    EXPECT_NE(found.find("Type: regular"), std::string::npos) << found;
    std::filesystem::remove(flat);
  }
  /// A mounted filesystem, half of it in the guest's memory: each clone goes on with both, on a disk of its own.
  void clone_twice_with_their_disks(const std::string& base) {
    const Ctl made = a_->ctl({"template", "create", "gold", "--from", "tux"});
    ASSERT_EQ(made.code, 0) << made;
    const std::string place = (cluster_.root() / "twin-%n").string();
    const Ctl cloned =
        a_->ctl({"vm", "clone", "twin", "--template", "gold", "--count", "2", "--disk", "path=" + place, "--start"});
    ASSERT_EQ(cloned.code, 0) << cloned;
    for (const auto* twin : {"twin-1", "twin-2"}) {
      EXPECT_TRUE(linux_disk_goes_on(*a_, twin));
      EXPECT_TRUE(linux_goes_on(*a_, twin, cpus_, 1));
    }
    for (const auto* twin : {"twin-1", "twin-2"})
      expect_clean_after_reboot(twin, (cluster_.root() / twin).string(), base);
  }

  Cluster cluster_;
  Host* a_ = nullptr;
  Host* b_ = nullptr;
  unsigned cpus_ = 1;
};

TEST_F(DaemonLinux, OneCpuBootsTalksIsClonedMovesAndRestarts) {
  FVMM_NEEDS_LINUX("up", kernel);
  ASSERT_NO_FATAL_FAILURE(boot(kernel, 1, "64M"));
  Console console(*a_, "tux");
  console.type("are you there\n");
  EXPECT_TRUE(console.shows("ECHO are you there"));
  EXPECT_EQ(console.leave(), 0);

  ASSERT_NO_FATAL_FAILURE(clone_twice_and_let_them_run());
  ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, "suspend"));
  ASSERT_NO_FATAL_FAILURE(migrate(*b_, *a_, "live"));

  Console again(*a_, "tux");
  again.type("reboot\n");
  EXPECT_TRUE(wait_until([&] { return a_->state("tux") == "stopped"; })) << a_->state("tux");
  EXPECT_NE(Host::text(a_->vm("tux"), "detail").find("reset line"), std::string::npos);
}

TEST_F(DaemonLinux, TwoCpusBootAreClonedAndMove) {
  FVMM_NEEDS_LINUX("smp", kernel);
  ASSERT_NO_FATAL_FAILURE(boot(kernel, 2, "64M"));
  ASSERT_NO_FATAL_FAILURE(clone_twice_and_let_them_run());
  ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, "suspend"));
  ASSERT_NO_FATAL_FAILURE(migrate(*b_, *a_, "live"));
}

// An ext2 made by the host, mounted, written and read by the guest on both hosts, clean and whole at the end.
TEST_F(DaemonLinux, ADiskIsMountedWrittenAndGoesWithItsVm) {
  FVMM_NEEDS_LINUX("up", kernel);
  const std::string image = disk_image(cluster_.root() / "ext2", 8 << 20);
  int code = -1;
  const std::string made = run_tool(cluster_.root() / "mkfs", {"/sbin/mkfs.ext2", "-q", "-F", image}, code);
  ASSERT_EQ(code, 0) << made << " (the package e2fsprogs)";
  const std::string layer = (cluster_.root() / "layer").string();
  ASSERT_NO_FATAL_FAILURE(boot(kernel, 1, "64M", "path=" + layer + ",base=" + image + ",shared"));
  ASSERT_TRUE(linux_disk_goes_on(*a_, "tux"));
  ASSERT_NO_FATAL_FAILURE(clone_twice_with_their_disks(image));
  ASSERT_TRUE(linux_disk_goes_on(*a_, "tux"));
  ASSERT_NO_FATAL_FAILURE(migrate(*a_, *b_, "suspend"));
  EXPECT_TRUE(linux_disk_goes_on(*b_, "tux"));
  ASSERT_NO_FATAL_FAILURE(migrate(*b_, *a_, "live"));
  EXPECT_TRUE(linux_disk_goes_on(*a_, "tux"));
  expect_clean_after_reboot("tux", layer, image);
}

// The same kernel as a bzImage whose vmlinux hides its PVH note: nothing is left but Linux's own 64-bit entry.
TEST_F(DaemonLinux, BzImageIsUnpackedAndEnteredBy64Bits) {
  FVMM_NEEDS_LINUX("up", kernel);
  std::string vmlinux = read_text(kernel);
  const std::string note("\x12\0\0\0Xen\0", 8);  // type 18 and name of XEN_ELFNOTE_PHYS32_ENTRY
  const auto at = vmlinux.find(note);
  ASSERT_NE(at, std::string::npos);
  vmlinux[at] = 0x7f;
  const std::string image = write_text(cluster_.root() / "bzImage", bzimage_of(packed("zstd", vmlinux)));
  ASSERT_NO_FATAL_FAILURE(boot(image, 1, "64M"));
}

}  // namespace
}  // namespace fvmm::test
