// SimWorld: the promises, at every moment and at the end. Part of support/sim_world.h.
#pragma once

#include "support/sim_world.h"

namespace fvmm::testing {

inline void SimWorld::expect(bool promise, const char* what) {
  if (!promise && violation_.empty()) {
    violation_ = what;
    trace(0, what);
  }
}

/// Never two; the right moves only by COMMIT; a refusal that reaches the source is durable.
inline void SimWorld::check_moment() {
  expect(!(source_.runs() && destination_.runs()), "two runners");
  if (refusal_kept_) expect(refusal_is_durable(), "a refusal that was told is no longer on the disk");
  if (!source_.source) return;
  const S now = source_.source->state();
  committed_ |= now == S::kCommitting || now == S::kUnknown || now == S::kDone;
  if (now == S::kAborted && (seen_ == S::kCommitting || seen_ == S::kUnknown)) told(SimWord::kRefused);
  if (now == S::kCommitting || now == S::kUnknown || now == S::kDone) {
    expect(!source_.runs(), "the source runs although it said COMMIT");
  }
  seen_ = now;
}

/// The moment at which a machine's guest begins to run.
inline void SimWorld::on_start(SimHost& host, SimMachine& machine) {
  if (host.number != 2) return;
  check_moment();
  expect(committed_, "a replica started without COMMIT");
  expect(!told_refused_, "a replica started after its refusal was told");
  dest_ran_ = true;
  if (source_.machine == nullptr) return;
  expect(!source_.machine->running(), "the source runs while the destination starts");
  expect(machine.registers() == source_.machine->registers(), "registers differ at the hand-over");
  const auto ours = source_.machine->memory().pages({0, kSimPages});
  const auto theirs = machine.memory().pages({0, kSimPages});
  expect(std::memcmp(ours.data(), theirs.data(), ours.size()) == 0, "memory differs at the hand-over");
}

inline bool SimWorld::refusal_is_durable() const {
  const auto& durable = destination_.disk.durable();
  return durable ? durable->outcome() == v1::OUTCOME_REFUSED : destination_.disk.refused_unknown(session_);
}

/// The destination has given its word, by an answer or by REFUSED_DURABLY.
inline void SimWorld::told(SimWord word) {
  if (word == SimWord::kStarted) expect(dest_ran_, "\"started\" was said of a guest that never ran");
  trace(2, word == SimWord::kRefused ? "told: refused" : "told: started, or unknown");
  if (word != SimWord::kRefused) return;
  told_refused_ = true;
  refusal_kept_ |= refusal_is_durable();
  const bool kept = refusal_is_durable() || (!destination_.disk.durable() && !committed_);
  expect(kept, "a refusal was told that is not durable");
  expect(!dest_ran_, "\"refused\" was said of a guest that ran");
}

/// When everybody has stopped: what the source reports is so, and nothing is left over.
inline void SimWorld::check_end() {
  healed_ = true;  // and the guest holds still
  const bool source_lives = source_.machine != nullptr;
  if (result_ == "completed") {
    expect(dest_ran_, "completed, and never ran there");
    expect(!source_lives || !source_.machine->running(), "completed, and runs here");
  }
  if (result_ == "aborted" && source_lives) expect(source_.machine->running(), "aborted, and does not run here");
  if (result_ == "unknown" && source_lives) {
    expect(!source_.machine->running(), "unknown, and runs here");
    expect(source_.open(), "unknown, and the record does not say so");
    expect(may_be_unknown(), "unknown, although the peer could be asked");
  }
  if (result_ == "killed") expect(source_.deaths > 0, "the session ended without a result");
  if (destination_.destination && !destination_.guest) {
    expect(destination_.machine == nullptr, "a replica that nobody owns");
  }
  if (!source_lives) source_.guest.reset();
  if (destination_.machine == nullptr) destination_.guest.reset();
  const int machines = (source_.guest ? 1 : 0) + (destination_.guest ? 1 : 0);
  expect(SimMachine::living == machines, "a replica is left over");
  if (destination_.guest && dest_ran_) {  // what it differs in from the template is marked: the next migration needs it
    auto& guest = *destination_.guest;
    const std::byte* const original = SimTemplate::of(plan_.on_template).bytes;
    if (guest.machine->dirty().harvest() && seed_ % 4 == 0) {
      for (memory::PageIndex page = 0; page < kSimPagesWritten; ++page) {
        const auto bytes = guest.machine->memory().pages({page, 1});
        const bool same = std::memcmp(bytes.data(), original + page * kPageBytes, kPageBytes) == 0;
        expect(same || guest.since_base->pending().test(page), "a page differs from the template without a mark");
      }
    }
  }
}

/// docs/handover.md: the peer cannot be reached, or its worker died, or its disk takes no record.
inline bool SimWorld::may_be_unknown() const {
  bool reachable = plan_.unreachable_from == ~0U;
  for (std::size_t number = plan_.connections + 1; number < plan_.links.size(); ++number) {  // those that ask
    for (const SimScript& way : plan_.links.at(number)) {
      reachable = reachable && way.cut_at == SimScript::kNever && way.stall_at == SimScript::kNever &&
                  way.late_message == SimScript::kNever;
    }
  }
  return !reachable || destination_.deaths > 0 || plan_.full_from[2] != 0 || plan_.start_takes > 0;
}

/// Asks the other side about the session, as `migrate resolve` does.
inline SimWord SimWorld::ask(SimHost& host) {
  if (host.number == 2) return source_.disk.record() ? source_.word() : SimWord::kRefused;
  const auto answer = migration::ask_session(*this, *Id::from_bytes(session_), std::string(16, 'v'),
                                             Deadline::after(std::chrono::seconds(20)));
  return answer ? sim_word(*answer) : SimWord::kNothing;
}

/// True when nothing is open on this host (any more).
inline bool SimWorld::settle(SimHost& host) {
  if (!host.open()) return true;
  if (host.number == 1 && host.machine != nullptr && host.machine->running())
    return true;  // only its last record failed
  if (host.number == 2 && host.guest && host.machine != nullptr) return true;
  if (host.number == 1 && host.left) {  // its living worker knows
    close_departure();
    if (!host.open()) return true;
  }
  return host.resolve(ask(host));
}

/// Neither knows: an operator looks at both, and decides for the side that still has the memory.
inline void SimWorld::force() {
  const bool nobody_knows = destination_.deaths > 0 && (source_.deaths > 0 || result_ == "unknown");
  expect(nobody_knows, "unknown on both sides, although a living worker knows");
  expect(!source_.runs() || !destination_.runs(), "two runners");
  if (!destination_.runs()) dest_ran_ = false;  // and what ran there is gone: the operator may say refused
  if (source_.open() && source_.machine != nullptr) {
    source_.resolve(SimWord::kRefused);
  } else {
    destination_.resolve(SimWord::kRefused);
  }
}

/// The network is whole, the disks are empty, the hosts are up: everything open gets settled, and one runs.
inline void SimWorld::way_out() {
  source_.disk.full_from = destination_.disk.full_from = 0;
  const auto settle_both = [this] {
    const bool source_first = seed_ % 2 == 0;  // either side may ask while the other is still open
    const bool first = settle(source_first ? source_ : destination_);
    const bool second = settle(source_first ? destination_ : source_);
    join();
    return first && second;
  };
  if (!settle_both() && !settle_both()) {
    force();
    expect(settle_both() || settle_both(), "an open session that nothing settles");
  }
  check_moment();
  expect(source_.runs() || destination_.runs(), "nobody runs it, and nobody can");
  if (!told_refused_ || !violation_.empty()) return;
  die(destination_, true, 0);  // a refusal that was told stands, also after the power was lost
  join();
  expect(answer(session_).outcome() == "refused", "a refusal that was told was taken back");
}

inline void SimWorld::run() {
  spawn(1, [this] { migrate(); });
  for (int number = 1; number <= 2; ++number) {
    if (plan_.cancel_at.at(number) == kSimNever) continue;
    spawn(0, [this, number] {
      std::this_thread::sleep_for(std::chrono::nanoseconds(plan_.cancel_at.at(number)));
      const auto source = source_.source;
      const auto destination = destination_.destination;
      if (number == 1 && source) source->cancel();
      if (number == 2 && destination) destination->cancel();
    });
  }
  for (const SimTime at : plan_.questions) {
    spawn(0, [this, at] {
      std::this_thread::sleep_for(std::chrono::nanoseconds(at));
      if (!session_.empty()) (void)ask(source_);
    });
  }
  join();
  check_end();
  way_out();
  source_.source.reset();
  destination_.destination.reset();
}

}  // namespace fvmm::testing
