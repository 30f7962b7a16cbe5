// A worker process for the daemon's tests: a control::Server in this process that answers as a worker would, and a
// sleeping child that stands for its process, so that its life and death are real.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/id.h"
#include "control/server.h"
#include "daemon/process.h"
#include "daemon/records.h"
#include "daemon/spawner.h"
#include "proto/worker.pb.h"

namespace fvmm::test {

/// A directory of its own under /tmp, removed at the end.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = "/tmp/fvmm-daemon-XXXXXX";
    FVMM_CHECK(::mkdtemp(name.data()) != nullptr, "mkdtemp");
    path_ = name;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  ScratchDirectory(ScratchDirectory&&) = delete;
  ScratchDirectory& operator=(ScratchDirectory&&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A process that only sleeps; killed at the end.
class SleepingChild {
 public:
  SleepingChild() {
    std::string program = "sleep";
    std::string seconds = "600";
    char* const arguments[] = {program.data(), seconds.data(), nullptr};
    FVMM_CHECK(::posix_spawnp(&pid_, "sleep", nullptr, nullptr, arguments, environ) == 0, "spawn sleep");
  }
  ~SleepingChild() { end(); }
  SleepingChild(const SleepingChild&) = delete;
  SleepingChild& operator=(const SleepingChild&) = delete;
  SleepingChild(SleepingChild&&) = delete;
  SleepingChild& operator=(SleepingChild&&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }
  void end() const { ::kill(pid_, SIGKILL); }  // reaped by its WorkerProcess

 private:
  pid_t pid_ = 0;
};

class FakeWorker {
 public:
  FakeWorker(std::filesystem::path socket, daemon::Shape shape) : socket_(std::move(socket)) {
    info_.mutable_shape()->set_memory_bytes(shape.memory_bytes);
    info_.mutable_shape()->set_vcpus(shape.vcpus);
    info_.set_pid(child_.pid());
    control::Server::Options options;
    options.socket = socket_;
    auto server = control::Server::open(std::move(options));
    FVMM_CHECK(server.ok(), "fake worker's socket");
    server_ = std::move(*server);
    bind();
    thread_ = std::thread([this] { server_->run(); });
  }
  ~FakeWorker() {
    end();
    thread_.join();
  }
  FakeWorker(const FakeWorker&) = delete;
  FakeWorker& operator=(const FakeWorker&) = delete;
  FakeWorker(FakeWorker&&) = delete;
  FakeWorker& operator=(FakeWorker&&) = delete;

  /// Dies as by SIGKILL: the process first, then every connection. Thread: any, also a handler's.
  void end() {
    child_.end();
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    server_->stop();
  }
  void report(v1::VmState state, const std::string& detail = "") {
    const std::lock_guard lock(mutex_);
    info_.set_state(state);
    info_.set_detail(detail);
    ++version_;
    changed_.notify_all();
  }
  void carry(const v1::VmConfig& config, v1::VmState state) {
    {
      const std::lock_guard lock(mutex_);
      *info_.mutable_config() = config;
    }
    report(state);
  }
  [[nodiscard]] v1::WorkerInfo info() {
    const std::lock_guard lock(mutex_);
    return info_;
  }
  [[nodiscard]] int calls(const std::string& method) {
    const std::lock_guard lock(mutex_);
    return calls_[method];
  }
  [[nodiscard]] std::shared_ptr<daemon::WorkerProcess> process(daemon::Shape shape) {
    auto process = daemon::WorkerProcess::of(child_.pid(), socket_, shape);
    FVMM_CHECK(process.ok(), "the child sleeps");
    return *process;
  }

  // What the scripted methods do; set before the call under test.
  std::function<Result<v1::WorkerInfo>(const v1::VmConfig&)> on_start;  // Boot and Clone; default: runs
  std::function<Result<v1::MigrateEvent>(control::Call&, const v1::WorkerMigrateRequest&)> on_migrate;
  std::function<Result<v1::WorkerInfo>(control::Call&, const v1::WorkerReceiveRequest&, UniqueFd)> on_receive;
  std::function<Result<v1::WorkerInfo>(bool resume)> on_settle;
  std::function<Result<v1::ReplicaStatus>()> on_replicate = [] { return v1::ReplicaStatus(); };
  /// How it answers questions about its session from now on. Thread: any.
  void answer_with(std::function<v1::SessionAnswer(const v1::SessionQuery&)> answer) {
    const std::lock_guard lock(mutex_);
    on_ask_ = std::move(answer);
  }
  std::function<Result<v1::TemplateInfo>(const v1::WorkerTemplateRequest&)> on_template;

 private:
  template <class Request, class Response>
  void method(const char* name, std::function<Result<Response>(control::Call&, const Request&)> work) {
    server_->unary<Request, Response>(std::string("fvmm.v1.Worker/") + name,
                                      [this, name, work](control::Call& call, const Request& request) {
                                        {
                                          const std::lock_guard lock(mutex_);
                                          ++calls_[name];
                                        }
                                        return work(call, request);
                                      });
  }
  Result<v1::WorkerInfo> start(const v1::VmConfig& config) {
    if (on_start) return on_start(config);
    carry(config, v1::VM_RUNNING);
    return info();
  }
  void bind() {
    using control::Call;
    using Info = v1::WorkerInfo;
    method<v1::WorkerBootRequest, Info>(
        "Boot", [this](Call&, const v1::WorkerBootRequest& request) { return start(request.config()); });
    method<v1::WorkerCloneRequest, Info>(
        "Clone", [this](Call&, const v1::WorkerCloneRequest& request) { return start(request.config()); });
    method<v1::Empty, Info>("Resume", [this](Call&, const v1::Empty&) -> Result<Info> {
      report(v1::VM_RUNNING);
      return info();
    });
    method<v1::Empty, Info>("Pause", [this](Call&, const v1::Empty&) -> Result<Info> {
      report(v1::VM_PAUSED);
      return info();
    });
    method<v1::Empty, v1::Empty>("Stop", [this](Call&, const v1::Empty&) -> Result<v1::Empty> {
      child_.end();
      return v1::Empty();
    });
    method<v1::Empty, Info>("Info", [this](Call&, const v1::Empty&) -> Result<Info> { return info(); });
    method<v1::Empty, Info>("Watch", [this](Call& call, const v1::Empty&) { return watch(call); });
    method<v1::WorkerTemplateRequest, v1::TemplateInfo>(
        "CreateTemplate", [this](Call&, const v1::WorkerTemplateRequest& request) { return on_template(request); });
    method<v1::WorkerMigrateRequest, v1::MigrateEvent>(
        "Migrate", [this](Call& call, const v1::WorkerMigrateRequest& request) { return on_migrate(call, request); });
    method<v1::WorkerReceiveRequest, Info>("Receive", [this](Call& call, const v1::WorkerReceiveRequest& request) {
      auto descriptors = call.take_descriptors();
      FVMM_CHECK(descriptors.size() == 1, "Receive comes with the control connection");
      return on_receive(call, request, std::move(descriptors.front()));
    });
    method<v1::WorkerAddConnectionRequest, v1::Empty>(
        "AddConnection", [](Call& call, const v1::WorkerAddConnectionRequest&) -> Result<v1::Empty> {
          FVMM_CHECK(call.take_descriptors().size() == 1, "AddConnection comes with the connection");
          return v1::Empty();
        });
    method<v1::WorkerSettleRequest, Info>(
        "Settle", [this](Call&, const v1::WorkerSettleRequest& request) { return on_settle(request.resume()); });
    method<v1::SessionQuery, v1::SessionAnswer>(
        "AskSession", [this](Call&, const v1::SessionQuery& query) -> Result<v1::SessionAnswer> {
          std::function<v1::SessionAnswer(const v1::SessionQuery&)> answer;
          {
            const std::lock_guard lock(mutex_);
            answer = on_ask_;
          }
          if (!answer) return Error(Errc::kNotFound, "this worker knows no such session");
          return answer(query);
        });
    method<v1::WorkerReplicateRequest, v1::ReplicaStatus>(
        "StartReplication",
        [this](Call&, const v1::WorkerReplicateRequest&) -> Result<v1::ReplicaStatus> { return on_replicate(); });
    method<v1::PokeRequest, v1::Empty>("Poke",
                                       [](Call&, const v1::PokeRequest&) -> Result<v1::Empty> { return v1::Empty(); });
    method<v1::Empty, v1::Empty>("CancelMigration",
                                 [](Call&, const v1::Empty&) -> Result<v1::Empty> { return v1::Empty(); });
  }
  Result<v1::WorkerInfo> watch(control::Call& call) {
    std::unique_lock lock(mutex_);
    for (int told = -1; !ended_ && !call.cancelled();) {
      if (told != version_) {
        told = version_;
        const v1::WorkerInfo now = info_;
        lock.unlock();
        const Status sent = call.send(now);
        lock.lock();
        if (!sent) break;
      }
      changed_.wait_for(lock, std::chrono::milliseconds(20), [&] { return ended_ || told != version_; });
    }
    return Error(Errc::kUnavailable, "the worker ends");
  }

  const std::filesystem::path socket_;
  SleepingChild child_;
  std::unique_ptr<control::Server> server_;
  std::function<v1::SessionAnswer(const v1::SessionQuery&)> on_ask_;  // mutex_
  std::mutex mutex_;
  std::condition_variable changed_;
  v1::WorkerInfo info_;               // mutex_
  int version_ = 0;                   // mutex_
  bool ended_ = false;                // mutex_
  std::map<std::string, int> calls_;  // mutex_
  std::thread thread_;
};

/// Gives out fake workers. `prepare` sees each before anybody else.
class FakeSpawner final : public daemon::Spawner {
 public:
  explicit FakeSpawner(std::filesystem::path directory) : directory_(std::move(directory)) {
    std::filesystem::create_directories(directory_);
  }
  Result<std::shared_ptr<daemon::WorkerProcess>> spawn(const daemon::Shape& shape, const Deadline&) override {
    const std::lock_guard lock(mutex_);
    if (fail_next) {
      fail_next = false;
      return Error(Errc::kInternal, "a worker could not start: /dev/kvm is missing");
    }
    auto worker = std::make_unique<FakeWorker>(directory_ / fmt::format("{}.sock", workers_.size()), shape);
    if (prepare) prepare(*worker);
    auto process = worker->process(shape);
    workers_.push_back(std::move(worker));
    return process;
  }
  void end(daemon::WorkerProcess& worker) override {
    daemon::end_worker(worker);
    const std::lock_guard lock(mutex_);
    ++ended_;
  }
  [[nodiscard]] std::size_t spawned() {
    const std::lock_guard lock(mutex_);
    return workers_.size();
  }
  [[nodiscard]] int ended() {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  [[nodiscard]] FakeWorker& worker(std::size_t index) {
    const std::lock_guard lock(mutex_);
    return *workers_.at(index);
  }
  std::function<void(FakeWorker&)> prepare;
  bool fail_next = false;

 private:
  const std::filesystem::path directory_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;  // mutex_
  int ended_ = 0;                                     // mutex_
};

/// Polls a condition that another thread makes true; false after 20 s, which no healthy test reaches.
inline bool eventually(const std::function<bool()>& condition) {
  const Deadline deadline = Deadline::after(std::chrono::seconds(20));
  while (!condition()) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

inline v1::VmRecord vm_record(const std::string& name, v1::VmState state, std::uint64_t memory_bytes = 64 * kMiB) {
  v1::VmRecord record;
  record.mutable_config()->set_id(Id::random().raw());
  record.mutable_config()->set_name(name);
  record.mutable_config()->set_memory_bytes(memory_bytes);
  record.mutable_config()->set_vcpus(1);
  record.set_state(state);
  record.set_fencing_token(1);
  return record;
}

inline v1::SessionRecord session_record(const v1::VmRecord& vm, v1::SessionRole role, v1::SessionOutcome outcome) {
  v1::SessionRecord session;
  session.set_session(Id::random().raw());
  session.set_vm(vm.config().id());
  session.set_role(role);
  session.set_outcome(outcome);
  session.set_peer("127.0.0.1:1");
  session.set_fencing_token(2);
  return session;
}

}  // namespace fvmm::test
