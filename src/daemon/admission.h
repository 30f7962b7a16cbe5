// Whether a VM may come in: everything that can be said before a worker is taken, as a pure function.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "daemon/checks.h"
#include "memory/template_store.h"
#include "proto/peer.pb.h"

namespace fvmm::daemon {

inline constexpr std::chrono::milliseconds kClockSkewMax{10};
inline constexpr std::uint64_t kStateFreeBytesMin = 16 * 1024 * 1024;  // for records and the serial log of one more VM

struct AdmissionVm {
  Id id;
  std::string name;
  v1::VmState state = v1::VM_STATE_NONE;
  std::uint64_t fencing_token = 0;
  std::string moved_to;
};
struct AdmissionSnapshot {
  std::vector<AdmissionVm> vms;
  HostMemory memory;
  std::uint64_t incoming_bytes = 0;    // RAM promised to VMs that are coming in just now
  std::uint64_t state_free_bytes = 0;  // of the state directory's filesystem
  Status base;                         // check_base() of the template it is a delta of
};
struct Admission {
  bool returns = false;  // a MOVED record of the same VM is here: it comes back
};

/// What to warn of when the clocks of both hosts differ by more than kClockSkewMax: the guest's wall clock jumps by as
/// much at the hand-over. Empty when they do not, and for a peer that did not say. Pure; `here_ns`: when the Hello was
/// read, ns since 1970.
std::string clock_skew(const v1::PeerHello& hello, std::int64_t here_ns);

/// Pure. Refuses with the code and sentence that the source prints: kInvalidArgument for a malformed hello,
/// kAlreadyExists naming the VM in the way, kFailedPrecondition (unsettled, old fencing token), kResourceExhausted
/// naming both sizes, or the error of `base`.
Result<Admission> admit(const v1::PeerHello& hello, const AdmissionSnapshot& host);

/// The template that a VM comes in on. Without a digest it is the generation that this host sealed when the VM left,
/// which only this host knows by content. kNotFound, or kFailedPrecondition: same id, other content.
Result<memory::TemplateInfo> find_base(const v1::TemplateRef& base, const memory::TemplateStore& store);

/// Whether the store holds exactly the template that the delta is against. kNotFound with the fix; kFailedPrecondition
/// when the name or id is taken by another content. The zero template is everywhere.
Status check_base(const v1::TemplateRef& base, std::uint64_t memory_bytes, const memory::TemplateStore& store);

}  // namespace fvmm::daemon
