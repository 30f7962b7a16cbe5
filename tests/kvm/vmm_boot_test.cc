// A guest of our own boots, fills and verifies its memory under our VMM.
#include "support/guest_vm.h"

namespace fvmm {
namespace {

TEST(Boot, WorkloadFillsAndVerifiesItsMemory) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("workload.elf", 64 * kMiB, "seed=7 ws=4 rate=1000 beat=50");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  const std::string out = test::wait_for_output(**vm, "sweeps=2");
  EXPECT_EQ(out.find("ERR"), std::string::npos) << out;
  EXPECT_NE(out.find("errors=0"), std::string::npos) << out;
}

}  // namespace
}  // namespace fvmm
