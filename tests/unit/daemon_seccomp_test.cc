// The filter itself, each time in a child process, which it may kill.
#include "daemon/seccomp.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "daemon/options.h"
#include "daemon/process.h"
#include "devices/bound_socket.h"
#include "support/temp_dir.h"

namespace fvmm::daemon {
namespace {

/// How a child ends that is filtered and then does `what`: its exit code (0: `what` was true), or the signal as a
/// negative number.
int filtered(SeccompMode mode, const std::function<bool()>& what) {
  const pid_t child = ::fork();
  if (child == 0) {
    (void)::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!enter_seccomp(mode).ok()) ::_exit(100);
    ::_exit(what() ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(Seccomp, ModesHaveNames) {
  for (const SeccompMode mode : {SeccompMode::kOff, SeccompMode::kLog, SeccompMode::kOn}) {
    EXPECT_EQ(parse_seccomp(to_string(mode)).value(), mode);
  }
  const auto wrong = parse_seccomp("perhaps");
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message().find("perhaps"), std::string::npos);
}

TEST(Seccomp, ModeIsAnOptionOfFvmmdAndOfItsWorkers) {
  const char* const daemon[] = {"fvmmd", "--seccomp", "log"};
  EXPECT_EQ(std::get<DaemonOptions>(parse_command_line(3, daemon)).seccomp, SeccompMode::kLog);
  const char* const worker[] = {"fvmmd", "--worker", "--socket", "s",         "--memory",
                                "1",     "--vcpus",  "1",        "--seccomp", "off"};
  EXPECT_EQ(std::get<WorkerOptions>(parse_command_line(10, worker)).seccomp, SeccompMode::kOff);
  EXPECT_EQ(std::get<DaemonOptions>(parse_command_line(1, daemon)).seccomp, kSeccompDefault);
  const char* const wrong[] = {"fvmmd", "--seccomp", "perhaps"};
  EXPECT_EQ(std::get<int>(parse_command_line(3, wrong)), 2);
}

TEST(Seccomp, WhatAWorkerDoesPasses) {
  EXPECT_EQ(filtered(SeccompMode::kOn,
                     [] {
                       void* const page =
                           ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                       const int file = ::open("/dev/null", O_RDWR | O_CLOEXEC);
                       const int event = ::eventfd(1, EFD_CLOEXEC);
                       eventfd_t count = 0;
                       return page != MAP_FAILED && file >= 0 && ::eventfd_read(event, &count) == 0 &&
                              ::fcntl(file, F_GETFL) >= 0 && ::socket(AF_INET6, SOCK_STREAM, 0) != -2 &&
                              ::kill(::getpid(), 0) == 0 && ::prctl(PR_SET_NAME, "filtered") == 0;
                     }),
            0);
}

// What a vsock device's thread does: a path of its own, programs that connect to it, and one that it connects to.
TEST(Seccomp, UnixSocketsMayListenAcceptAndConnect) {
  const testing::TempDir directory;
  const std::string path = (directory.path() / "s").string();
  EXPECT_EQ(filtered(SeccompMode::kOn,
                     [&] {
                       auto bound = devices::BoundSocket::bind(path);
                       if (!bound || !bound->listen(1)) return false;
                       const auto program = devices::connect_to_path(path);
                       const auto accepted = bound->accept();
                       return program.ok() && accepted.ok() && *accepted && ::shutdown(accepted->get(), SHUT_WR) == 0;
                     }),
            0);
  EXPECT_FALSE(std::filesystem::exists(path));
}

#ifndef FVMM_SANITIZED  // whose threads are not the C library's alone
TEST(Seccomp, ThreadsAreMadeAndProcessesAreNot) {
  EXPECT_EQ(filtered(SeccompMode::kOn,
                     [] {
                       bool ran = false;
                       std::thread([&ran] { ran = true; }).join();
                       return ran;
                     }),
            0);
  EXPECT_EQ(filtered(SeccompMode::kOn, [] { return ::fork() >= 0; }), -SIGSYS);
}
#endif

TEST(Seccomp, WhatIsOnNoListKills) {
  const std::vector<std::pair<std::string, std::function<bool()>>> calls{
      {"personality", [] { return ::syscall(SYS_personality, 0xffffffff) >= 0; }},
      {"execve", [] { return ::syscall(SYS_execve, nullptr, nullptr, nullptr) == 0; }},
      {"ptrace", [] { return ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0; }},
      {"mount", [] { return ::syscall(SYS_mount, nullptr, nullptr, nullptr, 0, nullptr) == 0; }},
      {"bpf", [] { return ::syscall(SYS_bpf, 0, nullptr, 0) == 0; }},
      {"setuid", [] { return ::setuid(0) == 0; }},
      {"a signal to another process", [] { return ::kill(::getppid(), 0) == 0; }},
      {"a packet socket", [] { return ::socket(AF_PACKET, SOCK_RAW, 0) >= 0; }},
      {"typing into a terminal", [] { return ::ioctl(0, TIOCSTI, "x") == 0; }},
      {"another's limits", [] { return ::syscall(SYS_prlimit64, ::getppid(), 0, nullptr, nullptr) == 0; }},
      {"its dumpable flag", [] { return ::prctl(PR_SET_DUMPABLE, 1) == 0; }},
  };
  for (const auto& [name, call] : calls) EXPECT_EQ(filtered(SeccompMode::kOn, call), -SIGSYS) << name;
}

TEST(Seccomp, AWorkerThatItKilledSaysSo) {
  const pid_t child = ::fork();
  if (child == 0) {
    (void)::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    (void)enter_seccomp(SeccompMode::kOn);
    (void)::syscall(SYS_personality, 0xffffffff);
    ::_exit(0);
  }
  const auto worker = WorkerProcess::of(child, "/nowhere/worker.sock", {}).value();
  ASSERT_TRUE(worker->wait_exit(Deadline::after(std::chrono::seconds(60))));
  EXPECT_NE(worker->how_it_ended().find("its seccomp filter forbids"), std::string::npos) << worker->how_it_ended();
}

TEST(Seccomp, NoMemoryBecomesExecutable) {
  EXPECT_EQ(filtered(SeccompMode::kOn,
                     [] {
                       void* const page = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                       const bool refused = ::mprotect(page, 4096, PROT_READ | PROT_EXEC) != 0 && errno == EACCES;
                       return refused &&
                              ::mmap(nullptr, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
                     }),
            0);
}

TEST(Seccomp, LogAndOffLetItPass) {
  for (const SeccompMode mode : {SeccompMode::kLog, SeccompMode::kOff}) {
    EXPECT_EQ(filtered(mode, [] { return ::syscall(SYS_personality, 0xffffffff) >= 0; }), 0) << to_string(mode);
  }
}

}  // namespace
}  // namespace fvmm::daemon
