// Gathers what doctor judges. kvm.h is used for numbers and for ioctls without structures only: its flexible arrays
// have another layout in C++ (Debian 12's header puts an empty struct of size 1 in front of them).
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <thread>

#include "base/file.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "cli/doctor.h"

namespace fvmm::cli {
namespace {

constexpr std::size_t kTextBytesMax = 16 * 1024;

/// The start of a file of proc or sysfs, whose size is 0 whatever it holds. Empty when it cannot be read.
std::string text_of(const char* path) {
  const UniqueFd file(::open(path, O_RDONLY | O_CLOEXEC));
  std::string text(kTextBytesMax, '\0');
  const ssize_t got = file ? ::read(file.get(), text.data(), text.size()) : -1;
  text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return text;
}

int number_of(const char* path, int absent) {
  const std::string text = text_of(path);
  int number = absent;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

void probe_kvm(HostFacts& facts) {
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm) {
    facts.kvm_open_error = errno;
    return;
  }
  facts.kvm_api_version = ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0);
  for (const NeededCapability& needed : needed_capabilities()) {
    facts.capabilities[needed.name] = ::ioctl(kvm.get(), KVM_CHECK_EXTENSION, needed.number);
  }
}

int probe_io_uring() {
  io_uring_params parameters{};
  const UniqueFd ring(static_cast<int>(::syscall(__NR_io_uring_setup, 4, &parameters)));
  return ring ? 0 : errno;
}

/// What a worker's filter does; asking changes nothing (seccomp(2), Linux 4.14).
int probe_seccomp() {
  const std::uint32_t action = SECCOMP_RET_KILL_PROCESS;
  return ::syscall(__NR_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0 ? 0 : errno;
}

/// The word in brackets: "always [madvise] never".
std::string probe_huge_pages() {
  const std::string text = text_of("/sys/kernel/mm/transparent_hugepage/enabled");
  const auto open = text.find('[');
  const auto close = text.find(']');
  return open == std::string::npos || close == std::string::npos ? "" : text.substr(open + 1, close - open - 1);
}

std::uint64_t probe_available_memory() {
  const std::string text = text_of("/proc/meminfo");
  constexpr std::string_view kField = "MemAvailable:";
  const auto at = text.find(kField);
  if (at == std::string::npos) return 0;
  const auto digit = text.find_first_not_of(' ', at + kField.size());
  std::uint64_t kib = 0;
  if (digit != std::string::npos) std::from_chars(text.data() + digit, text.data() + text.size(), kib);
  return kib * kKiB;
}

/// On a thread of its own, so that nothing of this process is left with another priority.
int probe_fifo() {
  int error = 0;
  std::thread([&error] {
    const sched_param priority{.sched_priority = 1};
    error = ::pthread_setschedparam(::pthread_self(), SCHED_FIFO, &priority);
  }).join();
  return error;
}

/// FICLONE between two files without names (O_TMPFILE), so nothing is left behind.
int probe_reflink(const std::string& directory) {
  const UniqueFd from(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!from) return errno;
  const UniqueFd to(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!to) return errno;
  const std::string page(kPageBytes, 'x');
  if (!write_all(from.get(), as_bytes(page), 0)) return EIO;
  return ::ioctl(to.get(), FICLONE, from.get()) == 0 ? 0 : errno;
}

std::string nearest_existing(const std::string& directory) {
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::absolute(directory, ignored);
  while (path.has_relative_path() && !std::filesystem::is_directory(path, ignored)) path = path.parent_path();
  return path.string();
}

std::uint64_t hard_limit(int resource) {
  rlimit limit{};
  if (::getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return 0;
  return limit.rlim_max;  // RLIM_INFINITY is all ones
}

}  // namespace

const std::vector<NeededCapability>& needed_capabilities() {
  static const std::vector<NeededCapability> kNeeded{
      {"KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY},
      {"KVM_CAP_IRQCHIP", KVM_CAP_IRQCHIP},
      {"KVM_CAP_PIT2", KVM_CAP_PIT2},
      {"KVM_CAP_PIT_STATE2", KVM_CAP_PIT_STATE2},
      {"KVM_CAP_MP_STATE", KVM_CAP_MP_STATE},
      {"KVM_CAP_VCPU_EVENTS", KVM_CAP_VCPU_EVENTS},
      {"KVM_CAP_DEBUGREGS", KVM_CAP_DEBUGREGS},
      {"KVM_CAP_XSAVE", KVM_CAP_XSAVE},
      {"KVM_CAP_XSAVE2", KVM_CAP_XSAVE2, 1, "guests get no extended state past 4 KiB, such as AMX"},
      {"KVM_CAP_XCRS", KVM_CAP_XCRS},
      {"KVM_CAP_ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK},
      {"KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1,
       "each harvest protects all pages anew"},
      {"KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT},
      {"KVM_CAP_IOEVENTFD", KVM_CAP_IOEVENTFD},
      {"KVM_CAP_TSC_DEADLINE_TIMER", KVM_CAP_TSC_DEADLINE_TIMER},
      {"KVM_CAP_GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ},
      {"KVM_CAP_NR_MEMSLOTS", KVM_CAP_NR_MEMSLOTS, 4},
  };
  return kNeeded;
}

HostFacts probe_host(const std::string& state_directory) {
  HostFacts facts;
  std::error_code ignored;
  probe_kvm(facts);
  facts.pvm = std::filesystem::exists("/sys/module/kvm_pvm", ignored);
  facts.vmx_or_svm = std::filesystem::exists("/sys/module/kvm_intel", ignored) ||
                     std::filesystem::exists("/sys/module/kvm_amd", ignored);
  utsname system{};
  if (::uname(&system) == 0) facts.kernel = system.release;
  facts.io_uring_error = probe_io_uring();
  facts.io_uring_disabled = number_of("/proc/sys/kernel/io_uring_disabled", -1);
  facts.thp = probe_huge_pages();
  facts.memory_available_bytes = probe_available_memory();
  facts.overcommit = number_of("/proc/sys/vm/overcommit_memory", 0);
  const UniqueFd userfault(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  facts.userfaultfd_error = userfault ? 0 : errno;
  facts.seccomp_error = probe_seccomp();
  facts.open_files_max = hard_limit(RLIMIT_NOFILE);
  facts.locked_bytes_max = hard_limit(RLIMIT_MEMLOCK);
  facts.fifo_error = probe_fifo();
  facts.state_directory = nearest_existing(state_directory);
  facts.reflink_error = probe_reflink(facts.state_directory);
  return facts;
}

}  // namespace fvmm::cli
