// Worker: the way back. What has left is sealed here, what has come in is compared with what its source seals; the
// conversation is migration/way_back_talk.h.
#include "daemon/template_service.h"
#include "daemon/worker_process.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::milliseconds kBusyPause{20};  // between two looks at a guest that another command has

}  // namespace

Result<v1::TemplateInfo> Worker::seal_way_back(const v1::WorkerSealRequest& request) {
  GuestSlot::Held held = FVMM_TRY(slot_.take("seal the way back"));
  if (held.empty() || !departed_ || board_.get().state() != v1::VM_MOVED) {
    return Error(Errc::kFailedPrecondition, "no VM has left this worker on a template");
  }
  return to_proto(FVMM_TRY(migration::seal_way_back(*held, *departed_, request.store_directory())));
}

// In the background: until it has ended well the VM returns against its template.
void Worker::agree_on_way_back() {
  std::shared_ptr<migration::DestinationSession> session;
  {
    const std::lock_guard lock(session_mutex_);
    session = destination_;
  }
  std::shared_ptr<net::Stream> stream = session->take_way_back();
  if (!stream) return;
  {
    const std::lock_guard lock(session_mutex_);
    way_back_stream_ = stream;
  }
  if (stopping_) stream->cancel();  // stop() may not have seen it
  way_back_ = std::thread([this, session, stream = std::move(stream)] {
    migration::ArrivedPages arrived(session->arrived(), session->base_digest(), options_.memory_bytes);
    (void)migration::agree_on_way_back(  // it has logged and said why not
        *stream, std::move(arrived),
        [this](const auto& what, const auto& work) { return when_guest_rests(what, work); });
    const std::lock_guard lock(session_mutex_);
    way_back_stream_.reset();
  });
}

// The source may still be writing for minutes: a VM that stops does not wait for that.
void Worker::end_way_back() {
  const std::lock_guard lock(session_mutex_);
  if (way_back_stream_) way_back_stream_->cancel();
}

// Another command may have the guest for a while. Nobody waits for this one, and no capture breaks off for it.
Status Worker::when_guest_rests(const std::string& what, const std::function<Status(migration::Guest&)>& work) {
  const Deadline limit = Deadline::after(migration::kWayBackGuestWait);
  for (;;) {
    auto held = slot_.take_if_at_rest(what);
    const Status done = held ? with_guest(std::move(*held), work) : Error(Errc::kFailedPrecondition, "the VM is busy");
    const v1::VmState state = board_.get().state();
    const bool here = state == v1::VM_RUNNING || state == v1::VM_PAUSED;
    if (done || !here || stopping_ || limit.passed()) return done;
    std::this_thread::sleep_for(kBusyPause);
  }
}

}  // namespace fvmm::daemon
