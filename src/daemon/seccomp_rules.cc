#include "daemon/seccomp_rules.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>

namespace fvmm::daemon {
namespace {

#ifndef F_OFD_GETLK
constexpr int F_OFD_GETLK = 36;
constexpr int F_OFD_SETLK = 37;
#endif
constexpr std::uint64_t kPagemapScan = 0xc0606610;  // Linux 6.7: _IOWR('f', 16, 96 bytes)
constexpr std::uint64_t kIoctlType = 0xff00;        // the part of a request that names its driver
constexpr std::uint64_t kKvm = 0xae00;              // Documentation/userspace-api/ioctl/ioctl-number.rst
constexpr std::uint64_t kUserfaultfd = 0xaa00;
constexpr std::uint64_t kRequest = 0xffffffff;

/// With any arguments: they reach only what the process has, or files of its user.
constexpr auto kAnyArguments = std::to_array<int>({
    // memory; mmap and mprotect are below
    SCMP_SYS(brk),
    SCMP_SYS(madvise),
    SCMP_SYS(mincore),
    SCMP_SYS(mremap),
    SCMP_SYS(msync),
    SCMP_SYS(munmap),
    SCMP_SYS(membarrier),
    SCMP_SYS(memfd_create),
    SCMP_SYS(userfaultfd),
    // threads, time, signals to itself
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(futex),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(rseq),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_getparam),
    SCMP_SYS(sched_getscheduler),
    SCMP_SYS(sched_setscheduler),
    SCMP_SYS(sched_get_priority_max),
    SCMP_SYS(sched_get_priority_min),
    SCMP_SYS(sched_yield),
    SCMP_SYS(clock_getres),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(nanosleep),
    SCMP_SYS(time),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_gettime),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(getrandom),
    SCMP_SYS(getrusage),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
    // descriptors
    SCMP_SYS(close),
    SCMP_SYS(dup),
    SCMP_SYS(dup3),
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(eventfd2),
    SCMP_SYS(flock),
    SCMP_SYS(lseek),
    SCMP_SYS(pipe2),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(pread64),
    SCMP_SYS(preadv),
    SCMP_SYS(preadv2),
    SCMP_SYS(pwrite64),
    SCMP_SYS(pwritev),
    SCMP_SYS(pwritev2),
    SCMP_SYS(read),
    SCMP_SYS(readv),
    SCMP_SYS(select),
    SCMP_SYS(pselect6),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),
    SCMP_SYS(io_uring_setup),
    // files: templates, disks, logs, records
    SCMP_SYS(access),
    SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2),
    SCMP_SYS(chmod),
    SCMP_SYS(fchmod),
    SCMP_SYS(fchmodat),
    SCMP_SYS(copy_file_range),
    SCMP_SYS(fadvise64),
    SCMP_SYS(fallocate),
    SCMP_SYS(fdatasync),
    SCMP_SYS(fstat),
    SCMP_SYS(fstatfs),
    SCMP_SYS(fsync),
    SCMP_SYS(ftruncate),
    SCMP_SYS(getcwd),
    SCMP_SYS(getdents64),
    SCMP_SYS(link),
    SCMP_SYS(linkat),
    SCMP_SYS(lstat),
    SCMP_SYS(mkdir),
    SCMP_SYS(mkdirat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(open),
    SCMP_SYS(openat),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(rename),
    SCMP_SYS(renameat),
    SCMP_SYS(renameat2),
    SCMP_SYS(rmdir),
    SCMP_SYS(sendfile),
    SCMP_SYS(stat),
    SCMP_SYS(statfs),
    SCMP_SYS(statx),
    SCMP_SYS(sync_file_range),
    SCMP_SYS(syncfs),
    SCMP_SYS(umask),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    // sockets; socket and socketpair are below. Paths and addresses lie in memory, where no filter looks: what bounds
    // bind, connect and accept4 is the domain. Unix: the control socket, consoles, and of a vsock device its path, and
    // the paths of programs that the guest reaches for
    SCMP_SYS(accept),
    SCMP_SYS(accept4),
    SCMP_SYS(bind),
    SCMP_SYS(connect),
    SCMP_SYS(getpeername),
    SCMP_SYS(getsockname),
    SCMP_SYS(getsockopt),
    SCMP_SYS(listen),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmmsg),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(setsockopt),
    SCMP_SYS(shutdown),
});

constexpr auto kIoctls = std::to_array<std::uint64_t>({
    FIONBIO,
    FIONREAD,
    TCGETS,  // Asio; isatty() of a log
    FICLONE,
    kPagemapScan,
    BLKGETSIZE64,
    BLKSSZGET,
    TUNGETFEATURES,
    TUNGETIFF,
    TUNGETVNETHDRSZ,
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETQUEUE,
    TUNSETVNETHDRSZ,
    SIOCGIFFLAGS,
});
constexpr auto kFcntls = std::to_array<std::uint64_t>(
    {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_ADD_SEALS, F_GET_SEALS});
// getaddrinfo() of a peer asks the kernel for its addresses by netlink.
constexpr auto kDomains = std::to_array<std::uint64_t>({AF_UNIX, AF_INET, AF_INET6, AF_NETLINK});
constexpr auto kPrctls = std::to_array<std::uint64_t>({PR_SET_NAME, PR_GET_NAME, 0x53564d41 /* PR_SET_VMA */});

scmp_arg_cmp equal(unsigned argument, std::uint64_t value) {
  return {.arg = argument, .op = SCMP_CMP_EQ, .datum_a = value, .datum_b = 0};
}
scmp_arg_cmp masked(unsigned argument, std::uint64_t mask, std::uint64_t value) {
  return {.arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
}

void add_ioctls(std::vector<SeccompRule>& rules) {
  for (const std::uint64_t type : {kKvm, kUserfaultfd}) {
    rules.push_back({.call = SCMP_SYS(ioctl), .arguments = {masked(1, kIoctlType, type)}});
  }
  for (const std::uint64_t request : kIoctls) {
    rules.push_back({.call = SCMP_SYS(ioctl), .arguments = {masked(1, kRequest, request)}});
  }
}

// No memory ever becomes executable; a library that a name service wants to load is not loaded.
void add_mappings(std::vector<SeccompRule>& rules) {
  for (const int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) {
    rules.push_back({.call = call, .arguments = {masked(2, PROT_EXEC, 0)}});
    rules.push_back({.call = call, .arguments = {masked(2, PROT_EXEC, PROT_EXEC)}, .error = EACCES});
  }
}

// Threads, never processes. clone3's arguments lie in memory, where no filter looks; glibc falls back to clone.
void add_threads(std::vector<SeccompRule>& rules) {
  constexpr std::uint64_t kThread = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
  rules.push_back({.call = SCMP_SYS(clone), .arguments = {masked(0, kThread, kThread)}});
  rules.push_back({.call = SCMP_SYS(clone3), .error = ENOSYS});
}

}  // namespace

std::vector<SeccompRule> seccomp_rules() {
  std::vector<SeccompRule> rules;
  for (const int call : kAnyArguments) rules.push_back({.call = call});
  add_ioctls(rules);
  add_mappings(rules);
  add_threads(rules);
  for (const std::uint64_t command : kFcntls) {
    rules.push_back({.call = SCMP_SYS(fcntl), .arguments = {equal(1, command)}});
  }
  for (const std::uint64_t domain : kDomains) {
    rules.push_back({.call = SCMP_SYS(socket), .arguments = {equal(0, domain)}});
  }
  rules.push_back({.call = SCMP_SYS(socketpair), .arguments = {equal(0, AF_UNIX)}});
  for (const std::uint64_t option : kPrctls) {
    rules.push_back({.call = SCMP_SYS(prctl), .arguments = {equal(0, option)}});
  }
  const auto self = static_cast<std::uint64_t>(::getpid());
  rules.push_back({.call = SCMP_SYS(kill), .arguments = {equal(0, self)}});
  rules.push_back({.call = SCMP_SYS(tgkill), .arguments = {equal(0, self)}});
  rules.push_back({.call = SCMP_SYS(prlimit64), .arguments = {equal(0, 0)}});
  return rules;
}

}  // namespace fvmm::daemon
