#include "daemon/background_fold.h"

#include <fmt/format.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "memory/template_directory.h"
#include "memory/template_format.h"

namespace fvmm::daemon {
namespace {

constexpr int kNiceLowest = 19;
constexpr int kIoWhoProcess = 1;  // ioprio_set(2): linux/ioprio.h of Debian 12 is no C++
constexpr int kIoIdle = 3 << 13;  // class idle

// Of this thread alone: setpriority(2) and ioprio_set(2) go by thread on Linux. Wishes: refused, it is only less
// polite.
void step_back() {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNiceLowest);
  (void)::syscall(SYS_ioprio_set, kIoWhoProcess, 0, kIoIdle);
}

bool needs_fold(const memory::TemplateInfo& info) {
  return info.is_delta() && (!info.is_mappable() || info.chain > memory::kFoldChainMax);
}

}  // namespace

Result<std::unique_ptr<BackgroundFold>> BackgroundFold::start(memory::TemplateStore& store, FoldTimes times) {
  UniqueFd events(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  constexpr const char* kFix = "templates are folded only on command: raise fs.inotify.max_user_instances";
  if (!events) return Error(Errc::kIo, kFix, errno);
  if (::inotify_add_watch(events.get(), store.directory().c_str(), IN_MOVED_TO | IN_ONLYDIR) < 0) {
    return Error(Errc::kIo, fmt::format("watch {}", store.directory().string()), errno);
  }
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC));
  if (!wake) return Error(Errc::kIo, "eventfd", errno);
  return std::unique_ptr<BackgroundFold>(new BackgroundFold(store, times, std::move(events), std::move(wake)));
}

BackgroundFold::BackgroundFold(memory::TemplateStore& store, FoldTimes times, UniqueFd events, UniqueFd wake)
    : store_(store), events_(std::move(events)), wake_(std::move(wake)), queue_(times), thread_([this] { run(); }) {}

BackgroundFold::~BackgroundFold() {
  stopping_ = true;
  (void)::eventfd_write(wake_.get(), 1);
  thread_.join();
}

std::string BackgroundFold::state(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return queue_.state(name) + (let_go_ && working_on_ == name ? ", given up" : "");
}

bool BackgroundFold::let_go(const std::string& name) {
  std::unique_lock lock(mutex_);
  if (name.empty() || working_on_ != name) return false;
  let_go_ = true;
  return idle_.wait_for(lock, kLetGoWait, [&] { return working_on_ != name; });
}

void BackgroundFold::run() {
  step_back();
  note_all();
  while (!stopping_) {
    std::optional<std::string> name;
    {
      const std::lock_guard lock(mutex_);
      name = queue_.take(std::chrono::steady_clock::now());
      working_on_ = name.value_or("");
      let_go_ = false;
    }
    if (!name) {
      wait();
      continue;
    }
    fold(*name);
    const std::lock_guard lock(mutex_);
    working_on_.clear();
    idle_.notify_all();
  }
}

// Short chains first: what lies on a folded one may need no fold any more.
void BackgroundFold::note_all() {
  auto all = store_.list();
  if (!all) return spdlog::warn("templates are not looked at for a fold: {}", all.error().message());
  std::ranges::stable_sort(*all, std::less(), &memory::TemplateInfo::chain);
  for (const memory::TemplateInfo& info : *all) {
    if (info.is_delta()) note(info.name);
  }
}

void BackgroundFold::note(const std::string& name) {
  if (!memory::check_stored_name(name)) return;  // trash on its way out
  const std::lock_guard lock(mutex_);
  if (!queue_.note(name, std::chrono::steady_clock::now())) {
    spdlog::warn("template {} waits for the next start of fvmmd to be folded: {} are to be looked at", name,
                 kFoldsWaitingMax);
  }
}

void BackgroundFold::read_events() {
  alignas(inotify_event) std::array<char, 16 * 1024> buffer;
  for (;;) {
    const ssize_t bytes = ::read(events_.get(), buffer.data(), buffer.size());
    if (bytes <= 0) return;  // EAGAIN: no more
    for (ssize_t at = 0; at < bytes;) {
      const auto* const event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
      at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
      if ((event->mask & IN_Q_OVERFLOW) != 0) note_all();
      if (event->len != 0) note(event->name);
    }
  }
}

void BackgroundFold::wait() {
  std::optional<SteadyTime> next;
  {
    const std::lock_guard lock(mutex_);
    next = queue_.next_due();
  }
  timespec limit{};
  if (next) {
    const auto left = Deadline(*next).left();
    limit = {.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000), .tv_nsec = left.count() % 1'000'000'000};
  }
  std::array<pollfd, 2> ready{
      {{.fd = events_.get(), .events = POLLIN, .revents = 0}, {.fd = wake_.get(), .events = POLLIN, .revents = 0}}};
  (void)::ppoll(ready.data(), ready.size(), next ? &limit : nullptr, nullptr);
  read_events();
}

/// @param worth_it  set when it has to be folded, before that begins
Result<memory::TemplateInfo> BackgroundFold::try_fold(const std::string& name, bool& worth_it) {
  memory::TemplateInfo info = FVMM_TRY(store_.find(name));
  if (!info.is_delta()) return info;
  info = FVMM_TRY(memory::OpenTemplate::open(info.directory)).info();  // the number of runs, exactly
  if (!needs_fold(info)) return info;
  worth_it = true;
  spdlog::info("template {} is folded in the background: {} runs, {} generations", name, info.runs, info.chain);
  memory::Rewriting how;
  how.gentle = true;
  how.stop = [&] {
    read_events();
    const std::lock_guard lock(mutex_);
    return stopping_ || let_go_ || queue_.superseded(name);
  };
  return store_.fold(name, how);
}

void BackgroundFold::fold(const std::string& name) {
  bool worth_it = false;
  const auto folded = try_fold(name, worth_it);
  if (!folded) return report(name, folded.error());
  if (worth_it) spdlog::info("template {} is folded: {} pages", name, folded->pages);
  const std::lock_guard lock(mutex_);
  queue_.done(name);
}

void BackgroundFold::report(const std::string& name, const Error& error) {
  const SteadyTime now = std::chrono::steady_clock::now();
  const std::lock_guard lock(mutex_);
  switch (error.code()) {
    case Errc::kNotFound:  // removed meanwhile
      return queue_.done(name);
    case Errc::kCancelled:  // wanted by somebody who may leave it here, superseded, or the end
    case Errc::kAborted:    // folded or squashed by somebody else
      return queue_.again(name, now);
    case Errc::kResourceExhausted:
      if (!queue_.put_off(name, error.message(), now)) return;
      return spdlog::warn(
          "template {} is not folded for now, and tried again: {}; make room (fvmmctl template gc, template rm, or a "
          "larger disk)",
          name, error.message());
    default:
      queue_.failed(name, error.message());
      return spdlog::warn("template {} is not folded: {}; see fvmmctl template verify {}", name, error.message(), name);
  }
}

}  // namespace fvmm::daemon
