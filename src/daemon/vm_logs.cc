// VmService::logs() and the binding of the Vms service to the control socket.
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/file.h"
#include "daemon/vm_service.h"

namespace fvmm::daemon {
namespace {

constexpr std::uint64_t kLogChunkBytes = 64 * kKiB;
constexpr int kFollowWaitMs = 200;  // a longer silence looks whether reader and worker are still there

/// Sends everything from `offset` to the end of the file, and moves the offset there.
Status send_rest(int file, std::uint64_t& offset, const std::function<Status(const v1::LogChunk&)>& send) {
  for (;;) {
    std::string bytes(kLogChunkBytes, '\0');
    const ssize_t n = ::pread(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error(Errc::kIo, "read the serial log", errno);
    if (n == 0) return {};
    bytes.resize(static_cast<std::size_t>(n));
    v1::LogChunk chunk;
    chunk.set_data(std::move(bytes));
    chunk.set_offset(offset);
    FVMM_TRY(send(chunk));
    offset += static_cast<std::uint64_t>(n);
  }
}

/// Waits until the file may have grown.
void wait_for_more(int inotify) {
  pollfd item{.fd = inotify, .events = POLLIN, .revents = 0};
  if (::poll(&item, 1, kFollowWaitMs) <= 0) return;
  std::array<char, 4096> events{};  // only that something happened matters
  while (::read(inotify, events.data(), events.size()) > 0) {
  }
}

}  // namespace

Result<v1::LogChunk> VmService::logs(const v1::LogsRequest& request,
                                     const std::function<Status(const v1::LogChunk&)>& send,
                                     const std::function<bool()>& left) {
  const VmView vm = FVMM_TRY(registry_.find(request.name()));
  const std::filesystem::path path = vm.directory / kSerialLogFile;
  v1::LogChunk last;
  last.set_offset(request.offset());
  const auto opened = open_file(path, O_RDONLY);
  if (!opened && opened.error().code() == Errc::kNotFound) return last;  // it has never run here: nothing was written
  if (!opened) return opened.error();
  const UniqueFd inotify(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!inotify) return Error(Errc::kIo, "inotify_init1", errno);
  if (::inotify_add_watch(inotify.get(), path.c_str(), IN_MODIFY) < 0)
    return Error(Errc::kIo, "inotify_add_watch", errno);
  std::uint64_t offset = request.offset();
  std::shared_ptr<WorkerProcess> writer = vm.worker;
  for (;;) {
    // Looked at before the last read, so that what a worker wrote before its end is sent: it writes on for a moment
    // after the VM has left it.
    if (const auto now = registry_.find(vm.id); now && now->worker) writer = now->worker;
    const bool ended = !request.follow() || !writer || !writer->alive() || left();
    FVMM_TRY(send_rest(opened->get(), offset, send));
    if (ended) break;
    wait_for_more(inotify.get());
  }
  last.set_offset(offset);
  return last;
}

void VmService::bind(control::Server& server) {
  using control::Call;
  using v1::VmInfo;
  using v1::VmName;
  server.unary<v1::CreateVmRequest, VmInfo>(
      "fvmm.v1.Vms/Create",
      [this](Call& call, const v1::CreateVmRequest& request) { return create(request, call.deadline()); });
  server.unary<VmName, VmInfo>("fvmm.v1.Vms/Start", [this](Call& call, const VmName& request) {
    return start(request.name(), call.deadline());
  });
  server.unary<VmName, VmInfo>("fvmm.v1.Vms/Pause", [this](Call& call, const VmName& request) {
    return pause(request.name(), call.deadline());
  });
  server.unary<VmName, VmInfo>("fvmm.v1.Vms/Resume", [this](Call& call, const VmName& request) {
    return resume(request.name(), call.deadline());
  });
  server.unary<v1::BalloonRequest, VmInfo>(
      "fvmm.v1.Vms/Balloon",
      [this](Call& call, const v1::BalloonRequest& request) { return balloon(request, call.deadline()); });
  server.unary<VmName, VmInfo>("fvmm.v1.Vms/Stop",
                               [this](Call&, const VmName& request) { return stop(request.name()); });
  server.unary<VmName, v1::Empty>("fvmm.v1.Vms/Remove", [this](Call&, const VmName& request) -> Result<v1::Empty> {
    FVMM_TRY(remove(request.name()));
    return v1::Empty();
  });
  server.unary<v1::Empty, v1::VmList>("fvmm.v1.Vms/List",
                                      [this](Call&, const v1::Empty&) -> Result<v1::VmList> { return list(); });
  server.unary<VmName, VmInfo>("fvmm.v1.Vms/Show",
                               [this](Call&, const VmName& request) { return show(request.name()); });
  server.unary<v1::CloneRequest, v1::VmList>("fvmm.v1.Vms/Clone", [this](Call& call, const v1::CloneRequest& request) {
    return clone(request, call.deadline());
  });
  server.stream<v1::LogsRequest, v1::LogChunk>("fvmm.v1.Vms/Logs", [this](Call& call, const v1::LogsRequest& request) {
    return logs(
        request, [&call](const v1::LogChunk& chunk) { return call.send(chunk); }, [&call] { return call.cancelled(); });
  });
  server.unary<v1::PokeRequest, v1::Empty>("fvmm.v1.Vms/Poke",
                                           [this](Call& call, const v1::PokeRequest& request) -> Result<v1::Empty> {
                                             FVMM_TRY(poke(request, call.deadline()));
                                             return v1::Empty();
                                           });
}

}  // namespace fvmm::daemon
