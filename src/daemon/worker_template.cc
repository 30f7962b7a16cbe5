// Worker: a template of its guest, by one of the engines.
//
//   stop   pause ─► state, all pages ─► seal ─► the VM is mapped from its template ─► resume
//   chase  copy what differs from the VM's template while it runs ─► short pause ─► resume ─► seal; the VM stays mapped
//          as it is, and counts its delta from the new template on
//   cow    the same, but the instant is a pause at the start: pages are write-protected, and captured before their
//   first
//          later write; anonymous memory and tmpfs only
#include "daemon/worker_template.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/pause_guard.h"
#include "base/scope_exit.h"
#include "daemon/template_service.h"
#include "daemon/worker_process.h"
#include "memory/instant_copy.h"
#include "memory/seal_pages.h"
#include "memory/write_protect.h"
#include "migration/capture.h"
#include "migration/cow.h"
#include "migration/generation_line.h"
#include "migration/staging.h"
#include "migration/steps.h"
#include "migration/template_ref.h"

namespace fvmm::daemon {
namespace {

struct Engine {
  std::string name;
  std::string why;
};

Result<Engine> choose_engine(const std::string& wanted) {
  if (wanted == "stop" || wanted == "chase" || wanted == "cow") return Engine{wanted, "asked for"};
  if (wanted.empty() || wanted == "auto") {
    return Engine{"chase", "works on every mapping, and no write of the guest ever waits"};
  }
  return Error(Errc::kInvalidArgument, "template engine \"" + wanted + "\"; there are auto, cow, chase and stop");
}

/// One template of one guest, until it is sealed. Owner: the command's thread, with the guest in hand.
class TemplateOfGuest {
 public:
  TemplateOfGuest(migration::Guest& guest, const v1::WorkerTemplateRequest& request, const migration::StepHook& on_step)
      : guest_(guest), request_(request), on_step_(on_step) {}

  Result<v1::TemplateInfo> stop() {
    const auto began = std::chrono::steady_clock::now();
    memory::TemplateInfo info;
    {
      const auto paused = FVMM_TRY(PauseGuard<migration::Machine>::take(*guest_.machine));
      info = FVMM_TRY(write_whole());
      FVMM_TRY(rebase(info));
    }
    answer_.set_pause_ms(to_ms(std::chrono::steady_clock::now() - began));
    return answer(info);
  }

  /// Engines chase and cow.
  Result<v1::TemplateInfo> running(const std::string& engine) {
    FVMM_TRY(guest_.machine->dirty().harvest());
    auto since = guest_.machine->dirty().add_reader();
    since->put_back(guest_.since_base->pending());
    auto store = FVMM_TRY(memory::TemplateStore::open(request_.store_directory()));
    memory::TemplateWriter writer = FVMM_TRY(begin_captured(store, since->pending().count()));  // room for it, first
    const auto staged = FVMM_TRY(stage(writer));
    const migration::Capture taken =
        FVMM_TRY(engine == "cow" ? cow(*since, *staged) : migration::chase(*guest_.machine, *since, *staged));
    answer_.set_pause_ms(to_ms(taken.pause));
    answer_.set_rounds(taken.rounds);
    answer_.set_pause_pages(taken.pause_pages);
    const memory::TemplateInfo info = FVMM_TRY(write_captured(writer, taken, *staged));
    // From the instant on `since` has collected: the delta of the new template. Until here the old one stood.
    FVMM_TRY(adopt(info));
    guest_.since_base = std::move(since);
    return answer(info);
  }

 private:
  // The protection is made for this one capture: without it no write ever waits.
  Result<migration::Capture> cow(memory::DirtyTracker::Reader& since, migration::PageSink& sink) {
    auto protect = FVMM_TRY(memory::WriteProtect::create(guest_.machine->memory()), "engine cow");
    const auto copy = FVMM_TRY(memory::InstantCopy::create(std::move(protect)), "engine cow");
    return migration::cow(*guest_.machine, since, sink, *copy);
  }

  Result<memory::TemplateWriter> begin_whole(memory::TemplateStore& store) {
    return store.begin({.id = Id{},
                        .name = request_.name(),
                        .generation = 1,
                        .memory_bytes = guest_.machine->memory().layout().ram_bytes(),
                        .config = guest_.config});
  }

  // The vCPUs stand still from here to the rebase.
  Result<memory::TemplateInfo> write_whole() {
    auto store = FVMM_TRY(memory::TemplateStore::open(request_.store_directory()));
    memory::GuestMemory& ram = guest_.machine->memory();
    const v1::MachineState state = FVMM_TRY(guest_.machine->save_state());
    FVMM_TRY(guest_.machine->dirty().harvest());
    memory::TemplateWriter writer = FVMM_TRY(begin_whole(store));
    memory::Bitmap pages = guest_.since_base->pending();
    if (!guest_.base.id().empty()) pages.set_all();  // a base generation is whole: what the old base holds goes in, too
    FVMM_TRY(guest_.machine->cut_disks());
    FVMM_TRY(add_disks(writer));
    return memory::seal_pages(writer, pages, ram, state);
  }

  // On the zero template a base, else a delta over what the VM runs on.
  Result<memory::TemplateWriter> begin_captured(memory::TemplateStore& store, std::uint64_t pages) {
    if (guest_.base.id().empty()) return begin_whole(store);
    return store.begin_delta({.parent = "",
                              .parent_digest = FVMM_TRY(Id::from_bytes(guest_.base.digest()), "the VM's template"),
                              .id = Id{},
                              .name = request_.name(),
                              .generation = guest_.base.generation() + 1,
                              .config = guest_.config,
                              .pages_expected = pages});
  }

  // Pages of a base have their place in its memory file from the beginning and are written once; those of a delta lie
  // one after another in the end, and nobody knows yet which they will be.
  Result<std::unique_ptr<migration::StagedPages>> stage(const memory::TemplateWriter& writer) const {
    const std::uint64_t ram_bytes = guest_.machine->memory().layout().ram_bytes();
    if (writer.capture_file() >= 0) return migration::StagedPages::over(writer.capture_file(), ram_bytes);
    return migration::StagedPages::create(request_.store_directory(), ram_bytes);
  }

  Result<memory::TemplateInfo> write_captured(memory::TemplateWriter& writer, const migration::Capture& taken,
                                              migration::StagedPages& staged) {
    FVMM_TRY(staged.settle(), "captured pages");
    if (on_step_) FVMM_TRY(on_step_("seal"));
    FVMM_TRY(guest_.machine->fenced());
    FVMM_TRY(add_disks(writer));
    if (writer.capture_file() < 0) return memory::seal_pages(writer, taken.pages, staged, taken.state);
    for (const memory::PageRange& range : taken.pages.ranges(memory::kTemplateChunkPages)) {
      FVMM_TRY(writer.add_captured(range.first, staged.pages(range)));
    }
    FVMM_TRY(writer.set_machine_state(taken.state));
    return writer.seal();
  }

  // What the disks held at the same instant.
  Status add_disks(memory::TemplateWriter& writer) {
    for (const memory::DiskCut& cut : FVMM_TRY(guest_.machine->seal_disk_cut())) FVMM_TRY(writer.add_disk(cut));
    return {};
  }

  Status adopt(const memory::TemplateInfo& info) {
    auto pin = FVMM_TRY(memory::OpenTemplate::open(info.directory));
    guest_.base = migration::to_ref(info);
    guest_.pin = std::move(pin);  // of a delta: its whole chain, so also what the VM is mapped from
    return {};
  }

  // The paused VM goes on as a private mapping of its own template: its delta is empty now.
  Status rebase(const memory::TemplateInfo& info) {
    auto pin = FVMM_TRY(memory::OpenTemplate::open(info.directory));
    FVMM_TRY(guest_.machine->memory().map_template(pin.image()));
    FVMM_TRY(guest_.machine->dirty().harvest());  // nothing can have been written: clears what the mapping change left
    guest_.since_base->reset();
    guest_.base = migration::to_ref(info);
    guest_.pin = std::move(pin);
    return {};
  }

  v1::TemplateInfo answer(const memory::TemplateInfo& info) {
    answer_.MergeFrom(to_proto(info));
    return answer_;
  }

  migration::Guest& guest_;
  const v1::WorkerTemplateRequest& request_;
  const migration::StepHook& on_step_;
  v1::TemplateInfo answer_;
};

}  // namespace

Result<v1::TemplateInfo> make_template(migration::Guest& guest, const std::string& engine,
                                       const v1::WorkerTemplateRequest& request, const migration::StepHook& on_step) {
  FVMM_TRY(guest.machine->prepare_disk_cut());
  const ScopeExit drop([&guest] { guest.machine->drop_disk_cut(); });
  TemplateOfGuest work(guest, request, on_step);
  return engine == "stop" ? work.stop() : work.running(engine);
}

Result<v1::TemplateInfo> Worker::create_template(const v1::WorkerTemplateRequest& request) {
  const Engine engine = FVMM_TRY(choose_engine(request.engine()));
  if (!request.test_hook().empty() && !options_.test_hooks) {
    return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  }
  const auto on_step = FVMM_TRY(migration::parse_step_hook(request.test_hook()));
  const auto began = std::chrono::steady_clock::now();
  GuestSlot::Held held = FVMM_TRY(slot_.take("template create"));
  if (held.empty()) return no_guest();
  FVMM_TRY(check_usable(board_.get()));
  const auto scan = FVMM_TRY(migration::find_delta(*held->machine));
  v1::TemplateInfo answer = FVMM_TRY(make_template(*held, engine.name, request, on_step));
  FVMM_TRY(held->machine->fenced());  // its pause did not end
  show(*held);
  answer.set_scan_ms(to_ms(scan));
  answer.set_engine(engine.name);
  answer.set_why_engine(engine.why);
  answer.set_duration_ms(to_ms(std::chrono::steady_clock::now() - began));
  return answer;
}

}  // namespace fvmm::daemon
