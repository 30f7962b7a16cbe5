// fvmmd: the control process, and with --worker the process that carries one VM.
#include <fcntl.h>
#include <pthread.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "daemon/daemon.h"
#include "daemon/options.h"
#include "daemon/systemd.h"
#include "daemon/worker.h"

namespace {

using namespace fvmm;

/// 0, 1 and 2 always lead somewhere, so that no socket of ours is ever taken for one of them.
void open_standard_descriptors() {
  int fd = -1;
  do {
    fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) ::close(fd);
}

/// Blocked in every thread, so that only the one that waits for them gets them.
sigset_t block_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGCHLD}) ::sigaddset(&signals, number);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

void log_notify(std::string_view state) {
  const Status notified = daemon::notify_systemd(state);
  if (!notified) spdlog::warn("systemd: {}", notified.error().message());
}

int run_daemon(const daemon::DaemonOptions& options) {
  const sigset_t signals = block_signals();
  auto listener = daemon::take_systemd_listener();
  if (!listener) {
    spdlog::error("{}", listener.error().message());
    return 1;
  }
  auto opened = daemon::Daemon::open(options, std::move(*listener));
  if (!opened) {
    spdlog::error("{}", opened.error().message());
    return 1;
  }
  daemon::Daemon& running = **opened;
  std::thread server([&running] { running.run(); });
  spdlog::info("fvmmd {} is ready in {}{}{}", daemon::kVersion, options.runtime_directory.string(),
               running.listen().empty() ? "" : ", peers at ", running.listen());
  log_notify("READY=1");
  for (int number = 0; number != SIGTERM && number != SIGINT;) {
    ::sigwait(&signals, &number);
    if (number == SIGCHLD) running.reap();
  }
  log_notify("STOPPING=1");
  spdlog::info("stopping; VMs go on in their workers");
  running.stop();
  server.join();
  opened->reset();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_descriptors();
  spdlog::set_default_logger(spdlog::stderr_logger_mt("fvmmd"));
  const daemon::Invocation invocation = daemon::parse_command_line(argc, argv);
  if (const int* code = std::get_if<int>(&invocation)) return *code;
  if (const auto* worker = std::get_if<daemon::WorkerOptions>(&invocation)) return daemon::worker_main(*worker);
  return run_daemon(std::get<daemon::DaemonOptions>(invocation));
}
