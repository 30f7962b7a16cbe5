// Session records in memory, on a disk that outlives whoever writes it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "migration/record.h"

namespace fvmm::testing {

/// What a host remembers after its processes have died. Thread: any.
class FakeDisk {
 public:
  void put(const v1::SessionRecord& record) {
    const std::lock_guard lock(mutex_);
    history_.push_back(record);
  }
  [[nodiscard]] std::optional<v1::SessionRecord> record() const {
    const std::lock_guard lock(mutex_);
    return history_.empty() ? std::nullopt : std::optional(history_.back());
  }
  /// Every record ever made durable, oldest first.
  [[nodiscard]] std::vector<v1::SessionRecord> history() const {
    const std::lock_guard lock(mutex_);
    return history_;
  }
  [[nodiscard]] std::optional<v1::SessionOutcome> outcome() const {
    const auto last = record();
    return last ? std::optional(last->outcome()) : std::nullopt;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<v1::SessionRecord> history_;  // mutex_
};

/// Writes to a FakeDisk; the writes with the given numbers (from 0) fail and change nothing. Thread: one at a time.
class FakeJournal final : public migration::Journal {
 public:
  explicit FakeJournal(std::shared_ptr<FakeDisk> disk, std::set<int> failing = {})
      : disk_(std::move(disk)), failing_(std::move(failing)) {}
  Status write(const v1::SessionRecord& record) override {
    if (failing_.contains(writes_++)) return Error(Errc::kIo, "the disk is full of holes", 5);
    disk_->put(record);
    return {};
  }
  [[nodiscard]] int writes() const { return writes_; }

 private:
  std::shared_ptr<FakeDisk> disk_;
  std::set<int> failing_;
  int writes_ = 0;
};

}  // namespace fvmm::testing
