#include "daemon/worker.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string_view>

#include "daemon/privileges.h"
#include "daemon/worker_process.h"
#include "vmm/clock.h"

namespace fvmm::daemon {
namespace {

// A mapped template page that the disk no longer gives, touched by one of our own threads (a guest's own access ends in
// KVM_RUN instead). The last words in the log become the VM's detail; then the signal does what it does by default.
void explain_sigbus() {
  struct sigaction action {};
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the access is tried again, and ends the process
  action.sa_handler = [](int) {
    constexpr std::string_view kWords =
        "a page of the VM's template cannot be read: check it with \"fvmmctl template verify\", and its disk\n";
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kWords.data(), kWords.size());
  };
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

// Privileges go while there is one thread, system calls once everything is there that needs others. /dev/kvm and what
// comes later are opened as this user.
Result<std::unique_ptr<Worker>> create_confined(const WorkerOptions& options) {
  FVMM_TRY(drop_privileges(std::max(options.ready_fd, STDERR_FILENO)), "drop privileges");
  auto worker = FVMM_TRY(Worker::create(options));
  FVMM_TRY(enter_seccomp(options.seccomp), "seccomp");
  return worker;
}

}  // namespace

int worker_main(const WorkerOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  explain_sigbus();
  // The host's Ctrl-C and a service stop are for fvmmd; a guest ends only by Worker/Stop (or SIGKILL).
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
  auto worker = create_confined(options);
  if (!worker) {
    spdlog::error("worker: {}", worker.error().message());
    return 1;
  }
  if (options.ready_fd >= 0) {
    const char byte = 1;
    if (::write(options.ready_fd, &byte, 1) != 1) spdlog::warn("nobody waits for this worker");
    ::close(options.ready_fd);
  }
  (*worker)->run();
  spdlog::default_logger_raw()->flush();
  // The kernel frees a guest's memory faster than destructors would, and nothing is left to save.
  ::_exit(0);
}

Result<std::unique_ptr<Worker>> Worker::create(WorkerOptions options) {
  std::string boot_id = FVMM_TRY(vmm::read_boot_id());
  std::unique_ptr<Worker> worker(new Worker(std::move(options), std::move(boot_id)));
  worker->warm_ =
      FVMM_TRY(vmm::Vm::create({.memory_bytes = worker->options_.memory_bytes, .vcpus = worker->options_.vcpus},
                               [self = worker.get()](const vmm::VcpuStop& stop) { self->guest_stopped(stop); }));
  if (worker->options_.complete_instructions) worker->warm_->complete_instructions(true);
  control::Server::Options serve;
  serve.socket = worker->options_.socket;
  worker->server_ = FVMM_TRY(control::Server::open(std::move(serve)));
  worker->register_methods();
  worker->register_migration();
  worker->register_replication();
  return worker;
}

Worker::Worker(WorkerOptions options, std::string boot_id)
    : options_(std::move(options)), boot_id_(std::move(boot_id)) {
  board_.change([this](v1::WorkerInfo& info) {
    info.set_pid(::getpid());
    info.mutable_shape()->set_memory_bytes(options_.memory_bytes);
    info.mutable_shape()->set_vcpus(options_.vcpus);
    info.set_seccomp(std::string(to_string(options_.seccomp)));
  });
}

Worker::~Worker() {
  if (way_back_.joinable()) way_back_.join();
}

void Worker::run() {
  server_->run();
}

void Worker::register_methods() {
  using control::Call;
  const std::string service = "fvmm.v1.Worker/";
  server_->unary<v1::WorkerBootRequest, v1::WorkerInfo>(
      service + "Boot",
      [this](Call& call, const v1::WorkerBootRequest& request) { return boot(request, call.take_descriptors()); });
  server_->unary<v1::WorkerCloneRequest, v1::WorkerInfo>(
      service + "Clone",
      [this](Call& call, const v1::WorkerCloneRequest& request) { return clone(request, call.take_descriptors()); });
  server_->unary<v1::Empty, v1::WorkerInfo>(service + "Resume", [this](Call&, const v1::Empty&) { return resume(); });
  server_->unary<v1::Empty, v1::WorkerInfo>(service + "Pause", [this](Call&, const v1::Empty&) { return pause(); });
  server_->unary<v1::BalloonRequest, v1::WorkerInfo>(
      service + "Balloon", [this](Call&, const v1::BalloonRequest& request) { return balloon(request); });
  server_->unary<v1::Empty, v1::WorkerInfo>(service + "Info", [this](Call&, const v1::Empty&) { return info(); });
  server_->stream<v1::Empty, v1::WorkerInfo>(service + "Watch",
                                             [this](Call& call, const v1::Empty&) { return watch(call); });
  server_->unary<v1::WorkerTemplateRequest, v1::TemplateInfo>(
      service + "CreateTemplate",
      [this](Call&, const v1::WorkerTemplateRequest& request) { return create_template(request); });
  server_->unary<v1::WorkerSealRequest, v1::TemplateInfo>(
      service + "SealWayBack", [this](Call&, const v1::WorkerSealRequest& request) { return seal_way_back(request); });
  server_->unary<v1::PokeRequest, v1::Empty>(service + "Poke",
                                             [this](Call&, const v1::PokeRequest& request) -> Result<v1::Empty> {
                                               FVMM_TRY(poke(request));
                                               return v1::Empty();
                                             });
  server_->unary<v1::Empty, v1::Empty>(service + "Stop", [this](Call&, const v1::Empty&) -> Result<v1::Empty> {
    if (auto* serial = serial_.load()) (void)serial->flush(Deadline::after(std::chrono::seconds(1)));
    stopping_ = true;
    board_.change([](v1::WorkerInfo&) {});  // wakes the watches: the server waits for their end, and so does the caller
    (void)cancel_migration();
    end_way_back();
    (void)stop_replication();
    if (serial_.load() != nullptr) vm_->disconnect();  // the process ends without destructors: no socket stays behind
    server_->stop();
    return v1::Empty();
  });
}

// On the vCPU's thread: only says so.
void Worker::guest_stopped(const vmm::VcpuStop& stop) {
  const bool failed = stop.kind == vmm::VcpuStop::Kind::kFailed;
  if (failed) {
    spdlog::error("the guest failed: {}", stop.report);
  } else {
    spdlog::info("the guest stopped: {}", stop.report);
  }
  board_.set_state(failed ? v1::VM_FAILED : v1::VM_STOPPED, stop.report);
}

}  // namespace fvmm::daemon
