// Programs that a test runs: started with their output in files, waited for with a deadline, never left behind.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/unique_fd.h"

namespace fvmm::test {

inline std::string read_text(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// One child process. Killed and reaped at the end of its scope. Owner: the test's thread.
class Process {
 public:
  /// stdout and stderr are appended to the two files; stdin is `input`, or /dev/null when that is negative.
  Process(std::vector<std::string> arguments, const std::filesystem::path& out, const std::filesystem::path& err,
          int input = -1) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND;
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), kFlags, 0644);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err.c_str(), kFlags, 0644);
    if (input >= 0) {
      posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    } else {
      posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    }
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const int error = ::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    FVMM_CHECK(error == 0, "a test's program starts: is it built?");
    pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    FVMM_CHECK(static_cast<bool>(pidfd_), "pidfd_open");
  }
  ~Process() {
    if (pid_ == 0 || status_) return;
    signal(SIGKILL);
    (void)wait(std::chrono::seconds(30));
  }
  Process(Process&& other) noexcept
      : pid_(std::exchange(other.pid_, 0)), pidfd_(std::move(other.pidfd_)), status_(other.status_) {}
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  Process& operator=(Process&&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int number) const {
    if (!status_) ::kill(pid_, number);
  }
  /// Its exit code, 128 + N when signal N ended it; nothing when it still runs then.
  std::optional<int> wait(std::chrono::milliseconds limit) {
    if (status_) return status_;
    pollfd item{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&item, 1, static_cast<int>(limit.count())) != 1) return std::nullopt;
    int status = 0;
    if (::waitpid(pid_, &status, 0) != pid_) return std::nullopt;
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return status_;
  }

 private:
  pid_t pid_ = 0;
  UniqueFd pidfd_;
  std::optional<int> status_;
};

/// Processes whose command line contains `text`, found in /proc.
inline std::vector<pid_t> processes_with(const std::string& text) {
  std::vector<pid_t> found;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream in(it->path() / "cmdline");
    std::string words;
    std::getline(in, words);  // of a process that has just ended it reads nothing, and does not throw
    if (words.find(text) == std::string::npos) continue;
    const pid_t pid = std::stoi(name);
    if (pid != ::getpid()) found.push_back(pid);
  }
  return found;
}

}  // namespace fvmm::test
