// Worker: pause, resume, info, watch, templates, and the test hook.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/scope_exit.h"
#include "daemon/worker_process.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::seconds kWatchTurn{1};        // how soon a watch notices that its client has gone
constexpr std::uint64_t kTemplateChunkPages = 1024;  // 4 MiB a call

Error no_guest() {
  return {Errc::kFailedPrecondition, "this worker has no VM yet"};
}

/// A guest that rests: not moved away, not unsettled, not stopped by itself.
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

/// Parks the vCPUs for a scope; a VM that was paused stays so.
class Paused {
 public:
  static Result<Paused> take(migration::Machine& machine) {
    const bool was_paused = machine.paused();
    FVMM_TRY(machine.pause());
    return Paused(machine, was_paused);
  }
  ~Paused() {
    if (machine_ == nullptr || was_paused_) return;
    const Status status = machine_->resume();
    if (!status) spdlog::error("resume: {}", status.error().message());
  }
  Paused(Paused&& other) noexcept : machine_(std::exchange(other.machine_, nullptr)), was_paused_(other.was_paused_) {}
  Paused(const Paused&) = delete;
  Paused& operator=(const Paused&) = delete;
  Paused& operator=(Paused&&) = delete;

 private:
  Paused(migration::Machine& machine, bool was_paused) : machine_(&machine), was_paused_(was_paused) {}
  migration::Machine* machine_;
  bool was_paused_;
};

}  // namespace

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

// Harvests when the guest is at rest; while a command has it, the last figures stand.
Result<v1::WorkerInfo> Worker::info() {
  v1::WorkerInfo now = board_.get();
  if (auto* serial = serial_.load()) now.set_serial_bytes(serial->total_bytes());
  auto held = slot_.take("info", GuestSlot::Stay::kBrief);
  if (!held || held->empty()) return now;
  FVMM_TRY((*held)->machine->dirty().harvest());
  const std::uint64_t delta = (*held)->since_base->pending().count();
  now.set_delta_pages(delta);
  return now;
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

Result<v1::TemplateInfo> Worker::create_template(const v1::WorkerTemplateRequest& request) {
  if (!request.engine().empty() && request.engine() != "auto" && request.engine() != "stop") {
    return Error(Errc::kUnimplemented, "template engine \"" + request.engine() + "\"; this version has stop");
  }
  const auto began = std::chrono::steady_clock::now();
  GuestSlot::Held held = FVMM_TRY(slot_.take("template create"));
  if (held.empty()) return no_guest();
  FVMM_TRY(check_usable(board_.get()));
  const auto paused_at = std::chrono::steady_clock::now();
  memory::TemplateInfo info;
  {
    const Paused paused = FVMM_TRY(Paused::take(*held->machine));
    info = FVMM_TRY(write_template(*held, request));
    FVMM_TRY(rebase(*held, info));
  }
  const auto resumed_at = std::chrono::steady_clock::now();
  show(*held);
  v1::TemplateInfo answer;
  *answer.mutable_ref() = held->base;
  answer.set_stored_bytes(info.stored_bytes);
  answer.set_pages(info.pages);
  answer.set_pins(info.pins);
  answer.set_created(info.created);
  *answer.mutable_config() = info.config;
  answer.set_pause_ms(to_ms(resumed_at - paused_at));
  answer.set_duration_ms(to_ms(resumed_at - began));
  return answer;
}

// Engine `stop`: the vCPUs stand still from here to the rebase.
Result<memory::TemplateInfo> Worker::write_template(migration::Guest& guest, const v1::WorkerTemplateRequest& request) {
  auto store = FVMM_TRY(memory::TemplateStore::open(request.store_directory()));
  memory::GuestMemory& ram = guest.machine->memory();
  const v1::MachineState state = FVMM_TRY(guest.machine->save_state());
  FVMM_TRY(guest.machine->dirty().harvest());
  memory::TemplateWriter writer = FVMM_TRY(store.begin({.id = Id{},
                                                        .name = request.name(),
                                                        .generation = 1,
                                                        .memory_bytes = ram.layout().ram_bytes(),
                                                        .config = guest.config}));
  memory::Bitmap pages = guest.since_base->pending();
  if (!guest.base.id().empty()) pages.set_all();  // a base generation is whole: what the old base holds goes in, too
  for (const memory::PageRange& range : pages.ranges(kTemplateChunkPages)) {
    FVMM_TRY(writer.add_pages(range.first, ram.pages(range)));
  }
  FVMM_TRY(writer.set_machine_state(state));
  return writer.seal();
}

// The paused VM goes on as a private mapping of its own template: its delta is empty now.
Status Worker::rebase(migration::Guest& guest, const memory::TemplateInfo& info) {
  auto pin = FVMM_TRY(memory::OpenTemplate::open(info.directory));
  FVMM_TRY(guest.machine->memory().map_private(pin.memory_file()));
  FVMM_TRY(guest.machine->dirty().harvest());  // nothing can have been written: clears what the mapping change left
  guest.since_base->reset();
  guest.base.set_id(info.id.raw());
  guest.base.set_name(info.name);
  guest.base.set_generation(info.generation);
  guest.base.set_digest(info.digest.raw());
  guest.base.set_memory_bytes(info.memory_bytes);
  guest.pin = std::move(pin);
  return {};
}

// Spoils memory on purpose, to prove that a guest's verifier sees it. Only with --test-hooks.
Status Worker::poke(const v1::PokeRequest& request) {
  if (!options_.test_hooks) return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  GuestSlot::Held held = FVMM_TRY(slot_.take("poke"));
  if (held.empty()) return no_guest();
  FVMM_TRY(check_usable(board_.get()));
  memory::GuestMemory& ram = held->machine->memory();
  const memory::PageIndex page = request.page();
  if (page >= ram.layout().pages()) {
    return Error(Errc::kOutOfRange, fmt::format("page {} of {}", page, ram.layout().pages()));
  }
  const Paused paused = FVMM_TRY(Paused::take(*held->machine));
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
      FVMM_TRY(ram.template_page(page, bytes));
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
