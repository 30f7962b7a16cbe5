#include "daemon/process.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <fstream>

#include "daemon/call_worker.h"

namespace fvmm::daemon {

namespace fs = std::filesystem;

Result<std::shared_ptr<WorkerProcess>> WorkerProcess::of(pid_t pid, fs::path socket, Shape shape) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0U)));  // pidfd_open(2): close-on-exec by itself
  if (!pidfd) {
    const int error = errno;
    return Error(error == ESRCH ? Errc::kNotFound : Errc::kIo, fmt::format("pidfd_open of worker {}", pid), error);
  }
  return std::shared_ptr<WorkerProcess>(new WorkerProcess(pid, std::move(pidfd), std::move(socket), shape));
}

WorkerProcess::WorkerProcess(pid_t pid, UniqueFd pidfd, fs::path socket, Shape shape)
    : pid_(pid), pidfd_(std::move(pidfd)), socket_(std::move(socket)), shape_(shape) {}

WorkerProcess::~WorkerProcess() {
  if (pidfd_) (void)WorkerProcess::wait_exit(Deadline::after(std::chrono::microseconds(0)));
}  // reaps a child that ended unnoticed

std::unique_ptr<WorkerClient> WorkerProcess::client() const {
  return std::make_unique<WorkerClient>(socket_);
}

fs::path WorkerProcess::log() const {
  fs::path path = socket_;
  return path.replace_extension(".log");
}

bool WorkerProcess::wait_exit(const Deadline& deadline) {
  pollfd item{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  for (;;) {
    const auto left_ms = std::chrono::ceil<std::chrono::milliseconds>(deadline.left()).count();
    const int n = ::poll(&item, 1, static_cast<int>(std::min<std::int64_t>(left_ms, INT_MAX)));
    if (n > 0) break;
    if (n == 0) return false;
    if (errno != EINTR) return false;
  }
  const std::lock_guard lock(mutex_);
  if (reaped_) return true;
  reaped_ = true;
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG) != 0) {
    exit_text_ = "its worker ended";  // not our child: an earlier fvmmd started it
  } else if (info.si_code == CLD_EXITED) {
    exit_text_ = fmt::format("its worker exited with code {}", info.si_status);
  } else if (info.si_status == SIGSYS) {
    exit_text_ =
        "its worker was killed by signal 31 (SIGSYS): it made a system call that its seccomp filter forbids; the "
        "kernel's log has its number, and fvmmd --seccomp log lets it pass";
  } else {
    exit_text_ = fmt::format("its worker was killed by signal {} ({})", info.si_status,
                             ::strsignal(info.si_status));  // NOLINT(concurrency-mt-unsafe): glibc's is thread-safe
  }
  return true;
}

void WorkerProcess::kill() {
  ::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0U);
}

std::string WorkerProcess::how_it_ended() {
  const std::string line = last_line(log());
  const std::lock_guard lock(mutex_);
  if (line.empty()) return exit_text_;
  return fmt::format("{}, last words \"{}\"", exit_text_, line);
}

void WorkerProcess::remove_files() const {
  std::error_code ignored;
  fs::remove(socket_, ignored);
  fs::remove(socket_.string() + ".console", ignored);
  fs::remove(socket_.string() + ".hvc0", ignored);
  fs::remove(log(), ignored);
}

std::string last_line(const fs::path& log) {
  constexpr std::streamoff kTailBytes = 4096;
  constexpr std::size_t kLineBytesMax = 300;
  std::ifstream file(log, std::ios::binary | std::ios::ate);
  if (!file) return "";
  const std::streamoff size = file.tellg();
  file.seekg(std::max<std::streamoff>(0, size - kTailBytes));
  std::string line;
  std::string last;
  while (std::getline(file, line)) {
    if (!line.empty()) last = line;
  }
  return last.substr(0, kLineBytesMax);
}

}  // namespace fvmm::daemon
