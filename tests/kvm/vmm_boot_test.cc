// Guests of our own boot, print, read input and verify their memory, at sizes on both sides of the hole.
#include "support/guest_vm.h"

namespace fvmm {
namespace {

TEST(Boot, WorkloadFillsAndVerifiesItsMemory) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("workload.elf", 64 * kMiB, "seed=7 ws=4 rate=1000 beat=50");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  (void)test::wait_for_output(**vm, "sweeps=2");
  const std::string beat = test::wait_for_next(**vm, "HB ");  // a whole line
  EXPECT_NE(beat.find("errors=0"), std::string::npos) << beat;
  EXPECT_EQ(test::complaint((*vm)->serial_output()->recent()), "");
}

TEST(Boot, IdleTicks) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("idle.elf", 64 * kMiB, "tick=20");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  const std::string out = test::wait_for_output(**vm, "TICK n=5 ");
  EXPECT_EQ(test::complaint(out), "");
}

TEST(Boot, RegsFindsItsRegistersWhole) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("regs.elf", 64 * kMiB, "beat=20");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  const std::string out = test::wait_for_output(**vm, "REGS ok n=5 ");
  EXPECT_EQ(test::complaint(out), "");
}

TEST(Boot, SmallestMemory) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("workload.elf", memory::kRamBytesMin, "ws=1 beat=20");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  EXPECT_EQ(test::verified(**vm), "");
}

// A working set spread over all of RAM lies on both sides of the hole; only it is touched, so little memory is used.
TEST(Boot, MemoryBeyondTheHoleIsWrittenAndLogged) {
  FVMM_NEEDS_KVM();
  constexpr std::uint64_t kBytes = 4 * kGiB + 512 * kMiB;
  auto made = test::boot_vm("workload.elf", kBytes, "fill=0 ws=1 spread=1 rate=5000 beat=50");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto reader = vm.dirty().add_reader();
  ASSERT_TRUE(vm.resume().ok());
  test::wait_for_output(vm, "ram_pages=" + std::to_string(kBytes / kPageBytes));
  EXPECT_EQ(test::verified(vm), "");
  ASSERT_TRUE(vm.pause().ok());
  ASSERT_TRUE(vm.dirty().harvest().ok());
  const memory::PageIndex hole = memory::kHoleStart / kPageBytes;
  std::uint64_t below = 0;
  std::uint64_t above = 0;
  for (const memory::PageRange& range : reader->pending().ranges(1)) (range.first < hole ? below : above) += 1;
  EXPECT_GE(below, 256U * 5 / 10);  // of 256 pages of the working set, two thirds lie below
  EXPECT_GE(above, 256U * 2 / 10);
}

TEST(Boot, SerialInputReachesTheGuest) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("workload.elf", 64 * kMiB, "fill=0 ws=1 beat=20");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  test::wait_for_output(**vm, "HB n=1 ");
  EXPECT_EQ(test::type(**vm, "p"), 1U);
  test::wait_for_output(**vm, "PAUSED step=");
  EXPECT_EQ(test::type(**vm, "r"), 1U);
  test::wait_for_output(**vm, "RESUMED step=");
}

TEST(Create, RefusesShapesItCannotRun) {
  const auto code_of = [](std::uint64_t bytes, unsigned vcpus) {
    const auto vm = vmm::Vm::create({.memory_bytes = bytes, .vcpus = vcpus}, [](const vmm::VcpuStop&) {});
    return vm.error().code();
  };
  EXPECT_EQ(code_of(64 * kMiB, 0), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(64 * kMiB, vmm::kVcpusMax + 1), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(memory::kRamBytesMin - kPageBytes, 1), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(memory::kRamBytesMax + kPageBytes, 1), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(64 * kMiB + 1, 1), Errc::kInvalidArgument);
}

TEST(Create, AWarmVmEndsWithoutEverHavingRun) {
  FVMM_NEEDS_KVM();
  for (const unsigned vcpus : {1U, vmm::kVcpusMax}) {
    auto vm = vmm::Vm::create({.memory_bytes = 64 * kMiB, .vcpus = vcpus}, [](const vmm::VcpuStop&) {});
    ASSERT_TRUE(vm.ok()) << vm.error().message();
    EXPECT_TRUE((*vm)->paused());
  }
}

}  // namespace
}  // namespace fvmm
