// VMs of several vCPUs, without a guest operating system: who starts, who waits, and that all of them stop, are saved
// and come back.
#include "support/elf_image.h"
#include "support/guest_vm.h"
#include "support/stored_template.h"
#include "support/tiny_kernel.h"

namespace fvmm {
namespace {

constexpr unsigned kVcpus = 4;

Result<std::unique_ptr<vmm::Vm>> make_smp(vmm::VmStopped on_stopped) {
  auto vm = FVMM_TRY(vmm::Vm::create({.memory_bytes = 64 * kMiB, .vcpus = kVcpus}, std::move(on_stopped)));
  FVMM_TRY(vm->attach_devices({}));
  const auto supported = FVMM_TRY(vm->kvm().supported_cpuid());
  FVMM_TRY(vm->set_cpu(
      FVMM_TRY(vmm::build_cpuid(vmm::default_cpu_template(vm->kvm().features()), supported, vm->tsc_khz()))));
  FVMM_TRY(vm->memory().map_zero());
  return vm;
}

/// Wakes every other vCPU with INIT and SIPI, each to count itself in at 0x9000; the first says the count, then waits
/// for a key and pulls the reset line.
std::string counting_kernel() {
  // The others begin at 0x8:0000 in real mode: lock incl 0x9000; 1: hlt; jmp 1b. (The command line lies there; it has
  // been read by nobody.)
  test::Code code;
  const std::initializer_list<int> other{0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0x66, 0xff, 0x06,
                                         0x00, 0x90, 0xf4, 0xeb, 0xfd, 0x90, 0x90, 0x90};
  std::string bytes;
  for (const int one : other) bytes.push_back(static_cast<char>(one));
  for (std::uint32_t i = 0; i < bytes.size(); i += 4) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes.data() + i, 4);
    code.store(0x8000 + i, word);
  }
  code.store(0xfee000f0, 0x1ff);                                                // APIC on
  code.store(0xfee00300, 0x000c4500);                                           // INIT to all but self
  code.bytes({0xb9, 0x00, 0x10, 0x00, 0x00, 0xe2, 0xfe});                       // mov ecx, 4096; loop to itself
  code.store(0xfee00300, 0x000c4608);                                           // SIPI to page 8
  code.bytes({0xa1}).word(0x9000).bytes({0x83, 0xf8, kVcpus - 1, 0x75, 0xf6});  // until all have counted
  code.say('A').say('L').say('L').say('\n');
  code.bytes({0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7});  // until a key has been typed
  code.out(0x64, static_cast<char>(0xfe)).halt();
  return test::tiny_kernel(code.text());
}

TEST(Smp, AllVcpusStartSurviveATransferAndEndTogether) {
  FVMM_NEEDS_KVM();
  const testing::TempDir directory;
  const std::string kernel = test::write_text(directory.path() / "kernel", counting_kernel());
  test::StopLatch first_stop;
  auto made = make_smp(first_stop.callback());
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  ASSERT_TRUE(vm.boot({.kernel = kernel, .initrd = "", .cmdline = ""}).ok());
  ASSERT_TRUE(vm.resume().ok());
  (void)test::wait_for_output(vm, "ALL\n");
  ASSERT_TRUE(vm.pause().ok());

  auto replica = test::replica_of(vm, [](v1::MachineState& state) {
    ASSERT_EQ(state.vcpus_size(), static_cast<int>(kVcpus));
    for (const auto& vcpu : state.vcpus()) EXPECT_EQ(vcpu.tsc_offset(), state.vcpus(0).tsc_offset());
  });
  ASSERT_TRUE(replica.ok()) << replica.error().message();
  EXPECT_TRUE((*replica)->resume().ok());
  EXPECT_TRUE((*replica)->pause().ok());

  ASSERT_TRUE(vm.resume().ok());
  EXPECT_EQ(test::type(vm, "x"), 1U);
  EXPECT_EQ(first_stop.wait().kind, vmm::VcpuStop::Kind::kReset);
  ASSERT_TRUE(vm.pause().ok()) << "all of them are at rest";
  EXPECT_FALSE(vm.resume().ok()) << "and none runs on without the others";
  EXPECT_FALSE(vm.save_state().ok());
  EXPECT_EQ(first_stop.count(), 1);
}

TEST(Smp, VcpusThatWaitForTheirStartAreSavedAndLoadedWaiting) {
  FVMM_NEEDS_KVM();
  const auto never = [](const vmm::VcpuStop& stop) { ADD_FAILURE() << stop.report; };
  auto made = make_smp(never);
  ASSERT_TRUE(made.ok()) << made.error().message();
  const testing::TempDir directory;
  test::Code code;
  code.say('U').say('P').say('\n').halt();
  const std::string kernel = test::write_text(directory.path() / "kernel", test::tiny_kernel(code.text()));
  ASSERT_TRUE((*made)->boot({.kernel = kernel, .initrd = "", .cmdline = ""}).ok());
  ASSERT_TRUE((*made)->resume().ok());
  (void)test::wait_for_output(**made, "UP\n");
  ASSERT_TRUE((*made)->pause().ok());
  const auto mp_states = [](const v1::MachineState& state) {
    std::vector<std::uint32_t> states;
    for (const auto& vcpu : state.vcpus()) {
      kvm_mp_state one{};
      std::memcpy(&one, vcpu.mp_state().data(), sizeof one);
      states.push_back(one.mp_state);
    }
    return states;
  };
  std::vector<std::uint32_t> before;
  auto replica = test::replica_of(**made, [&](v1::MachineState& state) { before = mp_states(state); });
  ASSERT_TRUE(replica.ok()) << replica.error().message();
  ASSERT_EQ(before.size(), kVcpus);
  for (unsigned i = 1; i < kVcpus; ++i) EXPECT_EQ(before[i], static_cast<std::uint32_t>(KVM_MP_STATE_UNINITIALIZED));
  ASSERT_TRUE((*replica)->resume().ok());
  ASSERT_TRUE((*replica)->pause().ok());
  const auto after = (*replica)->save_state();
  ASSERT_TRUE(after.ok()) << after.error().message();
  EXPECT_EQ(mp_states(*after), before);
}

}  // namespace
}  // namespace fvmm
