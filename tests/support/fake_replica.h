// A replication inside the test: a fake guest, a link that may be cut, and the receiving side with a real store.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "migration/replica_receive.h"
#include "migration/replication.h"
#include "net/frame.h"
#include "net/pipe_stream.h"
#include "support/fake_machine.h"
#include "support/fake_peer.h"
#include "support/stored_template.h"

namespace fvmm::testing {

/// The peer: each connection is served like fvmmd does, one after another.
class ReplicaPeer {
 public:
  explicit ReplicaPeer(const std::filesystem::path& store) : store_(*memory::TemplateStore::open(store)) {}
  ~ReplicaPeer() { join(); }
  ReplicaPeer(const ReplicaPeer&) = delete;
  ReplicaPeer& operator=(const ReplicaPeer&) = delete;
  ReplicaPeer(ReplicaPeer&&) = delete;
  ReplicaPeer& operator=(ReplicaPeer&&) = delete;

  Result<std::unique_ptr<net::Stream>> connect() {
    const std::lock_guard lock(mutex_);
    const LinkScript script = FVMM_TRY(link ? link(connections_++) : LinkScript{});
    auto [ours, theirs] = net::PipeStream::make(script.forward, script.backward);
    threads_.emplace_back([this, stream = std::move(theirs)] { serve(*stream); });
    newest_ = ours.get();
    return std::unique_ptr<net::Stream>(std::move(ours));
  }
  /// Cuts the newest link, while the replication lives.
  void cut() {
    const std::lock_guard lock(mutex_);
    if (newest_ != nullptr) newest_->cut();
  }
  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  memory::TemplateStore& store() { return store_; }

  std::function<Result<LinkScript>(unsigned number)> link;  // set before the first connection
  migration::StepHook on_step;                              // the same
  std::atomic<bool> recovered{false};

 private:
  void serve(net::Stream& stream) {
    const std::lock_guard one(serving_);
    v1::PeerHello hello;
    if (!net::receive_message(stream, net::FrameType::kHello, hello, Deadline::after(std::chrono::seconds(20)))) return;
    migration::ReplicaHost host;
    host.store = &store_;
    host.unless_recovered = [this](const std::function<void()>& work) {
      if (recovered) return false;
      work();
      return true;
    };
    host.on_step = on_step;
    (void)migration::receive_replica(stream, hello, host);
  }

  memory::TemplateStore store_;
  std::mutex mutex_;
  unsigned connections_ = 0;           // mutex_
  net::PipeStream* newest_ = nullptr;  // mutex_; the replication's end
  std::list<std::thread> threads_;
  std::mutex serving_;
};

class ReplicaTransport final : public migration::Transport {
 public:
  explicit ReplicaTransport(ReplicaPeer& peer) : peer_(peer) {}
  Result<std::unique_ptr<net::Stream>> connect(const Deadline&) override { return peer_.connect(); }

 private:
  ReplicaPeer& peer_;
};

/// A running fake guest and its replication.
class FakeReplication {
 public:
  struct Options {
    std::uint64_t seed = 1;
    bool on_template = true;
    unsigned pages_per_step = 6;
    std::uint64_t buffer_bytes = 64 * kMiB;
    std::chrono::milliseconds interval = migration::kReplicateIntervalMin;
  };
  explicit FakeReplication(Options options) : options_(options), peer_(directory_.path() / "peer") {
    int file = -1;
    v1::TemplateRef base;
    if (options.on_template) {
      auto& store = peer_.store();
      const auto info = store_template(store, wanted_template("base"), test_memory(7));
      base.set_id(info->id.raw());
      base.set_name(info->name);
      base.set_digest(info->digest.raw());
      base.set_memory_bytes(info->memory_bytes);
      opened_.emplace(*memory::OpenTemplate::open(info->directory));
      file = opened_->memory_file();
    }
    auto machine = std::make_unique<FakeMachine>(options.seed, std::make_shared<Runners>(), file);
    machine->set_pages_per_step(options.pages_per_step);
    machine->record_instants();
    guest_ = guest_around(fake_config(), base, std::move(machine));
    fake(*guest_).step();
    FVMM_CHECK(fake(*guest_).resume().ok(), "it can run");
  }
  ~FakeReplication() { stop(); }
  FakeReplication(const FakeReplication&) = delete;
  FakeReplication& operator=(const FakeReplication&) = delete;
  FakeReplication(FakeReplication&&) = delete;
  FakeReplication& operator=(FakeReplication&&) = delete;

  void start() {
    migration::ReplicationOptions options;
    options.peer = "peer:7000";
    options.policy.interval = options_.interval;
    options.buffer_bytes = options_.buffer_bytes;
    options.on_fenced = [this]() -> Status {
      if (fence_failures-- > 0) return Error(Errc::kDeadlineExceeded, "a vCPU thread did not answer in time");
      FVMM_TRY(guest_->machine->fence("recovered at peer:7000"));
      fenced_ = true;
      return {};
    };
    options.on_step = on_step;
    auto made = migration::Replication::start(
        std::move(options), [this](const auto& work) { return with_guest(work); },
        std::make_unique<ReplicaTransport>(peer_));
    ASSERT_TRUE(made.ok()) << made.error().message();
    replication_ = std::move(*made);
  }
  void stop() {
    if (replication_) replication_->stop();
    peer_.join();
  }
  /// Waits until so many generations have been sealed since now, the guest going on meanwhile.
  ::testing::AssertionResult sealed(std::uint64_t more) {
    const std::uint64_t wanted = replication_->status().generation_sealed() + more;
    return wait([&] { return replication_->status().generation_sealed() >= wanted; });
  }
  ::testing::AssertionResult wait(const std::function<bool()>& what) {
    const Deadline deadline = Deadline::after(std::chrono::seconds(60));
    while (!what()) {
      if (deadline.passed()) return ::testing::AssertionFailure() << status().ShortDebugString();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return ::testing::AssertionSuccess();
  }
  /// The newest generation at the peer is the guest's memory at one instant, and its state is that instant's.
  ::testing::AssertionResult newest_is_an_instant() {
    const auto newest = migration::newest_generation(peer_.store(), fake_config().id());
    if (!newest) return ::testing::AssertionFailure() << newest.error().message();
    const auto opened = memory::OpenTemplate::open(newest->directory);
    if (!opened) return ::testing::AssertionFailure() << opened.error().message();
    const auto state = opened->machine_state();
    if (!state) return ::testing::AssertionFailure() << state.error().message();
    std::array<std::uint64_t, 2> registers{};
    std::memcpy(registers.data(), state->pit2().data(), sizeof registers);
    std::vector<std::byte> memory(kFakeRamBytes);
    if (const Status read = opened->read_pages({0, kFakePages}, memory); !read) {
      return ::testing::AssertionFailure() << read.error().message();
    }
    const auto& instants = fake(*guest_).instants();
    const auto found = instants.find(registers[1]);
    if (found == instants.end()) return ::testing::AssertionFailure() << "a state that the guest never had";
    if (found->second == memory::hash_bytes(memory)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "generation " << newest->generation << " is torn";
  }

  [[nodiscard]] v1::ReplicaStatus status() const { return replication_->status(); }
  migration::Replication& replication() { return *replication_; }
  migration::Guest& guest() { return *guest_; }
  ReplicaPeer& peer() { return peer_; }
  [[nodiscard]] bool fenced() const { return fenced_; }
  Status with_guest(const std::function<Status(migration::Guest&)>& work) {
    const std::lock_guard lock(guest_mutex_);
    return work(*guest_);
  }
  migration::StepHook on_step;  // before start()
  int fence_failures = 0;       // before start(); so often the first vCPU is stuck

 private:
  const Options options_;
  TempDir directory_{"/dev/shm"};  // every seal has a dozen fsyncs
  ReplicaPeer peer_;
  std::optional<memory::OpenTemplate> opened_;
  std::mutex guest_mutex_;
  std::unique_ptr<migration::Guest> guest_;
  std::atomic<bool> fenced_{false};
  std::unique_ptr<migration::Replication> replication_;
};

}  // namespace fvmm::testing
