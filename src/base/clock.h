// Time as a parameter: real in production, stepped by a seed in simulation.
#pragma once

#include <chrono>
#include <cstdint>

namespace fvmm {

using SteadyTime = std::chrono::steady_clock::time_point;

/// Source of time. Thread: any.
class Clock {
 public:
  Clock() = default;
  virtual ~Clock() = default;
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;
  Clock(Clock&&) = delete;
  Clock& operator=(Clock&&) = delete;

  [[nodiscard]] virtual SteadyTime now() const = 0;
  [[nodiscard]] virtual std::int64_t realtime_ns() const = 0;  // CLOCK_REALTIME, ns since 1970
};

/// The machine's clocks.
const Clock& system_clock();

/// When a wait must end. Every wait has one.
class Deadline {
 public:
  explicit Deadline(SteadyTime at) : at_(at) {}
  static Deadline after(std::chrono::microseconds wait) { return Deadline(std::chrono::steady_clock::now() + wait); }
  [[nodiscard]] SteadyTime at() const { return at_; }
  [[nodiscard]] bool passed() const { return std::chrono::steady_clock::now() >= at_; }
  [[nodiscard]] std::chrono::nanoseconds left() const {  // never negative
    const auto rest = at_ - std::chrono::steady_clock::now();
    return rest.count() > 0 ? rest : std::chrono::nanoseconds(0);
  }
  /// The earlier of this and `wait` from now.
  [[nodiscard]] Deadline sooner(std::chrono::microseconds wait) const {
    const Deadline other = after(wait);
    return other.at_ < at_ ? other : *this;
  }

 private:
  SteadyTime at_;
};

inline double to_ms(std::chrono::nanoseconds d) {
  return static_cast<double>(d.count()) / 1e6;
}

}  // namespace fvmm
