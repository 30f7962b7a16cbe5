// How a guest ends by itself: what the owner is told, once, and what is still possible afterwards.
#include <fstream>

#include "support/elf_image.h"
#include "support/guest_vm.h"
#include "support/stored_template.h"

namespace fvmm {
namespace {

using vmm::VcpuStop;

struct Stopped {
  std::unique_ptr<test::StopLatch> latch = std::make_unique<test::StopLatch>();
  std::unique_ptr<vmm::Vm> vm;
};

/// Boots the code and lets it run.
Result<Stopped> run_code(const test::Code& code) {
  const testing::TempDir directory;
  const std::string path = (directory.path() / "kernel").string();
  const std::string image = test::kernel_of(code.text()).build();
  std::ofstream(path, std::ios::binary) << image;
  Stopped run;
  run.vm = FVMM_TRY(test::make_vm(memory::kRamBytesMin, run.latch->callback()));
  FVMM_TRY(run.vm->memory().map_zero());
  FVMM_TRY(run.vm->boot({.kernel = path, .initrd = "", .cmdline = ""}));
  FVMM_TRY(run.vm->resume());
  return run;
}

// popcnt eax, [0xd0000000]: a memory access that no host does natively, by an instruction that KVM cannot emulate.
TEST(Stop, InstructionThatKvmCannotEmulateIsAFailureWithRegistersAndCode) {
  FVMM_NEEDS_KVM();
  test::Code code;
  code.say('A').bytes({0xbb}).word(0x12345678);  // mov ebx
  code.bytes({0xf3, 0x0f, 0xb8, 0x05}).word(0xd0000000).say('B').halt();
  auto run = run_code(code);
  ASSERT_TRUE(run.ok()) << run.error().message();
  const VcpuStop stop = run->latch->wait();
  EXPECT_EQ(stop.kind, VcpuStop::Kind::kFailed);
  EXPECT_NE(stop.report.find("emulation failed"), std::string::npos) << stop.report;
  EXPECT_NE(stop.report.find("rbx=0000000012345678"), std::string::npos) << stop.report;
  EXPECT_NE(stop.report.find("rip=000000000010000c"), std::string::npos) << stop.report;
  EXPECT_NE(stop.report.find("code=f30fb805000000d0"), std::string::npos) << stop.report;
  ASSERT_TRUE(run->vm->serial_output()->flush(Deadline::after(std::chrono::seconds(20))));
  EXPECT_EQ(run->vm->serial_output()->recent(), "A");
}

// Without an interrupt table the first exception becomes a triple fault.
TEST(Stop, TripleFaultIsAReset) {
  FVMM_NEEDS_KVM();
  test::Code code;
  code.store(0x200000, 0).store(0x200004, 0).bytes({0x0f, 0x01, 0x1d}).word(0x200000);  // lidt: limit 0
  code.bytes({0x0f, 0x0b});                                                             // ud2
  auto run = run_code(code);
  ASSERT_TRUE(run.ok()) << run.error().message();
  EXPECT_EQ(run->latch->wait().kind, VcpuStop::Kind::kReset);
}

TEST(Stop, ResetLineStopsTheGuestAtThatInstruction) {
  FVMM_NEEDS_KVM();
  test::Code code;
  code.say('A').out(0x64, static_cast<char>(0xfe)).say('B').halt();
  auto run = run_code(code);
  ASSERT_TRUE(run.ok()) << run.error().message();
  const VcpuStop stop = run->latch->wait();
  EXPECT_EQ(stop.kind, VcpuStop::Kind::kReset);
  EXPECT_NE(stop.report.find("reset line"), std::string::npos) << stop.report;
  ASSERT_TRUE(run->vm->pause().ok());
  EXPECT_TRUE(run->vm->serial_output()->flush(Deadline::after(std::chrono::seconds(10))).ok());
  ASSERT_TRUE(run->vm->serial_output()->flush(Deadline::after(std::chrono::seconds(20))));
  EXPECT_EQ(run->vm->serial_output()->recent(), "A");
  EXPECT_EQ(run->latch->count(), 1);
}

TEST(Stop, WorkloadQuitsByTheResetLine) {
  FVMM_NEEDS_KVM();
  test::StopLatch latch;
  auto vm = test::boot_vm("workload.elf", 64 * kMiB, "fill=0 ws=1 beat=20", latch.callback());
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->resume().ok());
  test::wait_for_output(**vm, "HB n=1 ");
  EXPECT_EQ(test::type(**vm, "q"), 1U);
  EXPECT_EQ(latch.wait().kind, VcpuStop::Kind::kReset);
  test::wait_for_output(**vm, "QUIT step=");
}

TEST(Stop, AStoppedGuestPausesButNeitherResumesNorSaves) {
  FVMM_NEEDS_KVM();
  test::Code code;
  code.out(0x64, static_cast<char>(0xfe)).halt();
  auto run = run_code(code);
  ASSERT_TRUE(run.ok()) << run.error().message();
  run->latch->wait();
  EXPECT_TRUE(run->vm->pause().ok());
  const auto state = run->vm->save_state();
  ASSERT_FALSE(state.ok());
  EXPECT_EQ(state.error().code(), Errc::kFailedPrecondition);
  const Status resumed = run->vm->resume();
  ASSERT_FALSE(resumed.ok());
  EXPECT_EQ(resumed.error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(run->vm->paused());
}

TEST(Stop, AHaltedGuestStillPausesAndResumes) {
  FVMM_NEEDS_KVM();
  auto run = run_code(test::Code().say('A').halt());
  ASSERT_TRUE(run.ok()) << run.error().message();
  test::wait_for_output(*run->vm, "A");
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(run->vm->pause().ok());
    ASSERT_TRUE(run->vm->save_state().ok());
    ASSERT_TRUE(run->vm->resume().ok());
  }
  EXPECT_EQ(run->latch->count(), 0);
}

}  // namespace
}  // namespace fvmm
