// Where a worker's guest rests between commands. A command takes the guest out, works on it, and puts it back: nobody
// else can touch it meanwhile, because nobody else has it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/result.h"
#include "migration/machine.h"

namespace fvmm::daemon {

/// Thread: any.
class GuestSlot {
 public:
  /// The guest in a command's hands; goes back at the end of the scope unless kept.
  class Held {
   public:
    Held(GuestSlot& slot, std::unique_ptr<migration::Guest> guest) : slot_(&slot), guest_(std::move(guest)) {}
    ~Held() {
      if (slot_ != nullptr) slot_->put(std::move(guest_));
    }
    Held(Held&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)), guest_(std::move(other.guest_)) {}
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    Held& operator=(Held&&) = delete;
    migration::Guest* operator->() { return guest_.get(); }
    migration::Guest& operator*() { return *guest_; }
    [[nodiscard]] bool empty() const { return !guest_; }
    void fill(std::unique_ptr<migration::Guest> guest) { guest_ = std::move(guest); }

   private:
    GuestSlot* slot_;
    std::unique_ptr<migration::Guest> guest_;
  };

  /// How long a command has the guest: others wait for a brief one, and are told of a long one.
  enum class Stay { kLong, kBrief };

  /// Takes what is there, which may be nothing yet. kFailedPrecondition names what is under way.
  Result<Held> take(std::string what, Stay stay = Stay::kLong) {
    std::unique_lock lock(mutex_);
    ++waiting_;
    back_.wait_for(lock, kBriefMax, [this] { return under_way_.empty() || stay_ == Stay::kLong; });
    --waiting_;
    if (!under_way_.empty()) return Error(Errc::kFailedPrecondition, "the VM is busy: " + under_way_ + " is under way");
    under_way_ = std::move(what);
    stay_ = stay;
    return Held(*this, std::move(guest_));
  }

  /// The guest if it rests here just now: for a look at it, which is no reason to wait, nor for others to hurry. Others
  /// wait for the look's end.
  std::optional<Held> take_if_at_rest(std::string what) {
    const std::lock_guard lock(mutex_);
    if (!under_way_.empty()) return std::nullopt;
    under_way_ = std::move(what);
    stay_ = Stay::kBrief;
    return Held(*this, std::move(guest_));
  }

  /// Whether a command waits for a brief one to end.
  [[nodiscard]] bool wanted() const { return waiting_ > 0; }

 private:
  void put(std::unique_ptr<migration::Guest> guest) {
    const std::lock_guard lock(mutex_);
    guest_ = std::move(guest);
    under_way_.clear();
    back_.notify_all();
  }

  static constexpr std::chrono::seconds kBriefMax{2};
  std::atomic<int> waiting_{0};

  std::mutex mutex_;
  std::condition_variable back_;
  std::unique_ptr<migration::Guest> guest_;  // mutex_
  std::string under_way_;                    // mutex_; empty: the guest rests here
  Stay stay_ = Stay::kLong;                  // mutex_; of what is under way
};

}  // namespace fvmm::daemon
