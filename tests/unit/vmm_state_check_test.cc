// A saved machine of the wrong form is refused by type, part by part, before anything is loaded.
#include "vmm/state_check.h"

#include <gtest/gtest.h>

#include <functional>

#include "vmm/kvm_abi.h"

namespace fvmm::vmm {
namespace {

const std::string kCpuid = "the table that the VM was given";

StateShape shape() {
  return {.vcpus = 2, .xsave_bytes = 8192, .sregs2 = true, .cpuid = kCpuid};
}

v1::MachineState good() {
  v1::MachineState state;
  state.set_version(1);
  for (std::uint32_t i = 0; i < 2; ++i) {
    v1::VcpuState* vcpu = state.add_vcpus();
    vcpu->set_version(1);
    vcpu->set_index(i);
    vcpu->set_mp_state(std::string(4, '\0'));
    vcpu->set_regs(std::string(144, '\0'));
    vcpu->set_sregs2(std::string(320, '\0'));
    vcpu->set_xsave(std::string(4096, '\0'));
    vcpu->set_xcrs(std::string(392, '\0'));
    vcpu->set_debugregs(std::string(128, '\0'));
    vcpu->set_lapic(std::string(1024, '\0'));
    vcpu->set_events(std::string(64, '\0'));
    vcpu->set_tsc_khz(2'000'000);
  }
  state.mutable_vcpus(0)->set_cpuid(kCpuid);
  state.set_irqchip_pic_master(std::string(520, '\0'));
  state.set_irqchip_pic_slave(std::string(520, '\0'));
  state.set_irqchip_ioapic(std::string(520, '\0'));
  state.set_pit2(std::string(112, '\0'));
  return state;
}

struct Refused {
  const char* what;
  std::function<void(v1::MachineState&)> spoil;
  Errc code;
};

v1::VcpuState& second(v1::MachineState& state) {
  return *state.mutable_vcpus(1);
}
constexpr Errc kForm = Errc::kInvalidArgument;
constexpr Errc kOtherBuild = Errc::kFailedPrecondition;

TEST(CheckState, AGoodOnePasses) {
  const Status status = check_state(good(), shape());
  EXPECT_TRUE(status.ok()) << status.error().message();
}

TEST(CheckState, AnEmptyOneIsRefused) {
  EXPECT_FALSE(check_state({}, shape()).ok());
}

TEST(CheckState, EachWrongPartIsRefusedByType) {
  const std::vector<Refused> cases = {
      {"machine version 0", [](auto& s) { s.set_version(0); }, kOtherBuild},
      {"machine version 2", [](auto& s) { s.set_version(2); }, kOtherBuild},
      {"vCPU version", [](auto& s) { second(s).set_version(2); }, kOtherBuild},
      {"one vCPU less", [](auto& s) { s.mutable_vcpus()->RemoveLast(); }, kForm},
      {"one vCPU more", [](auto& s) { s.add_vcpus(); }, kForm},
      {"vCPU out of order", [](auto& s) { second(s).set_index(0); }, kForm},
      {"mp_state", [](auto& s) { second(s).mutable_mp_state()->push_back('\0'); }, kForm},
      {"regs", [](auto& s) { second(s).mutable_regs()->pop_back(); }, kForm},
      {"no regs", [](auto& s) { second(s).clear_regs(); }, kForm},
      {"sregs2", [](auto& s) { second(s).mutable_sregs2()->push_back('\0'); }, kForm},
      {"xsave short", [](auto& s) { second(s).mutable_xsave()->resize(4092); }, kForm},
      {"xsave odd", [](auto& s) { second(s).mutable_xsave()->resize(4097); }, kForm},
      {"xsave larger than the host's", [](auto& s) { second(s).mutable_xsave()->resize(8196); }, kOtherBuild},
      {"xcrs", [](auto& s) { second(s).mutable_xcrs()->pop_back(); }, kForm},
      {"debugregs", [](auto& s) { second(s).mutable_debugregs()->pop_back(); }, kForm},
      {"lapic", [](auto& s) { second(s).mutable_lapic()->pop_back(); }, kForm},
      {"events", [](auto& s) { second(s).mutable_events()->pop_back(); }, kForm},
      {"TSC of 0 kHz", [](auto& s) { second(s).set_tsc_khz(0); }, kForm},
      {"TSCs of two frequencies", [](auto& s) { second(s).set_tsc_khz(2'000'001); }, kForm},
      {"CPUID", [](auto& s) { s.mutable_vcpus(0)->mutable_cpuid()->push_back('x'); }, kForm},
      {"PIC master", [](auto& s) { s.mutable_irqchip_pic_master()->pop_back(); }, kForm},
      {"PIC slave", [](auto& s) { s.mutable_irqchip_pic_slave()->push_back('\0'); }, kForm},
      {"IOAPIC", [](auto& s) { s.clear_irqchip_ioapic(); }, kForm},
      {"PIT", [](auto& s) { s.mutable_pit2()->pop_back(); }, kForm},
  };
  for (const Refused& one : cases) {
    v1::MachineState state = good();
    one.spoil(state);
    const Status status = check_state(state, shape());
    ASSERT_FALSE(status.ok()) << one.what;
    EXPECT_EQ(status.error().code(), one.code) << one.what << ": " << status.error().message();
    EXPECT_FALSE(status.error().message().empty());
  }
}

TEST(CheckState, XsaveUpToTheHostsSize) {
  v1::MachineState state = good();
  state.mutable_vcpus(1)->mutable_xsave()->resize(8192);
  EXPECT_TRUE(check_state(state, shape()).ok());
}

TEST(CheckState, MsrsAtAndPastTheLimit) {
  v1::MachineState state = good();
  for (std::size_t i = 0; i < abi::kMsrsMax; ++i) second(state).add_msrs();
  EXPECT_TRUE(check_state(state, shape()).ok());
  second(state).add_msrs();
  EXPECT_EQ(check_state(state, shape()).error().code(), Errc::kInvalidArgument);
}

TEST(CheckState, OldSregsGoAnywhereAndSregs2OnlyWhereKvmHasThem) {
  StateShape old_host = shape();
  old_host.sregs2 = false;
  EXPECT_EQ(check_state(good(), old_host).error().code(), Errc::kFailedPrecondition);
  v1::MachineState state = good();
  for (v1::VcpuState& vcpu : *state.mutable_vcpus()) vcpu.mutable_sregs2()->resize(312);
  EXPECT_TRUE(check_state(state, old_host).ok());
  EXPECT_TRUE(check_state(state, shape()).ok());
}

}  // namespace
}  // namespace fvmm::vmm
