// The programs of a host, as a vsock device meets them: socket pairs instead of paths.
#pragma once

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "devices/vsock_host.h"
#include "support/vsock_program.h"

namespace fvmm::testing {

/// The test's end. Thread: any.
class Programs {
 public:
  /// A program connects to the device's socket and sends this.
  Program call(std::string_view text) {
    auto [ours, theirs] = pair();
    Program program(std::move(ours));
    program.send(text);
    const std::lock_guard lock(mutex_);
    callers_.push_back(std::move(theirs));
    const std::uint64_t one = 1;
    FVMM_CHECK(::write(event_.get(), &one, sizeof one) == sizeof one, "an eventfd takes a 1");
    return program;
  }
  /// From now on a program listens behind this port.
  void listen(std::uint32_t port) {
    const std::lock_guard lock(mutex_);
    reached_[port];
  }
  /// The next connection that the guest has made to it; one without a socket when none comes.
  Program accept(std::uint32_t port) {
    std::unique_lock lock(mutex_);
    const auto there = [&] { return !reached_[port].empty(); };
    if (!changed_.wait_until(lock, Deadline::after(kProgramWait).at(), there)) return {};
    Program program(std::move(reached_[port].front()));
    reached_[port].pop_front();
    return program;
  }
  /// A program that goes on for as long as this does.
  void keep(Program program) {
    const std::lock_guard lock(mutex_);
    kept_.push_back(std::move(program));
  }
  /// What a device connects to says this first.
  void greet(std::string text) {
    const std::lock_guard lock(mutex_);
    greeting_ = std::move(text);
  }
  void fail_accept(bool fails) {
    const std::lock_guard lock(mutex_);
    accept_fails_ = fails;
  }
  [[nodiscard]] bool listening() const {
    const std::lock_guard lock(mutex_);
    return listening_;
  }

 private:
  friend class FakeVsockHost;
  static std::pair<UniqueFd, UniqueFd> pair() {
    std::array<int, 2> ends{};
    FVMM_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0, "a socket pair of a test");
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  UniqueFd event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)};  // as often as programs wait
  std::deque<UniqueFd> callers_;
  std::map<std::uint32_t, std::deque<UniqueFd>> reached_;
  std::deque<Program> kept_;
  std::string greeting_;
  bool listening_ = false;
  bool accept_fails_ = false;
};

/// The device's end.
class FakeVsockHost final : public devices::VsockHost {
 public:
  explicit FakeVsockHost(std::shared_ptr<Programs> programs) : programs_(std::move(programs)) {}

  [[nodiscard]] std::string path() const override { return "/nowhere/vsock"; }
  Status listen() override { return set_listening(true); }
  [[nodiscard]] int fd() const override { return programs_->listening() ? programs_->event_.get() : -1; }
  Result<UniqueFd> accept() override {
    const std::lock_guard lock(programs_->mutex_);
    if (programs_->accept_fails_) return Error(Errc::kResourceExhausted, "accept");
    if (programs_->callers_.empty()) return UniqueFd();
    std::uint64_t one = 0;
    FVMM_CHECK(::read(programs_->event_.get(), &one, sizeof one) == sizeof one, "as often as programs wait");
    UniqueFd caller = std::move(programs_->callers_.front());
    programs_->callers_.pop_front();
    return caller;
  }
  Result<UniqueFd> connect(std::uint32_t port) override {
    const std::lock_guard lock(programs_->mutex_);
    const auto found = programs_->reached_.find(port);
    if (found == programs_->reached_.end()) return Error(Errc::kUnavailable, "nobody listens");
    auto [ours, theirs] = Programs::pair();
    const std::string& greeting = programs_->greeting_;
    (void)!::write(ours.get(), greeting.data(), greeting.size());
    found->second.push_back(std::move(ours));
    programs_->changed_.notify_all();
    return std::move(theirs);
  }
  void close() override { (void)set_listening(false); }

 private:
  Status set_listening(bool on) {
    const std::lock_guard lock(programs_->mutex_);
    programs_->listening_ = on;
    return {};
  }
  const std::shared_ptr<Programs> programs_;
};

/// Stands still until it is moved. Thread: any.
class SteppedClock final : public Clock {
 public:
  [[nodiscard]] SteadyTime now() const override { return SteadyTime(std::chrono::nanoseconds(now_ns_.load())); }
  [[nodiscard]] std::int64_t realtime_ns() const override { return now_ns_.load(); }
  void step(std::chrono::nanoseconds by) { now_ns_ += by.count(); }

 private:
  std::atomic<std::int64_t> now_ns_{std::chrono::nanoseconds(std::chrono::hours(1)).count()};
};

}  // namespace fvmm::testing
