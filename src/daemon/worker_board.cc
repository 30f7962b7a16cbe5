#include "daemon/worker_board.h"

namespace fvmm::daemon {

void WorkerBoard::change(const std::function<void(v1::WorkerInfo&)>& edit) {
  {
    const std::lock_guard lock(mutex_);
    const bool moved = moved_;  // before this change
    const v1::WorkerInfo before = moved ? info_ : v1::WorkerInfo();
    edit(info_);
    if (moved) {
      info_.set_state(before.state());
      info_.set_moved_to(before.moved_to());
      info_.set_detail(before.detail());
    }
    ++version_;
  }
  changed_.notify_all();
}

void WorkerBoard::end_as_moved(const std::string& to, const std::string& detail) {
  change([&](v1::WorkerInfo& info) {
    info.set_state(v1::VM_MOVED);
    info.set_moved_to(to);
    info.set_detail(detail);
    moved_ = true;
  });
}

void WorkerBoard::set_state(v1::VmState state, const std::string& detail) {
  change([&](v1::WorkerInfo& info) {
    info.set_state(state);
    info.set_detail(detail);
  });
}

v1::WorkerInfo WorkerBoard::get() const {
  const std::lock_guard lock(mutex_);
  return info_;
}

v1::WorkerInfo WorkerBoard::wait(std::uint64_t& seen, const Deadline& deadline) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline.at(), [&] { return version_ != seen; });
  seen = version_;
  return info_;
}

}  // namespace fvmm::daemon
