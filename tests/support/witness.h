// What guest memory was at the instant of a capture.
#pragma once

#include "memory/digest.h"
#include "migration/machine.h"

namespace fvmm::testing {

/// A machine that hashes its memory whenever its state is saved: in the pause, after KVM's own last write.
class Witness final : public migration::Machine {
 public:
  explicit Witness(migration::Machine& of) : of_(of) {}
  memory::GuestMemory& memory() override { return of_.memory(); }
  memory::DirtyTracker& dirty() override { return of_.dirty(); }
  [[nodiscard]] bool paused() const override { return of_.paused(); }
  Status pause() override { return of_.pause(); }
  Status resume() override { return of_.resume(); }
  Status fence(const std::string& why) override { return of_.fence(why); }
  [[nodiscard]] Status fenced() const override { return of_.fenced(); }
  void throttle(unsigned percent) override { of_.throttle(percent); }
  Status load_state(const v1::MachineState& state) override { return of_.load_state(state); }
  [[nodiscard]] v1::CpuIdentity cpu() const override { return of_.cpu(); }
  Result<v1::MachineState> save_state() override {
    auto state = FVMM_TRY(of_.save_state());
    instant = memory::hash_bytes(of_.memory().pages({0, of_.memory().layout().pages()}));
    return state;
  }
  memory::Digest instant;

 private:
  migration::Machine& of_;
};

}  // namespace fvmm::testing
