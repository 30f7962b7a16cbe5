#include "daemon/admission.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "base/units.h"
#include "daemon/records.h"

namespace fvmm::daemon {
namespace {

Status check_hello(const v1::PeerHello& hello) {
  FVMM_TRY(Id::from_bytes(hello.session()), "session");
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()), "VM id");
  if (vm.none()) return Error(Errc::kInvalidArgument, "the VM has no id");
  if (hello.mode() != "suspend" && hello.mode() != "precopy" && hello.mode() != "live") {
    return Error(Errc::kInvalidArgument, fmt::format("unknown mode \"{}\"", hello.mode()));
  }
  return check_config(hello.vm());
}

/// The same VM was here before: only a VM that moved away, with an older right to run, may come back.
Result<Admission> check_return(const v1::PeerHello& hello, const AdmissionVm& here) {
  if (here.state == v1::VM_UNSETTLED) {
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("VM {} is unsettled here: run \"fvmmctl migrate resolve {}\" on this host", here.name, here.name));
  }
  if (here.state != v1::VM_MOVED) {
    return Error(
        Errc::kAlreadyExists,
        fmt::format("VM {0} with the same id is here and {1}: \"fvmmctl vm stop {0}\" and \"vm rm {0}\" on this "
                    "host if it is not wanted",
                    here.name, state_text(here.state)));
  }
  if (here.name != hello.vm().name()) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("the same VM left as \"{}\" and comes back as \"{}\"", here.name, hello.vm().name()));
  }
  if (hello.fencing_token() <= here.fencing_token) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("fencing token {} of VM {} is not newer than {}, known here: a stale copy",
                             hello.fencing_token(), here.name, here.fencing_token));
  }
  return Admission{true};
}

}  // namespace

Result<Admission> admit(const v1::PeerHello& hello, const AdmissionSnapshot& host) {
  FVMM_TRY(check_hello(hello), "hello");
  if (hello.fencing_token() == 0) return Error(Errc::kInvalidArgument, "hello: no fencing token");
  Admission admission;
  for (const AdmissionVm& vm : host.vms) {
    if (vm.id.raw() == hello.vm().id()) {
      admission = FVMM_TRY(check_return(hello, vm));
    } else if (vm.name == hello.vm().name()) {
      return Error(Errc::kAlreadyExists,
                   fmt::format("another VM named {0} is here ({1}): \"fvmmctl vm rm {0}\" on this host, or give "
                               "the one that comes another name when it is created",
                               vm.name, state_text(vm.state)));
    }
  }
  HostMemory left = host.memory;
  left.available -= std::min(left.available, host.incoming_bytes);
  FVMM_TRY(check_fits(hello.vm(), left));
  if (host.state_free_bytes < kStateFreeBytesMin) {
    return Error(
        Errc::kResourceExhausted,
        fmt::format("the state directory has {} free, a VM needs {}: remove templates (\"fvmmctl template gc\", "
                    "\"template rm\") or stopped VMs",
                    format_bytes(host.state_free_bytes), format_bytes(kStateFreeBytesMin)));
  }
  if (!host.base) return host.base.error();
  return admission;
}

std::string clock_skew(const v1::PeerHello& hello, std::int64_t here_ns) {
  if (hello.realtime_ns() == 0) return "";
  const std::chrono::nanoseconds ahead(static_cast<std::int64_t>(hello.realtime_ns()) - here_ns);
  if (std::chrono::abs(ahead) <= kClockSkewMax) return "";
  return fmt::format(
      "the clock of {} is {:.1f} ms {} this host's, so is VM {}'s after the hand-over: synchronise both "
      "(chrony, systemd-timesyncd)",
      hello.from(), to_ms(std::chrono::abs(ahead)), ahead.count() > 0 ? "ahead of" : "behind", hello.vm().name());
}

Result<memory::TemplateInfo> find_base(const v1::TemplateRef& base, const memory::TemplateStore& store) {
  const Id id = FVMM_TRY(Id::from_bytes(base.id()), "template id");
  if (!base.digest().empty()) return store.find(id, FVMM_TRY(Id::from_bytes(base.digest()), "template digest"));
  for (auto& info : FVMM_TRY(store.list())) {
    if (info.id == id) return std::move(info);
  }
  return Error(Errc::kNotFound, "no generation of that hand-over is here");
}

Status check_base(const v1::TemplateRef& base, std::uint64_t memory_bytes, const memory::TemplateStore& store) {
  if (base.id().empty()) return {};
  const Id id = FVMM_TRY(Id::from_bytes(base.id()), "template id");
  const auto found = find_base(base, store);
  if (found && found->memory_bytes == memory_bytes) return {};
  if (found) {
    return Error(Errc::kInvalidArgument, fmt::format("template {} has {}, the VM {}", found->name,
                                                     format_bytes(found->memory_bytes), format_bytes(memory_bytes)));
  }
  if (found.error().code() != Errc::kNotFound) return found.error();
  if (const auto named = store.find(base.name())) {
    return Error(
        Errc::kFailedPrecondition,
        fmt::format(
            "the template named {} here is another one (id {}, not {}): \"fvmmctl template rm\" it here, then push",
            base.name(), named->id.hex(), id.hex()));
  }
  return Error(Errc::kNotFound,
               fmt::format("template {} is not here: push it first (\"fvmmctl template push {} --to ...\")",
                           base.name(), base.name()));
}

}  // namespace fvmm::daemon
