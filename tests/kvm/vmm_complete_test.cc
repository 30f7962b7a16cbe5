// Instructions at which KVM-PVM's emulator stops, run by a guest at CPL 0. On hosts with hardware below KVM the same
// guest shows that the expected values are the CPU's own.
#include <map>

#include "support/guest_vm.h"

namespace fvmm {
namespace {

std::map<std::string, std::uint64_t> results_in(const std::string& out) {
  std::map<std::string, std::uint64_t> results;
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    const auto equals = line.find('=');
    if (line.starts_with("INSN ") && equals != std::string::npos) {
      results[line.substr(5, equals - 5)] = std::stoull(line.substr(equals + 1), nullptr, 16);
    }
  }
  return results;
}

TEST(Complete, EveryInstructionDoesWhatTheCpuDoes) {
  FVMM_NEEDS_KVM();
  auto vm = test::boot_vm("instructions.elf", 64 * kMiB, "");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  auto results = results_in(test::wait_for_output(**vm, "INSN done"));
  const std::map<std::string, std::uint64_t> wanted = {
      {"fnclex", 0xff'3800'0000'1f80},  // tags, status, MXCSR
      {"emms", 0x0041'0000'1f80},
      {"fnstsw_ax", 0x1122334455660041},
      {"fnstsw_m16", 0xffff0041},
      {"ldmxcsr", 0x0041'0000'9fc0},
      {"stmxcsr", 0x9fc0},
      {"popcnt64", 9},
      {"popcnt64_flags", 0},
      {"popcnt32_of_0", 0},
      {"popcnt32_of_0_flags", 0x40},
      {"popcnt16_mem", 0xffffffffffff0002},
      {"lsl", 0xffffffff},
      {"lar_null", ~std::uint64_t{0}},
      {"verw_data", 1},
      {"verw_code", 0},
  };
  for (const auto& [name, value] : wanted) EXPECT_EQ(results[name], value) << name;
  EXPECT_EQ(results["lar"] & 0xF0FE00, 0xA09A00U) << "64-bit code, readable, CPL 0; the accessed bit aside";
  // Values that the test's own CPU gives.
  std::uint64_t crc = 0x12345678;
  __asm__("crc32b %b1, %k0" : "+r"(crc) : "q"(std::uint64_t{0xab}));
  EXPECT_EQ(results["crc32b"], crc);
  crc = 0;
  __asm__("crc32q %1, %0" : "+r"(crc) : "r"(std::uint64_t{0x0123456789abcdef}));
  EXPECT_EQ(results["crc32q"], crc);
  if (results.contains("stac")) {
    EXPECT_EQ(results["stac"], 0x40000U);
    EXPECT_EQ(results["clac"], 0U);
  }
  if ((*vm)->kvm().features().pvm) {
    EXPECT_GE((*vm)->completed_instructions(), 15U);
  } else {
    EXPECT_EQ((*vm)->completed_instructions(), 0U);
  }
}

TEST(Complete, SwitchedOffTheGuestFailsWithAReport) {
  FVMM_NEEDS_KVM();
  test::StopLatch stopped;
  auto vm = test::boot_vm("instructions.elf", 64 * kMiB, "", stopped.callback());
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  if (!(*vm)->kvm().features().pvm) GTEST_SKIP() << "hardware runs them all";
  (*vm)->complete_instructions(false);
  ASSERT_TRUE((*vm)->resume().ok());
  const vmm::VcpuStop stop = stopped.wait();
  EXPECT_EQ(stop.kind, vmm::VcpuStop::Kind::kFailed);
  EXPECT_NE(stop.report.find("instruction emulation failed"), std::string::npos) << stop.report;
  EXPECT_NE(stop.report.find("rip="), std::string::npos);
  EXPECT_EQ((*vm)->completed_instructions(), 0U);
}

}  // namespace
}  // namespace fvmm
