// A peer host inside the test: a Transport whose connections end in a listener that does what fvmmd's does, and a
// worker that may die.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "migration/destination.h"
#include "migration/transport.h"
#include "net/frame.h"
#include "net/pipe_stream.h"
#include "support/fake_journal.h"

namespace fvmm::testing {

/// Thrown by a step hook: the process ends here. Nothing it held in memory survives, its disk does.
struct Killed {};

/// What went over one connection. Read it after FakePeer::join().
struct Tap {
  std::vector<std::uint64_t> sent;  // bytes on the wire at the end of each send
};

/// Counts what is sent.
class TappedStream final : public net::Stream {
 public:
  TappedStream(std::unique_ptr<net::Stream> inner, std::shared_ptr<Tap> tap)
      : inner_(std::move(inner)), tap_(std::move(tap)) {}
  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override {
    std::uint64_t bytes = tap_->sent.empty() ? 0 : tap_->sent.back();
    for (const iovec& part : parts) bytes += part.iov_len;
    tap_->sent.push_back(bytes);
    return inner_->start_send(parts, deadline);
  }
  Status finish_send(const Deadline& deadline) override { return inner_->finish_send(deadline); }
  Status receive(std::span<const iovec> parts, const Deadline& deadline) override {
    return inner_->receive(parts, deadline);
  }
  [[nodiscard]] bool closed_by_peer() const override { return inner_->closed_by_peer(); }
  void cancel() override { inner_->cancel(); }

 private:
  std::unique_ptr<net::Stream> inner_;
  std::shared_ptr<Tap> tap_;
};

struct LinkScript {
  net::PipeScript forward;   // towards the peer
  net::PipeScript backward;  // from the peer
};

/// Owner: one thread; connect() and the threads of its connections are synchronized inside.
class FakePeer final : public migration::Transport {
 public:
  struct Options {
    migration::MakeGuest make_guest;
    std::shared_ptr<FakeDisk> disk = std::make_shared<FakeDisk>();
    std::set<int> failing_writes;
    migration::StepHook on_step;
    migration::DestinationSession::Waits waits{};
    /// The fate of the connection with this number, from 0; an error: it cannot be made.
    std::function<Result<LinkScript>(unsigned number)> link;
    /// Called with each Hello; true: the connection has been dealt with.
    std::function<bool(net::Stream&, const v1::PeerHello&)> intercept;
  };
  explicit FakePeer(Options options) : options_(std::move(options)), journal_(options_.disk, options_.failing_writes) {}
  ~FakePeer() override { join(); }
  FakePeer(const FakePeer&) = delete;
  FakePeer& operator=(const FakePeer&) = delete;
  FakePeer(FakePeer&&) = delete;
  FakePeer& operator=(FakePeer&&) = delete;

  Result<std::unique_ptr<net::Stream>> connect(const Deadline&) override {
    const std::lock_guard lock(mutex_);
    const auto number = static_cast<unsigned>(forward_.size());
    forward_.push_back(std::make_shared<Tap>());
    backward_.push_back(std::make_shared<Tap>());
    const LinkScript script =
        FVMM_TRY(options_.link ? options_.link(number) : LinkScript{}, "connect to the fake peer");
    auto [ours, theirs] = net::PipeStream::make(script.forward, script.backward);
    threads_.emplace_back([this, stream = std::make_unique<TappedStream>(
                                     std::move(theirs), backward_.back())]() mutable { serve(std::move(stream)); });
    return std::unique_ptr<net::Stream>(std::make_unique<TappedStream>(std::move(ours), forward_.back()));
  }

  /// Waits for every connection's end. The source must have let go of its own ends.
  void join() {
    for (;;) {
      std::list<std::thread> threads;
      {
        const std::lock_guard lock(mutex_);
        threads.swap(threads_);
      }
      if (threads.empty()) return;
      for (std::thread& thread : threads) thread.join();
    }
  }
  /// From now on connections can be made again.
  void heal() {
    const std::lock_guard lock(mutex_);
    options_.link = nullptr;
    options_.intercept = nullptr;
  }

  // After join(), except session().
  [[nodiscard]] std::shared_ptr<migration::DestinationSession> session() {
    const std::lock_guard lock(mutex_);
    return session_;
  }
  [[nodiscard]] migration::Guest* guest() { return guest_.get(); }
  [[nodiscard]] std::unique_ptr<migration::Guest> take_guest() { return std::move(guest_); }
  [[nodiscard]] const std::optional<Error>& error() const { return error_; }
  [[nodiscard]] bool killed() const { return killed_; }
  [[nodiscard]] const FakeDisk& disk() const { return *options_.disk; }
  [[nodiscard]] const Tap& forward(unsigned number) const { return *forward_.at(number); }
  [[nodiscard]] const Tap& backward(unsigned number) const { return *backward_.at(number); }
  [[nodiscard]] std::size_t connections() const { return forward_.size(); }

 private:
  void serve(std::unique_ptr<net::Stream> stream) {
    v1::PeerHello hello;
    const Deadline wait = Deadline::after(std::chrono::seconds(20));
    if (!net::receive_message(*stream, net::FrameType::kHello, hello, wait)) return;
    std::function<bool(net::Stream&, const v1::PeerHello&)> intercept;
    {
      const std::lock_guard lock(mutex_);
      intercept = options_.intercept;
    }
    if (intercept && intercept(*stream, hello)) return;
    switch (hello.purpose()) {
      case v1::MIGRATE:
        return migrate(std::move(stream), hello);
      case v1::DATA:
        if (const auto session = this->session(); session && session->id().raw() == hello.session()) {
          (void)session->add_connection({hello.index(), std::move(stream)});
        }
        return;
      case v1::QUERY_SESSION: {
        v1::PeerMessage message;
        message.set_kind(v1::PEER_ANSWER);
        *message.mutable_answer() = answer(hello.session());
        (void)net::send_message(*stream, net::FrameType::kControl, message, wait);
        return;
      }
      default:
        return;
    }
  }

  void migrate(std::unique_ptr<net::Stream> stream, const v1::PeerHello& hello) {
    migration::DestinationSession::Environment environment;
    environment.make_guest = options_.make_guest;
    environment.journal = &journal_;
    environment.on_step = options_.on_step;
    environment.boot_id = "peer-boot";
    environment.waits = options_.waits;
    auto session = std::make_shared<migration::DestinationSession>(hello, std::move(stream), std::move(environment));
    {
      const std::lock_guard lock(mutex_);
      session_ = session;
    }
    try {
      auto guest = session->run();
      const std::lock_guard lock(mutex_);
      if (guest) guest_ = std::move(*guest);
      if (!guest) error_ = guest.error();
    } catch (const Killed&) {
      const std::lock_guard lock(mutex_);
      session_.reset();  // with it go the replica and the connections
      killed_ = true;
    }
  }

  /// The worker's word; without a worker, what the disk says of it.
  v1::SessionAnswer answer(const std::string& id) {
    if (const auto session = this->session(); session && session->id().raw() == id) return session->answer();
    v1::SessionAnswer answer;
    answer.set_outcome("unknown");
    const auto record = options_.disk->record();
    if (record && record->session() == id && record->outcome() == v1::OUTCOME_STARTED) answer.set_outcome("started");
    if (record && record->session() == id && record->outcome() == v1::OUTCOME_REFUSED) answer.set_outcome("refused");
    return answer;
  }

  Options options_;
  FakeJournal journal_;
  std::mutex mutex_;
  std::list<std::thread> threads_;  // mutex_, as all below
  std::vector<std::shared_ptr<Tap>> forward_;
  std::vector<std::shared_ptr<Tap>> backward_;
  std::shared_ptr<migration::DestinationSession> session_;
  std::unique_ptr<migration::Guest> guest_;
  std::optional<Error> error_;
  bool killed_ = false;
};

}  // namespace fvmm::testing
