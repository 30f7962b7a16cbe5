// A machine's state goes out and comes back in another VM, and the guest itself finds nothing amiss.
#include <fstream>

#include "support/elf_image.h"
#include "support/guest_vm.h"
#include "support/stored_template.h"

namespace fvmm {
namespace {

using std::chrono::milliseconds;

Result<std::unique_ptr<vmm::Vm>> running(const std::string& guest, const std::string& options,
                                         const std::string& until) {
  auto vm = FVMM_TRY(test::boot_vm(guest, 64 * kMiB, options));
  FVMM_TRY(vm->resume());
  test::wait_for_output(*vm, until);
  return vm;
}

Result<std::unique_ptr<vmm::Vm>> paused_workload() {
  auto vm = FVMM_TRY(running("workload.elf", "seed=11 ws=4 rate=2000 beat=20", "HB n=2 "));
  FVMM_TRY(vm->pause());
  return vm;
}

/// Milliseconds since its boot, by the guest's TSC, in its last line of that kind.
std::uint64_t last_ms(vmm::Vm& vm, std::string_view prefix) {
  const auto lines = test::printed_since(vm, 0).lines;
  const auto last =
      std::find_if(lines.rbegin(), lines.rend(), [&](const auto& line) { return line.starts_with(prefix); });
  return last == lines.rend() ? 0 : test::field(*last, "ms").value_or(0);
}

/// KVM-PVM applies no TSC offset.
bool tsc_is_the_hosts(const v1::MachineState& state) {
  return state.vcpus(0).tsc_offset() == 0;
}

v1::Msr* msr(v1::MachineState& state, std::uint32_t index) {
  for (v1::Msr& one : *state.mutable_vcpus(0)->mutable_msrs()) {
    if (one.index() == index) return &one;
  }
  return nullptr;
}

TEST(State, WorkloadGoesOnInAnotherVm) {
  FVMM_NEEDS_KVM();
  auto source = paused_workload();
  ASSERT_TRUE(source.ok()) << source.error().message();
  auto target = test::replica_of(**source);
  ASSERT_TRUE(target.ok()) << target.error().message();
  ASSERT_TRUE((*target)->resume().ok());
  EXPECT_EQ(test::verified(**target), "");
}

TEST(State, AllRegistersArriveWhole) {
  FVMM_NEEDS_KVM();
  auto vm = running("regs.elf", "beat=20", "REGS ok n=2 ");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE((*vm)->pause().ok());
    auto target = test::replica_of(**vm);
    ASSERT_TRUE(target.ok()) << target.error().message();
    ASSERT_TRUE((*target)->resume().ok());
    test::wait_for_next(**target, "REGS ok");
    test::wait_for_next(**target, "REGS ok");
    EXPECT_EQ(test::complaint((*target)->serial_output()->recent()), "");
    *vm = std::move(*target);
  }
}

TEST(State, TimerTicksGoOn) {
  FVMM_NEEDS_KVM();
  auto vm = running("idle.elf", "tick=20", "TICK n=3 ");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->pause().ok());
  auto target = test::replica_of(**vm);
  ASSERT_TRUE(target.ok()) << target.error().message();
  ASSERT_TRUE((*target)->resume().ok());
  for (int i = 0; i < 3; ++i) test::wait_for_next(**target, "TICK");
  EXPECT_EQ(test::complaint((*target)->serial_output()->recent()), "");
}

TEST(State, GuestTimeAdvancesByTheRealPauseOnTheSameHost) {
  FVMM_NEEDS_KVM();
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  const std::uint64_t before = last_ms(**vm, "HB");
  const auto saved = (*vm)->save_state();
  ASSERT_TRUE(saved.ok());
  std::this_thread::sleep_for(milliseconds(200));
  auto target = test::replica_of(**vm, [&](v1::MachineState& state) { state = *saved; });
  ASSERT_TRUE(target.ok()) << target.error().message();
  const auto loaded = (*target)->save_state();
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->vcpus(0).tsc_offset(), saved->vcpus(0).tsc_offset()) << "exact within one boot";
  EXPECT_GE(loaded->clock().kvmclock_ns(), saved->clock().kvmclock_ns() + 200'000'000);
  ASSERT_TRUE((*target)->resume().ok());
  test::wait_for_next(**target, "HB ");
  test::wait_for_next(**target, "HB ");
  EXPECT_GE(last_ms(**target, "HB"), before + 200);
}

TEST(State, GuestTimeAdvancesByTheRealtimeBetweenHosts) {
  FVMM_NEEDS_KVM();
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  const auto saved = (*vm)->save_state();
  ASSERT_TRUE(saved.ok());
  constexpr std::uint64_t kHourNs = 3'600'000'000'000;
  auto target = test::replica_of(**vm, [&](v1::MachineState& state) {
    state = *saved;
    state.mutable_clock()->set_boot_id("another boot of another host");
    state.mutable_clock()->set_realtime_ns(saved->clock().realtime_ns() - kHourNs);
  });
  if (tsc_is_the_hosts(*saved)) {  // then this very host's TSC has not got that far
    ASSERT_FALSE(target.ok());
    EXPECT_EQ(target.error().code(), Errc::kFailedPrecondition);
    EXPECT_NE(target.error().message().find("would go back"), std::string::npos) << target.error().message();
    return;
  }
  ASSERT_TRUE(target.ok()) << target.error().message();
  const auto loaded = (*target)->save_state();
  ASSERT_TRUE(loaded.ok());
  const std::uint64_t hour_ticks = 3600ULL * 1000 * (*vm)->tsc_khz();
  EXPECT_GE(loaded->vcpus(0).guest_tsc(), saved->vcpus(0).guest_tsc() + hour_ticks);
  EXPECT_LT(loaded->vcpus(0).guest_tsc(), saved->vcpus(0).guest_tsc() + 2 * hour_ticks);
  EXPECT_GE(loaded->clock().kvmclock_ns(), saved->clock().kvmclock_ns() + kHourNs);
  ASSERT_TRUE((*target)->resume().ok());
  EXPECT_EQ(test::verified(**target), "");
}

TEST(State, AClockBehindTheSourceNeverTakesGuestTimeBack) {
  FVMM_NEEDS_KVM();
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  const auto saved = (*vm)->save_state();
  ASSERT_TRUE(saved.ok());
  auto target = test::replica_of(**vm, [&](v1::MachineState& state) {
    state = *saved;
    state.mutable_clock()->set_boot_id("another boot of another host");
    state.mutable_clock()->set_realtime_ns(saved->clock().realtime_ns() + 3'600'000'000'000);
  });
  ASSERT_TRUE(target.ok()) << target.error().message();
  const auto loaded = (*target)->save_state();
  ASSERT_TRUE(loaded.ok());
  EXPECT_GE(loaded->vcpus(0).guest_tsc(), saved->vcpus(0).guest_tsc());
  EXPECT_GE(loaded->clock().kvmclock_ns(), saved->clock().kvmclock_ns());
  ASSERT_TRUE((*target)->resume().ok());
  EXPECT_EQ(test::verified(**target), "");
}

/// Without what moves with time: the countdown of the APIC timer, the times of the PIT's counters, clocks.
v1::MachineState timeless(v1::MachineState state) {
  constexpr std::size_t kCurrentCount = 0x390;
  for (v1::VcpuState& vcpu : *state.mutable_vcpus()) {
    vcpu.mutable_lapic()->replace(kCurrentCount, 4, 4, '\0');
    vcpu.clear_guest_tsc();
  }
  kvm_pit_state2 pit{};
  std::memcpy(&pit, state.pit2().data(), sizeof pit);
  for (auto& channel : pit.channels) channel.count_load_time = 0;
  state.set_pit2(&pit, sizeof pit);
  state.clear_clock();
  return state;
}

TEST(State, SavedLoadedAndSavedAgainIsTheSame) {
  FVMM_NEEDS_KVM();
  for (const char* guest : {"workload.elf", "regs.elf", "idle.elf"}) {
    auto vm = running(guest, "ws=1 beat=20 tick=20", std::string(guest) == "idle.elf" ? "TICK n=2 " : " n=2 ");
    ASSERT_TRUE(vm.ok()) << vm.error().message();
    ASSERT_TRUE((*vm)->pause().ok());
    const auto first = (*vm)->save_state();
    ASSERT_TRUE(first.ok()) << first.error().message();
    const auto again = (*vm)->save_state();
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(timeless(*first).SerializeAsString(), timeless(*again).SerializeAsString()) << "saving changes nothing";
    auto target = test::replica_of(**vm, [&](v1::MachineState& state) { state = *first; });
    ASSERT_TRUE(target.ok()) << target.error().message();
    const auto second = (*target)->save_state();
    ASSERT_TRUE(second.ok());
    const v1::MachineState a = timeless(*first);
    const v1::MachineState b = timeless(*second);
    EXPECT_EQ(a.vcpus(0).regs(), b.vcpus(0).regs()) << guest;
    EXPECT_EQ(a.vcpus(0).sregs2(), b.vcpus(0).sregs2()) << guest;
    EXPECT_EQ(a.vcpus(0).xsave(), b.vcpus(0).xsave()) << guest;
    EXPECT_EQ(a.vcpus(0).xcrs(), b.vcpus(0).xcrs()) << guest;
    EXPECT_EQ(a.vcpus(0).debugregs(), b.vcpus(0).debugregs()) << guest;
    EXPECT_EQ(a.vcpus(0).events(), b.vcpus(0).events()) << guest;
    EXPECT_EQ(a.vcpus(0).mp_state(), b.vcpus(0).mp_state()) << guest;
    EXPECT_EQ(a.vcpus(0).lapic(), b.vcpus(0).lapic()) << guest;
    ASSERT_EQ(a.vcpus(0).msrs_size(), b.vcpus(0).msrs_size());
    for (int i = 0; i < a.vcpus(0).msrs_size(); ++i) {
      EXPECT_EQ(a.vcpus(0).msrs(i).value(), b.vcpus(0).msrs(i).value())
          << guest << " MSR " << std::hex << a.vcpus(0).msrs(i).index();
    }
    EXPECT_EQ(a.irqchip_ioapic(), b.irqchip_ioapic()) << guest;
    EXPECT_EQ(a.irqchip_pic_master(), b.irqchip_pic_master()) << guest;
    EXPECT_EQ(a.irqchip_pic_slave(), b.irqchip_pic_slave()) << guest;
    EXPECT_EQ(a.pit2(), b.pit2()) << guest;
    EXPECT_EQ(a.SerializeAsString(), b.SerializeAsString()) << guest;
  }
}

TEST(State, MemoryTypesAndMachineCheckControlsTravel) {
  FVMM_NEEDS_KVM();
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  auto target = test::replica_of(**vm, [](v1::MachineState& state) {
    ASSERT_NE(msr(state, 0x2ff), nullptr);
    ASSERT_NE(msr(state, 0x201), nullptr);
    msr(state, 0x2ff)->set_value(0xc06);            // MTRRs on, write-back
    msr(state, 0x200)->set_value(0xd0000000);       // uncached ...
    msr(state, 0x201)->set_value(0xfff0000800ULL);  // ... 1 MiB
  });
  ASSERT_TRUE(target.ok()) << target.error().message();
  auto state = (*target)->save_state();
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(msr(*state, 0x2ff)->value(), 0xc06U);
  EXPECT_EQ(msr(*state, 0x200)->value(), 0xd0000000U);
  EXPECT_EQ(msr(*state, 0x201)->value(), 0xfff0000800ULL);
}

TEST(State, AnMsrOfAnotherHostIsPassedOverOnlyIfItIsZero) {
  FVMM_NEEDS_KVM();
  constexpr std::uint32_t kNoSuchMsr = 0x3fff'0000;
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  const auto with_msr = [&](std::uint64_t value) {
    return test::replica_of(**vm, [&](v1::MachineState& state) {
      v1::VcpuState* vcpu = state.mutable_vcpus(0);
      v1::Msr* extra = vcpu->add_msrs();
      extra->set_index(kNoSuchMsr);
      extra->set_value(value);
      vcpu->mutable_msrs()->SwapElements(0, vcpu->msrs_size() - 1);  // others come after it
    });
  };
  const auto refused = with_msr(1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(refused.error().message().find("0x3fff0000"), std::string::npos) << refused.error().message();
  auto taken = with_msr(0);
  ASSERT_TRUE(taken.ok()) << taken.error().message();
  ASSERT_TRUE((*taken)->resume().ok());
  EXPECT_EQ(test::verified(**taken), "");
}

TEST(State, OneOfTheWrongFormChangesNothing) {
  FVMM_NEEDS_KVM();
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  auto good = (*vm)->save_state();
  ASSERT_TRUE(good.ok());
  auto target = test::make_sibling(**vm);
  ASSERT_TRUE(target.ok()) << target.error().message();
  ASSERT_TRUE(test::copy_memory(**vm, **target).ok());
  const auto fresh = (*target)->save_state();
  ASSERT_TRUE(fresh.ok());
  const std::vector<std::function<void(v1::MachineState&)>> spoils = {
      [](auto& s) { s.set_version(99); },
      [](auto& s) { s.mutable_vcpus(0)->set_version(99); },
      [](auto& s) { s.mutable_pit2()->pop_back(); },
      [](auto& s) { s.mutable_vcpus(0)->mutable_events()->pop_back(); },
      [](auto& s) { s.mutable_vcpus(0)->mutable_xsave()->resize(1 << 20); },
      [](auto& s) { s.mutable_vcpus(0)->mutable_cpuid()->resize(40); },
      [](auto& s) { s.add_vcpus(); },
      [](auto& s) { s.mutable_vcpus(0)->set_tsc_khz(1'000); },
  };
  for (std::size_t i = 0; i < spoils.size(); ++i) {
    v1::MachineState bad = *good;
    spoils[i](bad);
    const Status status = (*target)->load_state(bad);
    ASSERT_FALSE(status.ok()) << i;
    EXPECT_TRUE(status.error().code() == Errc::kInvalidArgument || status.error().code() == Errc::kFailedPrecondition)
        << i << ": " << status.error().message();
    const auto now = (*target)->save_state();
    ASSERT_TRUE(now.ok());
    EXPECT_EQ(timeless(*now).SerializeAsString(), timeless(*fresh).SerializeAsString()) << i;
  }
  v1::MachineState bad_device = *good;
  bad_device.mutable_devices(0)->set_version(99);
  EXPECT_FALSE((*target)->load_state(bad_device).ok());
  ASSERT_TRUE((*target)->load_state(*good).ok()) << "a good one still goes in";
  ASSERT_TRUE((*target)->resume().ok());
  EXPECT_EQ(test::verified(**target), "");
}

TEST(State, ATscWithinTheToleranceIsTaken) {
  FVMM_NEEDS_KVM();
  auto vm = paused_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  const std::uint32_t near = (*vm)->tsc_khz() + 50;  // two hosts of one model, calibrated apart
  auto target = test::replica_of(**vm, [&](v1::MachineState& state) { state.mutable_vcpus(0)->set_tsc_khz(near); });
  ASSERT_TRUE(target.ok()) << target.error().message();
  EXPECT_EQ((*target)->tsc_khz(), near);
  ASSERT_TRUE((*target)->resume().ok());
  EXPECT_EQ(test::verified(**target), "");
}

TEST(State, AnotherTscIsRefusedBeforeAnyPauseWhereKvmCannotScale) {
  FVMM_NEEDS_KVM();
  auto vm = test::make_vm(64 * kMiB);
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  if ((*vm)->kvm().features().tsc_scaling) GTEST_SKIP() << "KVM here scales the TSC";
  const std::uint32_t ours = (*vm)->tsc_khz();
  const Status status = (*vm)->set_tsc_khz(ours / 2);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ((*vm)->tsc_khz(), ours);
}

// Arms the APIC's TSC deadline 2^33 + `ticks` from now, says A, waits for the interrupt to be requested, says B.
std::string deadline_kernel(std::uint32_t ticks) {
  test::Code code;
  code.store(0xfee000f0, 0x1ff).store(0xfee00320, 0x40020);                       // APIC on; deadline, 0x20
  code.bytes({0x0f, 0x31, 0x05}).word(ticks).bytes({0x83, 0xd2, 0x02});           // rdtsc; add; adc 2 more
  code.bytes({0xb9}).word(0x6e0).bytes({0x0f, 0x30}).say('A');                    // wrmsr
  code.bytes({0xa1}).word(0xfee00210).bytes({0xa9}).word(1).bytes({0x74, 0xf4});  // until IRR has 0x20
  return test::kernel_of(code.say('B').halt().text()).build();
}

// The guest's TSC is days ahead of a fresh VM's: a deadline armed before the TSC is set would be days away. (Where KVM
// applies no offset, only the timer itself is shown to go on.)
TEST(State, ATscDeadlineIsArmedAgainstTheGuestsOwnTsc) {
  FVMM_NEEDS_KVM();
  const testing::TempDir directory;
  const std::string path = (directory.path() / "kernel").string();
  {
    auto probe = test::make_vm(memory::kRamBytesMin);
    ASSERT_TRUE(probe.ok()) << probe.error().message();
    std::ofstream(path, std::ios::binary)
        << deadline_kernel((*probe)->tsc_khz() * 500);  // a half and 2^33 ticks: some seconds
  }
  auto fresh = test::make_vm(memory::kRamBytesMin);
  ASSERT_TRUE(fresh.ok()) << fresh.error().message();
  ASSERT_TRUE((*fresh)->memory().map_zero().ok());
  ASSERT_TRUE((*fresh)->boot({.kernel = path, .initrd = "", .cmdline = ""}).ok());
  auto old = test::replica_of(**fresh, [](v1::MachineState& state) {
    state.mutable_vcpus(0)->set_tsc_offset(state.vcpus(0).tsc_offset() + (1ULL << 50));
  });
  ASSERT_TRUE(old.ok()) << old.error().message();
  ASSERT_TRUE((*old)->resume().ok());
  test::wait_for_output(**old, "A");
  ASSERT_TRUE((*old)->pause().ok());
  auto target = test::replica_of(**old);
  ASSERT_TRUE(target.ok()) << target.error().message();
  ASSERT_TRUE((*target)->resume().ok());
  test::wait_for_output(**target, "B");
}

}  // namespace
}  // namespace fvmm
