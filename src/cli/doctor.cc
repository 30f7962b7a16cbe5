#include "cli/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/units.h"
#include "cli/json.h"
#include "cli/session.h"

namespace fvmm::cli {
namespace {

constexpr int kKvmApiVersion = 12;  // Linux Documentation/virt/kvm/api.rst: refuse to run with any other
constexpr int kKernelMajor = 6;
constexpr int kKernelMinor = 1;
constexpr std::uint64_t kOpenFilesMin = 4096;  // about 40 descriptors a VM and its share of the daemon's
constexpr std::uint64_t kMemoryMin = 512 * kMiB;
constexpr std::uint64_t kLockedMin = 64 * kMiB;  // rings and registered bounce buffers of one migration

std::string because(int error) {
  return ::strerror(error);
}

Check open_kvm(const HostFacts& facts) {
  switch (facts.kvm_open_error) {
    case 0:
      return {"/dev/kvm", Verdict::kOk, "opens", ""};
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return {"/dev/kvm", Verdict::kFail, because(facts.kvm_open_error),
              "modprobe kvm_intel, kvm_amd or kvm_pvm; turn virtualisation on in the firmware"};
    case EACCES:
    case EPERM:
      return {"/dev/kvm", Verdict::kFail, because(facts.kvm_open_error),
              "usermod -aG kvm USER and log in again, or run as root"};
    default:
      return {"/dev/kvm", Verdict::kFail, because(facts.kvm_open_error), "see dmesg"};
  }
}

void judge_kvm(const HostFacts& facts, std::vector<Check>& checks) {
  checks.push_back(open_kvm(facts));
  if (facts.kvm_open_error != 0) return;  // the rest cannot be known
  const bool version_good = facts.kvm_api_version == kKvmApiVersion;
  checks.push_back({"KVM API", version_good ? Verdict::kOk : Verdict::kFail,
                    fmt::format("version {}", facts.kvm_api_version),
                    version_good ? "" : fmt::format("run a kernel with KVM API {}", kKvmApiVersion)});
  for (const NeededCapability& needed : needed_capabilities()) {
    const auto found = facts.capabilities.find(needed.name);
    const int value = found == facts.capabilities.end() ? 0 : found->second;
    const bool good = value >= needed.least;
    const Verdict lacking = needed.otherwise.empty() ? Verdict::kFail : Verdict::kWarn;
    checks.push_back({std::string(needed.name), good ? Verdict::kOk : lacking, std::to_string(value),
                      good ? ""
                           : fmt::format("run a kernel whose KVM has it ({} or more){}{}", needed.least,
                                         needed.otherwise.empty() ? "" : ": without it ", needed.otherwise)});
  }
  if (facts.pvm || facts.vmx_or_svm) {
    checks.push_back(
        {"virtualisation", Verdict::kOk,
         facts.pvm ? "PVM: guests need the pvm CPU template, which is chosen by itself" : "hardware (VT-x or SVM)",
         ""});
  } else {
    checks.push_back({"virtualisation", Verdict::kWarn,
                      "neither kvm_intel, kvm_amd nor kvm_pvm is visible in /sys/module",
                      "mount /sys, or load the module"});
  }
}

Check kernel_version(const HostFacts& facts) {
  int major = 0;
  int minor = 0;
  const bool parsed = std::sscanf(facts.kernel.c_str(), "%d.%d", &major, &minor) == 2;
  const bool good = parsed && (major > kKernelMajor || (major == kKernelMajor && minor >= kKernelMinor));
  return {"kernel", good ? Verdict::kOk : Verdict::kFail, facts.kernel,
          good ? "" : fmt::format("run Linux {}.{} or later", kKernelMajor, kKernelMinor)};
}

Check io_uring(const HostFacts& facts) {
  if (facts.io_uring_error == 0) return {"io_uring", Verdict::kOk, "usable", ""};
  if (facts.io_uring_disabled > 0) {
    return {"io_uring", Verdict::kFail, fmt::format("kernel.io_uring_disabled is {}", facts.io_uring_disabled),
            "sysctl kernel.io_uring_disabled=0"};
  }
  return {"io_uring", Verdict::kFail, because(facts.io_uring_error),
          "allow io_uring_setup in this container's seccomp profile, or build the kernel with CONFIG_IO_URING"};
}

Check huge_pages(const HostFacts& facts) {
  if (facts.thp == "always" || facts.thp == "madvise") return {"huge pages", Verdict::kOk, facts.thp, ""};
  return {"huge pages", Verdict::kWarn, facts.thp.empty() ? "absent" : facts.thp,
          "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"};
}

Check memory(const HostFacts& facts) {
  const bool good = facts.memory_available_bytes >= kMemoryMin;
  return {"memory", good ? Verdict::kOk : Verdict::kWarn, format_bytes(facts.memory_available_bytes) + " available",
          good ? "" : "free some, or run smaller guests"};
}

Check overcommit(const HostFacts& facts) {
  const bool strict = facts.overcommit == 2;
  return {"overcommit", strict ? Verdict::kWarn : Verdict::kOk,
          fmt::format("vm.overcommit_memory is {}", facts.overcommit),
          strict ? "sysctl vm.overcommit_memory=1: every clone counts its whole RAM though it shares most of it" : ""};
}

Check seccomp(const HostFacts& facts) {
  if (facts.seccomp_error == 0)
    return {"seccomp", Verdict::kOk, "a worker's forbidden system call ends that worker", ""};
  return {"seccomp", Verdict::kFail, because(facts.seccomp_error),
          "run a kernel with CONFIG_SECCOMP_FILTER, or start fvmmd with --seccomp off"};
}

Check limits(const char* item, bool good, std::string detail, const char* fix) {
  return {item, good ? Verdict::kOk : Verdict::kWarn, std::move(detail), good ? "" : fix};
}

Check optional(const char* item, int error, const char* worked, const char* fix) {
  if (error == 0) return {item, Verdict::kOk, worked, ""};
  return {item, Verdict::kWarn, because(error) + " (optional)", fix};
}

std::string_view word(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kWarn:
      return "warn";
    case Verdict::kFail:
      return "fail";
  }
  return "fail";
}

}  // namespace

std::vector<Check> judge(const HostFacts& facts) {
  std::vector<Check> checks;
  judge_kvm(facts, checks);
  checks.push_back(kernel_version(facts));
  checks.push_back(io_uring(facts));
  checks.push_back(huge_pages(facts));
  checks.push_back(memory(facts));
  checks.push_back(overcommit(facts));
  checks.push_back(
      optional("userfaultfd", facts.userfaultfd_error, "/dev/userfaultfd opens",
               "give fvmmd access to /dev/userfaultfd (Linux 6.1), for templates of running VMs by --engine cow"));
  checks.push_back(seccomp(facts));
  checks.push_back(limits("open files", facts.open_files_max >= kOpenFilesMin,
                          fmt::format("at most {}", facts.open_files_max),
                          "LimitNOFILE=65536 in fvmmd.service, or ulimit -Hn 65536"));
  const bool unlimited = facts.locked_bytes_max == ~std::uint64_t{0};
  checks.push_back(limits("locked memory", facts.locked_bytes_max >= kLockedMin,
                          unlimited ? "unlimited" : "at most " + format_bytes(facts.locked_bytes_max),
                          "LimitMEMLOCK=infinity in fvmmd.service, or ulimit -Hl unlimited"));
  checks.push_back(optional("real time", facts.fifo_error, "SCHED_FIFO permitted",
                            "LimitRTPRIO=10 in fvmmd.service: pauses are shorter on a loaded host"));
  checks.push_back(optional("reflink", facts.reflink_error, facts.state_directory.c_str(),
                            "keep the state directory on XFS or btrfs: folding templates then copies nothing"));
  return checks;
}

bool can_run(const std::vector<Check>& checks) {
  return std::none_of(checks.begin(), checks.end(), [](const Check& check) { return check.verdict == Verdict::kFail; });
}

std::string doctor_table(const std::vector<Check>& checks) {
  std::vector<std::vector<std::string>> rows{{"", "ITEM", "FOUND", "FIX"}};
  for (const Check& check : checks)
    rows.push_back({std::string(word(check.verdict)), check.item, check.detail, check.fix});
  return align(rows) + (can_run(checks) ? "This host can run FVMM.\n" : "This host cannot run FVMM yet.\n");
}

std::string doctor_json(const std::vector<Check>& checks) {
  std::string list;
  for (const Check& check : checks) {
    JsonObject object;
    object.add("item", check.item)
        .add("verdict", word(check.verdict))
        .add("detail", check.detail)
        .add("fix", check.fix);
    list += (list.empty() ? "" : ",") + object.str();
  }
  return JsonObject().raw("can_run", can_run(checks) ? "true" : "false").raw("checks", "[" + list + "]").str() + "\n";
}

}  // namespace fvmm::cli
