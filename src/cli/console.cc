// vm console and vm logs
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ostream>

#include "base/scope_exit.h"
#include "cli/commands.h"
#include "control/unix_socket.h"

namespace fvmm::cli {
namespace {

constexpr char kLeaveKey = 0x1D;  // Ctrl-]
constexpr std::size_t kChunkBytes = 4096;
constexpr std::chrono::seconds kWriteWait{30};  // a guest that reads nothing for this long is given up

/// Writes everything, waiting where the other side is slow.
Status write_everything(int fd, std::string_view bytes) {
  const Deadline deadline = Deadline::after(kWriteWait);
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN) {
      if (!control::wait_for(fd, POLLOUT, deadline))
        return Error(Errc::kDeadlineExceeded, "the console takes no input");
    } else if (errno != EINTR) {
      return Error(Errc::kIo, "write to the console", errno);
    }
  }
  return {};
}

/// One end to the other, once. False: this end is over.
Result<bool> carry(int from, int to, bool leave_key) {
  std::array<char, kChunkBytes> chunk;
  const ssize_t got = ::read(from, chunk.data(), chunk.size());
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got <= 0) return false;  // EIO of a terminal that is gone is an end like any other
  std::string_view bytes(chunk.data(), static_cast<std::size_t>(got));
  const std::size_t leave = leave_key ? bytes.find(kLeaveKey) : std::string_view::npos;
  FVMM_TRY(write_everything(to, bytes.substr(0, leave)));
  return leave == std::string_view::npos;
}

Status join(int socket, const Streams& streams, bool terminal, int signals) {
  for (;;) {
    std::array<pollfd, 3> ends{{{socket, POLLIN, 0}, {streams.in_fd, POLLIN, 0}, {signals, POLLIN, 0}}};
    if (::poll(ends.data(), ends.size(), -1) < 0) {  // ends with either side, a signal or the key
      if (errno == EINTR) continue;
      return Error(Errc::kIo, "poll", errno);
    }
    if (ends[2].revents != 0) return {};
    if (ends[0].revents != 0 && !FVMM_TRY(carry(socket, streams.out_fd, false))) return {};
    if (ends[1].revents != 0 && !FVMM_TRY(carry(streams.in_fd, socket, terminal))) return {};
  }
}

}  // namespace

Status join_console(const std::string& path, const Streams& streams) {
  const UniqueFd socket = FVMM_TRY(control::connect_unix(path, Deadline::after(kConnectTimeout)), "console");
  sigset_t ending;
  sigset_t before;
  ::sigemptyset(&ending);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&ending, signal);
  ::pthread_sigmask(SIG_BLOCK, &ending, &before);  // a killed console must still give the terminal back
  const ScopeExit unblock([&before] { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); });
  const UniqueFd signals(::signalfd(-1, &ending, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals) return Error(Errc::kIo, "signalfd", errno);

  termios saved{};
  const bool terminal = ::tcgetattr(streams.in_fd, &saved) == 0;
  if (terminal) {
    termios raw = saved;
    ::cfmakeraw(&raw);
    ::tcsetattr(streams.in_fd, TCSANOW, &raw);
    streams.err << "Connected; Ctrl-] leaves.\r\n" << std::flush;
  }
  const ScopeExit restore([&] {
    if (!terminal) return;
    ::tcsetattr(streams.in_fd, TCSANOW, &saved);
    streams.err << "\r\n" << std::flush;
  });
  return join(socket.get(), streams, terminal, signals.get());
}

int vm_console(Session& session, const std::string& name, bool virtio) {
  v1::VmName request;
  request.set_name(name);
  v1::VmInfo vm;
  if (const Status status = session.call("fvmm.v1.Vms/Show", request, vm, kCallTimeout); !status) {
    return session.fail(status.error());
  }
  if (vm.console_path().empty()) {
    return session.fail(
        Error(Errc::kFailedPrecondition, fmt::format("{} is {} and has no console; start it with: fvmmctl vm start {}",
                                                     name, state_word(vm.state()), name)),
        kFailed);
  }
  if (virtio && vm.virtio_console_path().empty()) {
    return session.fail(Error(Errc::kFailedPrecondition,
                              name + " has no virtio console; it is given one by: fvmmctl vm create --console"),
                        kFailed);
  }
  const Status status = join_console(virtio ? vm.virtio_console_path() : vm.console_path(), session.streams());
  return status.ok() ? kDone : session.fail(status.error(), kFailed);
}

int vm_logs(Session& session, const std::string& name, bool follow) {
  v1::LogsRequest request;
  request.set_name(name);
  request.set_follow(follow);
  const Status status = session.stream(
      "fvmm.v1.Vms/Logs", request,
      [&](const std::string& bytes, bool) {
        v1::LogChunk chunk;
        if (!chunk.ParseFromString(bytes)) return false;
        session.out() << chunk.data() << std::flush;
        return session.out().good();  // whoever read us has closed the pipe
      },
      follow ? std::chrono::microseconds(kFollowTimeout) : std::chrono::microseconds(kLongCallTimeout));
  return status.ok() ? kDone : session.fail(status.error());
}

}  // namespace fvmm::cli
