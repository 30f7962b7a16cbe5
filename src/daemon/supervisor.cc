#include "daemon/supervisor.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <fstream>

#include "daemon/spawner.h"

namespace fvmm::daemon {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::hours kWatchRenewal{1};    // every wait has an end; the watch then asks again
constexpr std::chrono::seconds kEndWait{1};       // between the end of a watch stream and the next try
constexpr std::chrono::seconds kRecordRetry{10};  // after a record that the disk did not take
constexpr std::uint64_t kWorkerLogKept = 64 * kKiB;

/// The process listening on a Unix socket; 0 when nobody does. unix(7), SO_PEERCRED of a connected client.
Result<pid_t> listening_pid(const fs::path& socket) {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Error(Errc::kIo, "socket", errno);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.native().size() >= sizeof(address.sun_path)) return pid_t{0};
  std::memcpy(address.sun_path, socket.c_str(), socket.native().size());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == ECONNREFUSED || errno == ENOENT) return pid_t{0};
    const int error = errno;  // EAGAIN: alive, but its queue is full
    return Error(Errc::kUnavailable, fmt::format("connect {}", socket.string()), error);
  }
  ucred credentials{};
  socklen_t bytes = sizeof(credentials);
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return Error(Errc::kIo, "SO_PEERCRED", errno);
  }
  return credentials.pid;
}

/// Keeps the end of a dead worker's log beside its VM, for whoever asks why.
void keep_log(const fs::path& log, const fs::path& vm_directory) {
  std::ifstream in(log, std::ios::binary | std::ios::ate);
  if (!in) return;
  const auto size = static_cast<std::uint64_t>(in.tellg());
  in.seekg(static_cast<std::streamoff>(size - std::min(size, kWorkerLogKept)));
  std::ofstream out(vm_directory / kWorkerLogFile, std::ios::binary | std::ios::trunc);
  out << in.rdbuf();
}

bool changes_nothing(v1::VmState state) {
  return state == v1::VM_STATE_NONE || state == v1::VM_CREATED || state == v1::VM_MIGRATING || state == v1::VM_INCOMING;
}

bool is_end(v1::VmState state) {
  return state == v1::VM_STOPPED || state == v1::VM_FAILED || state == v1::VM_MOVED || state == v1::VM_LOST;
}

}  // namespace

Supervisor::~Supervisor() {
  join();
}

void Supervisor::watch(const Id& id, std::shared_ptr<WorkerProcess> worker) {
  const std::lock_guard lock(mutex_);
  std::erase_if(watches_, [](Watch& watch) {
    if (!watch.done) return false;
    watch.thread.join();
    return true;
  });
  if (stop_.fired()) return;
  Watch& watch = watches_.emplace_back();
  watch.thread = std::thread([this, id, worker = std::move(worker), &done = watch.done] {
    follow(id, *worker);
    done = true;
  });
}

void Supervisor::join() {
  const std::lock_guard lock(mutex_);
  for (Watch& watch : watches_) watch.thread.join();
  watches_.clear();
}

void Supervisor::follow(const Id& id, WorkerProcess& worker) {
  const auto client = worker.client();
  for (;;) {
    bool left = false;
    bool behind = false;  // it is told again to whoever asks, and here
    const Status status = client->watch(stop_, Deadline::after(kWatchRenewal), [&](const v1::WorkerInfo& info) {
      left = !on_report(id, worker, info);
      behind = !left && is_behind(id, info);
      return !left && !behind;
    });
    if (left || stop_.fired()) return;
    if (worker.wait_exit(Deadline::after(behind ? kRecordRetry : kEndWait))) {
      while (!on_end(id, worker) && wait(kRecordRetry)) continue;
      return;
    }
    // It lives: the watch reached its renewal, or the worker is too busy to answer. Its guest is left alone.
    if (!registry_.find(id) || registry_.find(id)->worker.get() != &worker) return;
    if (!behind && !status && status.error().code() != Errc::kDeadlineExceeded) {
      spdlog::warn("watch of worker {}: {}", worker.pid(), status.error().message());
    }
  }
}

bool Supervisor::wait(std::chrono::seconds time) {
  std::mutex mutex;
  std::condition_variable changed;
  bool fired = false;
  const StopSignal::Guard guard(stop_, [&] {
    const std::lock_guard lock(mutex);
    fired = true;
    changed.notify_all();
  });
  std::unique_lock lock(mutex);
  return !changed.wait_for(lock, time, [&] { return fired; });
}

bool Supervisor::is_behind(const Id& id, const v1::WorkerInfo& info) const {
  if (changes_nothing(info.state())) return false;
  const auto vm = registry_.find(id);
  if (!vm || is_end(info.state()) || vm->record.state() != info.state()) return true;
  if (info.state() == v1::VM_UNSETTLED) return false;  // it does not know either
  const auto session = read_session(vm->directory);
  return is_open(session) && session->role() != v1::SESSION_ROLE_NONE;
}

bool Supervisor::on_report(const Id& id, WorkerProcess& worker, const v1::WorkerInfo& info) {
  if (!registry_.note(id, worker, info)) return false;
  const auto vm = registry_.find(id);
  if (!vm || vm->worker.get() != &worker) return false;
  if (!is_behind(id, info)) return true;  // an end is acted on even when the record knows it: the worker has to go
  // A command under way writes the outcome itself; only an end of the VM must not be missed, so that waits.
  if (!vm->busy.empty() && !is_end(info.state())) return true;
  auto claim = registry_.claim_for(id, worker);
  if (!claim) return false;
  settle(std::move(*claim));
  const auto after = registry_.find(id);
  return after && after->worker.get() == &worker;
}

void Supervisor::settle(Claim claim) {
  const VmView vm = claim.view();
  const v1::VmState state = vm.info.state();
  if (!is_behind(claim.id(), vm.info)) return;
  spdlog::info("VM {} is {}{}{}", vm.record.config().name(), state_text(state), vm.info.detail().empty() ? "" : ": ",
               vm.info.detail());
  const bool replica = vm.record.state() == v1::VM_INCOMING;
  Status status = claim.close_session();
  if (status && replica && is_end(state)) {
    status = give_up_replica(claim);
  } else if (status) {
    const auto edit = [&](v1::VmRecord& record) {
      record.set_state(state);
      record.set_detail(is_end(state) || state == v1::VM_UNSETTLED ? vm.info.detail() : "");
      record.set_moved_to(state == v1::VM_MOVED ? vm.info.moved_to() : "");
      record.set_fencing_token(std::max(record.fencing_token(), vm.info.fencing_token()));
    };
    const bool runs = state == v1::VM_RUNNING || state == v1::VM_PAUSED;
    status = replica && runs ? claim.finish_incoming(edit) : claim.change(edit);
    // Its record says what became of it before the worker goes: a restart in between finds the same.
    if (status && is_end(state)) {
      const auto ended = claim.detach();
      if (state == v1::VM_FAILED) keep_log(ended->log(), vm.directory);
      end_worker(*ended);
    }
  }
  if (!status) spdlog::error("VM {}: {}", vm.record.config().name(), status.error().message());
}

Status Supervisor::give_up_replica(Claim& claim) {
  const VmView vm = claim.view();
  if (is_open(read_session(vm.directory))) {
    // Nobody else knows that it never ran: the worker stays, to say so.
    return Error(Errc::kUnavailable, "the end of the hand-over cannot be recorded; it is tried again");
  }
  end_worker(*vm.worker);
  FVMM_TRY(claim.settle_without_worker("the replica's worker gave up"));  // else on_end() tries again
  claim.detach();
  return {};
}

bool Supervisor::on_end(const Id& id, WorkerProcess& worker) {
  auto claim = registry_.claim_for(id, worker);
  if (!claim) return true;
  const VmView vm = claim->view();
  const std::string death = worker.how_it_ended();
  spdlog::error("VM {}: {}", vm.record.config().name(), death);
  keep_log(worker.log(), vm.directory);
  if (const Status status = claim->settle_without_worker(death); !status) {
    spdlog::error("VM {}: {}; tried again in {} s", vm.record.config().name(), status.error().message(),
                  kRecordRetry.count());
    const WithoutWorker now = derive_without_worker(vm.record, read_session(vm.directory), death);
    v1::WorkerInfo known = vm.info;  // until the record says it
    known.set_state(now.state);
    known.set_detail(now.detail.empty() ? death : now.detail);
    claim->note(known);
    return false;
  }
  worker.remove_files();
  claim->detach();  // seen as ended from here on: nothing but the claim's end is left
  return true;
}

Status Supervisor::adopt_all(const fs::path& workers_directory) {
  std::error_code error;
  std::vector<fs::path> sockets;
  std::vector<fs::path> others;  // logs and consoles
  for (fs::directory_iterator it(workers_directory, error), end; !error && it != end; it.increment(error)) {
    (it->path().extension() == ".sock" ? sockets : others).push_back(it->path());
  }
  for (const fs::path& socket : sockets) FVMM_TRY(adopt(socket));
  for (const fs::path& other : others) {
    const std::string name = other.filename().string();
    const fs::path socket = workers_directory / (name.substr(0, name.find('.')) + ".sock");
    if (!fs::exists(socket, error)) fs::remove(other, error);
  }
  return {};
}

Status Supervisor::adopt(const fs::path& socket) {
  pid_t pid = FVMM_TRY(listening_pid(socket));
  if (pid == 0) {
    std::error_code ignored;
    fs::remove(socket, ignored);
    return {};
  }
  const auto info = WorkerClient(socket).info(Deadline::after(kAdoptWait));
  if (info && info->pid() > 0) pid = info->pid();
  const Shape shape = info ? Shape{info->shape().memory_bytes(), info->shape().vcpus()} : Shape{};
  auto worker = WorkerProcess::of(pid, socket, shape);
  if (!worker && worker.error().code() == Errc::kNotFound) return {};
  if (!worker) return std::move(worker.error());
  if (!info) {
    if ((*worker)->wait_exit(Deadline::after(kDyingWait))) return {};
    return Error(
        Errc::kUnavailable,
        fmt::format("worker {} at {} does not answer ({}) and may run a guest: let it come back, or end it with "
                    "\"kill {}\", then start fvmmd again",
                    pid, socket.string(), info.error().message(), pid));
  }
  if (info->config().id().empty()) {
    end_worker(**worker);
    return {};
  }
  FVMM_TRY(registry_.adopt(*info, *worker), info->config().name());
  spdlog::info("VM {} goes on in worker {}", info->config().name(), pid);
  watch(FVMM_TRY(Id::from_bytes(info->config().id())), *worker);
  return {};
}

}  // namespace fvmm::daemon
