#include "daemon/spawner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/id.h"
#include "base/scope_exit.h"
#include "daemon/call_worker.h"

namespace fvmm::daemon {
namespace {

constexpr int kReadyFdInWorker = 3;
constexpr std::chrono::seconds kStopWait{10};
constexpr std::chrono::seconds kKillWait{30};  // a killed worker may have to give back 64 GiB

/// posix_spawn's two attribute objects, freed together.
struct SpawnPlan {
  SpawnPlan() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
  SpawnPlan(SpawnPlan&&) = delete;
  SpawnPlan& operator=(SpawnPlan&&) = delete;
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
};

/// Our environment without what systemd meant for fvmmd alone.
std::vector<char*> worker_environment() {
  std::vector<char*> variables;
  for (char** it = environ; it != nullptr && *it != nullptr; ++it) {
    const std::string_view variable(*it);
    const bool ours =
        variable.starts_with("LISTEN_") || variable.starts_with("NOTIFY_SOCKET=") || variable.starts_with("WATCHDOG_");
    if (!ours) variables.push_back(*it);
  }
  variables.push_back(nullptr);
  return variables;
}

Result<pid_t> spawn_process(const std::filesystem::path& executable, std::vector<std::string> arguments, int log,
                            int ready) {
  SpawnPlan plan;
  // main() keeps 0 to 2 open, so `log` and `ready` are 3 or above; 3 itself is overwritten only after the log was
  // copied.
  posix_spawn_file_actions_addopen(&plan.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&plan.actions, log, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&plan.actions, log, STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&plan.actions, ready, kReadyFdInWorker);  // also clears close-on-exec when equal
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  posix_spawnattr_setsigmask(&plan.attributes, &none);
  posix_spawnattr_setsigdefault(&plan.attributes, &all);
  posix_spawnattr_setflags(&plan.attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const auto environment = worker_environment();
  pid_t pid = 0;
  const int error =
      ::posix_spawn(&pid, executable.c_str(), &plan.actions, &plan.attributes, argv.data(), environment.data());
  if (error != 0) return Error(Errc::kIo, fmt::format("spawn {}", executable.string()), error);
  return pid;
}

enum class Ready { kYes, kEnded, kTooLate };

Ready wait_ready(int pipe, const Deadline& deadline) {
  pollfd item{.fd = pipe, .events = POLLIN, .revents = 0};
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.left()).count();
    const int n = ::poll(&item, 1, static_cast<int>(left));  // at most kSpawnWaitMax
    if (n == 0) return Ready::kTooLate;
    if (n < 0 && errno != EINTR) return Ready::kEnded;
    if (n > 0) break;
  }
  char byte = 0;
  return ::read(pipe, &byte, 1) == 1 ? Ready::kYes : Ready::kEnded;
}

}  // namespace

Result<std::shared_ptr<WorkerProcess>> ExecSpawner::spawn(const Shape& shape, const Deadline& deadline) {
  const std::string name = Id::random().hex().substr(0, 12);
  const std::filesystem::path socket = options_.workers_directory / (name + ".sock");
  const std::filesystem::path log_path = options_.workers_directory / (name + ".log");
  const UniqueFd log = FVMM_TRY(open_file(log_path, O_WRONLY | O_CREAT | O_APPEND));
  ScopeExit forget_log([&] { (void)remove_file(log_path); });  // of a worker that there never was
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Error(Errc::kIo, "pipe2", errno);
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  std::vector<std::string> arguments{"fvmmd",      "--worker",
                                     "--socket",   socket.string(),
                                     "--memory",   std::to_string(shape.memory_bytes),
                                     "--vcpus",    std::to_string(shape.vcpus),
                                     "--ready-fd", std::to_string(kReadyFdInWorker),
                                     "--seccomp",  std::string(to_string(options_.seccomp))};
  if (options_.test_hooks) arguments.emplace_back("--test-hooks");
  if (options_.complete_instructions) arguments.emplace_back("--complete-instructions");
  const pid_t pid =
      FVMM_TRY(spawn_process(options_.executable, std::move(arguments), log.get(), write_end.get()), "worker");
  write_end.reset();  // so that the end of the worker is the end of the pipe
  auto watched = WorkerProcess::of(pid, socket, shape);
  if (!watched) {  // without a pidfd nobody would ever end it
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return std::move(watched.error());
  }
  forget_log.dismiss();
  const auto worker = std::move(*watched);
  const Ready ready = wait_ready(read_end.get(), deadline.sooner(kSpawnWaitMax));
  if (ready == Ready::kYes) return worker;
  if (ready == Ready::kTooLate) worker->kill();
  worker->wait_exit(Deadline::after(kKillWait));
  Error error = ready == Ready::kTooLate
                    ? Error(Errc::kDeadlineExceeded, fmt::format("worker {} was not ready in time and was killed", pid))
                    : Error(Errc::kInternal, fmt::format("a worker could not start: {}", worker->how_it_ended()));
  worker->remove_files();
  return error;
}

void ExecSpawner::end(WorkerProcess& worker) {
  end_worker(worker);
}

void end_worker(WorkerProcess& worker) {
  const Deadline deadline = Deadline::after(kStopWait);
  const Status asked = worker.client()->stop(deadline);
  // An error may only mean that the worker was quicker than its answer.
  if (!worker.wait_exit(asked ? deadline : deadline.sooner(std::chrono::seconds(1)))) {
    spdlog::warn("worker {} does not stop{}{}; killing it", worker.pid(), asked ? "" : ": ",
                 asked ? "" : asked.error().message());
    worker.kill();
    if (!worker.wait_exit(Deadline::after(kKillWait))) spdlog::error("worker {} survives SIGKILL", worker.pid());
  }
  worker.remove_files();
}

}  // namespace fvmm::daemon
