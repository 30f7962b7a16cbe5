// Worker: pause, resume, info, watch, and the test hook.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/pause_guard.h"
#include "daemon/worker_process.h"
#include "vmm/net_config.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::seconds kWatchTurn{1};  // how soon a watch notices that its client has gone

// Harmless, and on no list of ours: asks for this process's personality.
Status forbidden_call() {
  constexpr unsigned long kAsk = 0xffffffff;
  (void)::syscall(SYS_personality, kAsk);
  return Error(Errc::kFailedPrecondition, "the system call was let through: this worker's seccomp filter is not on");
}

void describe_nets(const vmm::Vm& vm, v1::WorkerInfo& info) {
  for (std::size_t i = 0; i < vm.nets().size(); ++i) {
    const devices::VirtioNet& net = *vm.nets()[i];
    const devices::NetCounters counters = net.counters();
    v1::NetInfo& out = *info.add_nets();
    out.set_id(vmm::net_name(static_cast<int>(i)));
    out.set_mac(to_bytes(net.mac()));
    out.set_link_up(net.link_up());
    out.set_received_frames(counters.received_frames);
    out.set_received_bytes(counters.received_bytes);
    out.set_sent_frames(counters.sent_frames);
    out.set_sent_bytes(counters.sent_bytes);
    out.set_receive_dropped(counters.receive_dropped);
    out.set_send_dropped(counters.send_dropped);
    out.set_filtered(counters.filtered);
    out.set_announced(counters.announced);
  }
}

void describe_balloon(vmm::Vm& vm, v1::WorkerInfo& info) {
  const auto balloon = vm.look_at_balloon();
  if (!balloon) return;
  v1::BalloonInfo& out = *info.mutable_balloon();
  out.set_target_bytes(balloon->target_pages * kPageBytes);
  out.set_actual_bytes(balloon->actual_pages * kPageBytes);
  out.set_given_back_pages(balloon->given_back);
  out.set_not_given_back_pages(balloon->not_given_back);
  for (std::size_t tag = 0; tag < balloon->statistics.size(); ++tag) {
    const auto value = balloon->statistics.at(tag);
    if (!value) continue;
    v1::BalloonStatistic& one = *out.add_statistics();
    one.set_name(std::string(devices::balloon_stat_name(tag)));
    one.set_value(*value);
  }
}

void describe_vsock(const vmm::Vm& vm, v1::WorkerInfo& info) {
  if (vm.vsock() == nullptr) return;
  const devices::VsockCounters counters = vm.vsock()->counters();
  v1::VsockInfo& out = *info.mutable_vsock();
  out.set_path(vm.vsock()->path());
  out.set_cid(vm.vsock()->guest_cid());
  out.set_connections(static_cast<std::uint32_t>(counters.connections));
  out.set_opened(counters.opened);
  out.set_refused(counters.refused);
  out.set_received_bytes(counters.received_bytes);
  out.set_sent_bytes(counters.sent_bytes);
}

}  // namespace

Error no_guest() {
  return {Errc::kFailedPrecondition, "this worker has no VM yet"};
}

Status check_usable(const v1::WorkerInfo& info) {
  switch (info.state()) {
    case v1::VM_RUNNING:
    case v1::VM_PAUSED:
      return {};
    case v1::VM_UNSETTLED:
      return Error(Errc::kFailedPrecondition, "a hand-over without an answer; see fvmmctl migrate resolve");
    default:
      return Error(Errc::kFailedPrecondition,
                   "the VM is neither running nor paused: " + v1::VmState_Name(info.state()));
  }
}

Result<v1::WorkerInfo> Worker::resume() {
  GuestSlot::Held held = FVMM_TRY(slot_.take("resume"));
  if (held.empty()) return no_guest();
  FVMM_TRY(check_usable(board_.get()));
  board_.set_state(v1::VM_RUNNING, "");
  const Status status = held->machine->resume();
  if (!status) {
    board_.set_state(v1::VM_PAUSED, status.error().message());
    return Error(status.error());
  }
  return board_.get();
}

Result<v1::WorkerInfo> Worker::pause() {
  GuestSlot::Held held = FVMM_TRY(slot_.take("pause"));
  if (held.empty()) return no_guest();
  FVMM_TRY(check_usable(board_.get()));
  FVMM_TRY(held->machine->pause());
  board_.change([](v1::WorkerInfo& info) {
    if (info.state() == v1::VM_RUNNING) info.set_state(v1::VM_PAUSED);  // it may have stopped by itself meanwhile
  });
  return board_.get();
}

// With the guest in hand: nothing saves its devices meanwhile.
Result<v1::WorkerInfo> Worker::balloon(const v1::BalloonRequest& request) {
  {
    GuestSlot::Held held = FVMM_TRY(slot_.take("balloon", GuestSlot::Stay::kBrief));
    if (held.empty()) return no_guest();
    FVMM_TRY(check_usable(board_.get()));
    FVMM_TRY(vm_->set_balloon_target(request.target_bytes()));
  }
  return info();
}

// Harvests when the guest is at rest; while a command or a capture has it, the last figures stand.
Result<v1::WorkerInfo> Worker::info() {
  const Status counted = count_delta();
  v1::WorkerInfo now = board_.get();
  if (auto* serial = serial_.load()) {  // set last when the VM is dressed: the VM is there, too
    now.set_serial_bytes(serial->total_bytes());
    now.set_completed_instructions(vm_->completed_instructions());
    describe_nets(*vm_, now);
    describe_balloon(*vm_, now);
    describe_vsock(*vm_, now);
  }
  FVMM_TRY(counted);
  return now;
}

// Puts the size of the delta on the board, if nobody has the guest.
Status Worker::count_delta() {
  auto held = slot_.take_if_at_rest("info");
  if (!held || held->empty()) return {};
  const bool known = (*held)->machine->dirty().ready();  // else a look is no reason to find it
  if (known) FVMM_TRY((*held)->machine->dirty().harvest());
  const std::uint64_t pages = known ? (*held)->since_base->pending().count() : 0;
  const v1::WorkerInfo before = board_.get();
  if (before.delta_pages() == pages && before.delta_unknown() == !known) return {};  // nothing to wake watchers for
  board_.change([&](v1::WorkerInfo& info) {
    info.set_delta_pages(pages);
    info.set_delta_unknown(!known);
  });
  return {};
}

Result<v1::WorkerInfo> Worker::watch(control::Call& call) {
  std::uint64_t seen = 0;
  std::uint64_t sent = 0;
  for (;;) {
    const v1::WorkerInfo info = board_.wait(seen, Deadline::after(kWatchTurn));
    if (call.cancelled() || stopping_) return info;
    if (seen == sent) continue;
    sent = seen;
    FVMM_TRY(call.send(info));
  }
}

// Spoils memory on purpose, to prove that a guest's verifier sees it. Only with --test-hooks.
Status Worker::poke(const v1::PokeRequest& request) {
  if (!options_.test_hooks) return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  if (request.kind() == v1::FORBIDDEN_CALL) return forbidden_call();
  GuestSlot::Held held = FVMM_TRY(slot_.take("poke"));
  if (held.empty()) return no_guest();
  FVMM_TRY(check_usable(board_.get()));
  memory::GuestMemory& ram = held->machine->memory();
  const memory::PageIndex page = request.page();
  if (page >= ram.layout().pages()) {
    return Error(Errc::kOutOfRange, fmt::format("page {} of {}", page, ram.layout().pages()));
  }
  const auto paused = FVMM_TRY(PauseGuard<migration::Machine>::take(*held->machine));
  std::array<std::byte, kPageBytes> bytes{};
  const auto now = ram.pages({page, 1});
  std::copy(now.begin(), now.end(), bytes.begin());
  switch (request.kind()) {
    case v1::CAPTURE:
      captured_[page] = bytes;
      return {};
    case v1::FLIP:
      bytes[kPageBytes / 3] ^= std::byte{0xFF};
      break;
    case v1::DROP:
      // Of the template that it counts as a delta of, which may be a newer one than it is mapped from.
      bytes.fill(std::byte{0});
      if (held->pin) FVMM_TRY(held->pin->read_pages({page, 1}, bytes));
      break;
    case v1::REPLAY:
      if (!captured_.contains(page)) return Error(Errc::kFailedPrecondition, "capture the page first");
      bytes = captured_[page];
      break;
    default:
      return Error(Errc::kInvalidArgument, "unknown poke");
  }
  const auto target = ram.pages_for_load({page, 1});
  std::copy(bytes.begin(), bytes.end(), target.begin());
  ram.device_marks().set(page);
  return {};
}

}  // namespace fvmm::daemon
