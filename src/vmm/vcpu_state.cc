#include "vmm/vcpu_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "base/check.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint32_t kMsrTsc = 0x10;
constexpr std::uint32_t kMsrTscDeadline = 0x6e0;
constexpr std::uint32_t kMsrMtrrPhysBase0 = 0x200;  // base and mask of each variable range
constexpr std::uint32_t kMtrrVariableMsrs = 16;
constexpr std::uint32_t kMsrMc0Ctl = 0x400;  // control, status, address, misc of each machine check bank
constexpr std::uint32_t kMachineCheckBanks = 32;
constexpr std::array<std::uint32_t, 12> kMtrrFixedAndDefault = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                                                0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff};

/// What a guest can set and read back, and KVM_GET_MSR_INDEX_LIST leaves out: memory types and machine check controls.
std::vector<std::uint32_t> unlisted_msrs() {
  std::vector<std::uint32_t> msrs(kMtrrFixedAndDefault.begin(), kMtrrFixedAndDefault.end());
  for (std::uint32_t i = 0; i < kMtrrVariableMsrs; ++i) msrs.push_back(kMsrMtrrPhysBase0 + i);
  for (std::uint32_t bank = 0; bank < kMachineCheckBanks; ++bank) msrs.push_back(kMsrMc0Ctl + 4 * bank);
  return msrs;
}

template <class T>
Result<std::string> get(int fd, unsigned long request, std::string_view name) {
  std::string bytes(sizeof(T), '\0');
  FVMM_TRY(kvm_ioctl(fd, request, name, bytes.data()));
  return bytes;
}

template <class T>
Status set(int fd, unsigned long request, std::string_view name, const std::string& bytes) {
  FVMM_CHECK(bytes.size() == sizeof(T), "check_state() has seen the size");
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  FVMM_TRY(kvm_ioctl(fd, request, name, &value));
  return {};
}

// The kernel stops at the first MSR it cannot do and says how many it did.
Result<std::size_t> transfer_msrs(int fd, unsigned long request, std::string_view name,
                                  std::span<const kvm_msr_entry> in, std::vector<kvm_msr_entry>& out) {
  const auto block = std::make_unique<abi::Msrs>();
  block->nmsrs = static_cast<std::uint32_t>(in.size());
  std::copy(in.begin(), in.end(), block->entries.begin());
  const auto done = static_cast<std::size_t>(FVMM_TRY(kvm_ioctl(fd, request, name, block.get())));
  out.insert(out.end(), block->entries.begin(), block->entries.begin() + static_cast<std::ptrdiff_t>(done));
  return done;
}

std::vector<kvm_msr_entry> entries_of(std::span<const std::uint32_t> indices) {
  std::vector<kvm_msr_entry> entries;
  for (const std::uint32_t index : indices) entries.push_back({.index = index, .reserved = 0, .data = 0});
  return entries;
}

Result<std::vector<kvm_msr_entry>> get_msrs(int fd, std::span<const std::uint32_t> indices) {
  std::vector<kvm_msr_entry> out;
  const auto wanted = entries_of(indices);
  const std::size_t done = FVMM_TRY(transfer_msrs(fd, abi::kGetMsrs, "KVM_GET_MSRS", wanted, out));
  if (done != wanted.size()) {
    return Error(Errc::kInternal, fmt::format("KVM_GET_MSRS: MSR {:#x} cannot be read", wanted[done].index));
  }
  return out;
}

// One that this host does not know is passed over if the guest never set it: it stands at zero there and is absent
// here.
Status set_msrs(int fd, std::span<const kvm_msr_entry> entries) {
  for (std::size_t at = 0; at < entries.size();) {
    std::vector<kvm_msr_entry> done_entries;
    const auto rest = entries.subspan(at);
    at += FVMM_TRY(transfer_msrs(fd, abi::kSetMsrs, "KVM_SET_MSRS", rest, done_entries));
    if (at == entries.size()) break;
    if (entries[at].data != 0) {
      return Error(Errc::kFailedPrecondition, fmt::format("KVM_SET_MSRS: this host cannot set MSR {:#x} to {:#x}",
                                                          entries[at].index, entries[at].data));
    }
    ++at;
  }
  return {};
}

Status load_msrs(int fd, const v1::VcpuState& state) {
  std::vector<kvm_msr_entry> entries;
  std::vector<kvm_msr_entry> last;  // the deadline timer means nothing before the TSC mode of the APIC is there
  for (const v1::Msr& msr : state.msrs()) {
    auto& list = msr.index() == kMsrTscDeadline ? last : entries;
    list.push_back({.index = msr.index(), .reserved = 0, .data = msr.value()});
  }
  entries.insert(entries.end(), last.begin(), last.end());
  return set_msrs(fd, entries);
}

// Parts that say nothing are marked absent, so that a host without the capability takes the rest.
Result<std::string> get_events(int fd) {
  kvm_vcpu_events events{};
  FVMM_TRY(kvm_ioctl(fd, KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS", &events));
  if (events.exception.pending == 0 && events.exception_has_payload == 0) {
    events.flags &= ~static_cast<std::uint32_t>(KVM_VCPUEVENT_VALID_PAYLOAD);
  }
  if (events.triple_fault.pending == 0) events.flags &= ~static_cast<std::uint32_t>(KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
  return std::string(reinterpret_cast<const char*>(&events), sizeof events);
}

kvm_device_attr tsc_attribute(std::uint64_t* offset) {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<std::uint64_t>(offset);
  return attribute;
}

}  // namespace

Result<std::string> get_xsave(int fd, const KvmFeatures& features) {
  std::string bytes(features.xsave_bytes, '\0');
  const bool large = features.xsave_bytes > abi::kXsaveBytesMin;
  FVMM_TRY(kvm_ioctl(fd, large ? abi::kGetXsave2 : abi::kGetXsave, large ? "KVM_GET_XSAVE2" : "KVM_GET_XSAVE",
                     bytes.data()));
  return bytes;
}

Status set_xsave(int fd, const KvmFeatures& features, std::string bytes) {
  bytes.resize(features.xsave_bytes);  // KVM_SET_XSAVE reads that many; components this guest has not are zero
  FVMM_TRY(kvm_ioctl(fd, abi::kSetXsave, "KVM_SET_XSAVE", bytes.data()));
  return {};
}

Result<VcpuProfile> probe_vcpu(int vcpu_fd, std::span<const std::uint32_t> migratable_msrs) {
  VcpuProfile profile;
  std::vector<std::uint32_t> wanted;
  for (const std::uint32_t index : migratable_msrs) {
    if (index != kMsrTsc) wanted.push_back(index);
  }
  for (const std::uint32_t index : unlisted_msrs()) {
    if (std::find(wanted.begin(), wanted.end(), index) == wanted.end()) wanted.push_back(index);
  }
  for (std::size_t at = 0; at < wanted.size();) {
    std::vector<kvm_msr_entry> out;
    const auto rest = entries_of(std::span(wanted).subspan(at));
    const std::size_t done = FVMM_TRY(transfer_msrs(vcpu_fd, abi::kGetMsrs, "KVM_GET_MSRS", rest, out));
    for (const kvm_msr_entry& entry : out) profile.msrs.push_back(entry.index);
    at += done + 1;  // the one it stopped at is not readable for this guest
  }
  // A fresh vCPU's TSC starts near zero, so its offset does not; where it reads as zero, KVM applies none.
  const auto offset = get_tsc_offset(vcpu_fd);
  profile.tsc_offset = offset.ok();
  profile.tsc_fixed = offset.ok() && *offset == 0;
  return profile;
}

Status set_cpuid(int vcpu_fd, const CpuidTable& table) {
  if (table.size() > abi::kCpuidEntriesMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("{} CPUID entries, limit {}", table.size(), abi::kCpuidEntriesMax));
  }
  const auto block = std::make_unique<abi::Cpuid2>();
  block->nent = static_cast<std::uint32_t>(table.size());
  std::copy(table.begin(), table.end(), block->entries.begin());
  FVMM_TRY(kvm_ioctl(vcpu_fd, abi::kSetCpuid2, "KVM_SET_CPUID2", block.get()));
  return {};
}

Result<std::uint32_t> tsc_khz(int vcpu_fd) {
  return static_cast<std::uint32_t>(FVMM_TRY(kvm_ioctl(vcpu_fd, KVM_GET_TSC_KHZ, "KVM_GET_TSC_KHZ")));
}

bool tsc_khz_fits(std::uint32_t guest_khz, std::uint32_t host_khz, bool scaling) {
  if (guest_khz == 0) return false;
  const std::uint64_t apart = guest_khz > host_khz ? guest_khz - host_khz : host_khz - guest_khz;
  return scaling || apart * 1'000'000 <= std::uint64_t{host_khz} * kTscTolerancePpm;
}

Status set_tsc_khz(int vcpu_fd, std::uint32_t khz) {
  FVMM_TRY(kvm_ioctl(vcpu_fd, KVM_SET_TSC_KHZ, "KVM_SET_TSC_KHZ", static_cast<unsigned long>(khz)));
  return {};
}

Result<v1::VcpuState> save_vcpu(int vcpu_fd, const KvmFeatures& features, const VcpuProfile& profile) {
  v1::VcpuState state;
  state.set_version(kVcpuStateVersion);
  // MP state first: KVM_GET_MP_STATE lets KVM settle a pending INIT and SIPI into the rest. Then the events: where KVM
  // cannot tell a pending exception from an injected one, reading them carries its payload into CR2 and DR6.
  state.set_mp_state(FVMM_TRY(get<kvm_mp_state>(vcpu_fd, KVM_GET_MP_STATE, "KVM_GET_MP_STATE")));
  state.set_events(FVMM_TRY(get_events(vcpu_fd)));
  state.set_regs(FVMM_TRY(get<kvm_regs>(vcpu_fd, KVM_GET_REGS, "KVM_GET_REGS")));
  state.set_sregs2(features.sregs2 ? FVMM_TRY(get<kvm_sregs2>(vcpu_fd, KVM_GET_SREGS2, "KVM_GET_SREGS2"))
                                   : FVMM_TRY(get<kvm_sregs>(vcpu_fd, KVM_GET_SREGS, "KVM_GET_SREGS")));
  state.set_xsave(FVMM_TRY(get_xsave(vcpu_fd, features)));
  state.set_xcrs(FVMM_TRY(get<kvm_xcrs>(vcpu_fd, KVM_GET_XCRS, "KVM_GET_XCRS")));
  state.set_debugregs(FVMM_TRY(get<kvm_debugregs>(vcpu_fd, KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS")));
  state.set_lapic(FVMM_TRY(get<kvm_lapic_state>(vcpu_fd, KVM_GET_LAPIC, "KVM_GET_LAPIC")));
  for (const kvm_msr_entry& entry : FVMM_TRY(get_msrs(vcpu_fd, profile.msrs))) {
    v1::Msr* msr = state.add_msrs();
    msr->set_index(entry.index);
    msr->set_value(entry.data);
  }
  state.set_tsc_khz(FVMM_TRY(tsc_khz(vcpu_fd)));
  state.set_guest_tsc(FVMM_TRY(get_tsc(vcpu_fd)));
  if (profile.tsc_offset) state.set_tsc_offset(FVMM_TRY(get_tsc_offset(vcpu_fd)));
  return state;
}

Status load_vcpu(int vcpu_fd, const KvmFeatures& features, const v1::VcpuState& state) {
  FVMM_TRY(set<kvm_mp_state>(vcpu_fd, KVM_SET_MP_STATE, "KVM_SET_MP_STATE", state.mp_state()));
  FVMM_TRY(set<kvm_regs>(vcpu_fd, KVM_SET_REGS, "KVM_SET_REGS", state.regs()));
  if (state.sregs2().size() == sizeof(kvm_sregs2)) {
    FVMM_TRY(set<kvm_sregs2>(vcpu_fd, KVM_SET_SREGS2, "KVM_SET_SREGS2", state.sregs2()));
  } else {
    FVMM_TRY(set<kvm_sregs>(vcpu_fd, KVM_SET_SREGS, "KVM_SET_SREGS", state.sregs2()));
  }
  FVMM_TRY(set_xsave(vcpu_fd, features, state.xsave()));
  FVMM_TRY(set<kvm_xcrs>(vcpu_fd, KVM_SET_XCRS, "KVM_SET_XCRS", state.xcrs()));
  FVMM_TRY(set<kvm_debugregs>(vcpu_fd, KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", state.debugregs()));
  FVMM_TRY(set<kvm_lapic_state>(vcpu_fd, KVM_SET_LAPIC, "KVM_SET_LAPIC", state.lapic()));
  FVMM_TRY(load_msrs(vcpu_fd, state));
  return set<kvm_vcpu_events>(vcpu_fd, KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", state.events());
}

Result<std::uint64_t> get_tsc_offset(int vcpu_fd) {
  std::uint64_t offset = 0;
  kvm_device_attr attribute = tsc_attribute(&offset);
  FVMM_TRY(kvm_ioctl(vcpu_fd, KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR(TSC_OFFSET)", &attribute));
  return offset;
}

Status set_tsc_offset(int vcpu_fd, std::uint64_t offset) {
  kvm_device_attr attribute = tsc_attribute(&offset);
  FVMM_TRY(kvm_ioctl(vcpu_fd, KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR(TSC_OFFSET)", &attribute));
  return {};
}

Result<std::uint64_t> get_tsc(int vcpu_fd) {
  constexpr std::uint32_t kIndex = kMsrTsc;
  return FVMM_TRY(get_msrs(vcpu_fd, std::span(&kIndex, 1)))[0].data;
}

Status set_tsc(int vcpu_fd, std::uint64_t value) {
  const kvm_msr_entry entry{.index = kMsrTsc, .reserved = 0, .data = value};
  return set_msrs(vcpu_fd, std::span(&entry, 1));
}

}  // namespace fvmm::vmm
