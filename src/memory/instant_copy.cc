#include "memory/instant_copy.h"

#include <fmt/format.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/realtime.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kArmPages = 512;        // protected at a time: writers wait no longer than that takes
constexpr std::uint64_t kRunPages = 32;         // copied at a time, for the same reason
constexpr std::uint64_t kReleasePages = 65536;  // released at a time
constexpr std::size_t kFaultsAtOnce = 16;

}  // namespace

InstantCopy::InstantCopy(std::unique_ptr<WriteProtect> protect, UniqueFd leave, std::uint64_t staged_max)
    : protect_(std::move(protect)),
      leave_(std::move(leave)),
      staged_bytes_(staged_max * kPageBytes),  // touched here: no page fault while a writer waits
      staged_pages_(staged_max),
      run_(kRunPages * kPageBytes),
      armed_(protect_->memory().layout().pages()),
      thread_([this] { serve(); }) {
  protect_->memory().set_keeper(*this);
}

Result<std::unique_ptr<InstantCopy>> InstantCopy::create(std::unique_ptr<WriteProtect> protect,
                                                         std::uint64_t staged_max) {
  if (staged_max == 0 || staged_max > kStagedPagesMax) {
    return Error(Errc::kInvalidArgument, fmt::format("1 to {} pages can be staged", kStagedPagesMax));
  }
  UniqueFd leave(::eventfd(0, EFD_CLOEXEC));
  if (!leave) return Error(Errc::kIo, "eventfd", errno);
  return std::unique_ptr<InstantCopy>(new InstantCopy(std::move(protect), std::move(leave), staged_max));
}

InstantCopy::~InstantCopy() {
  end();  // whoever waits in let_go() goes on
  protect_->memory().clear_keeper(*this);
  (void)::eventfd_write(leave_.get(), 1);
  thread_.join();
}

Status InstantCopy::begin() {
  end();
  const std::lock_guard lock(mutex_);
  if (dead_) return Error(Errc::kFailedPrecondition, "write protection ended with a capture that failed");
  ending_ = false;
  failed_ = {};
  cursor_ = 0;
  faults_ = 0;
  return {};
}

std::uint64_t InstantCopy::unarmed(const Bitmap& pages) {
  const std::lock_guard lock(mutex_);
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < pages.words().size(); ++i) {
    count += static_cast<std::uint64_t>(std::popcount(pages.words()[i] & ~armed_.words()[i]));
  }
  return count;
}

Status InstantCopy::arm(const Bitmap& pages, const Stop& stop) {
  Bitmap wanted = pages;
  {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < wanted.words().size(); ++i) wanted.words()[i] &= ~armed_.words()[i];
  }
  std::uint64_t since_asked = kArmPages;
  for (const PageRange& range : wanted.ranges(kArmPages)) {
    if (since_asked >= kArmPages && stop && stop()) return Error(Errc::kCancelled, "cancelled");
    since_asked = since_asked >= kArmPages ? range.count : since_asked + range.count;
    const std::lock_guard lock(mutex_);  // both or neither, as the thread sees it
    if (!failed_) return failed_;
    armed_.set_range(range);
    FVMM_TRY(protect_->protect(range));
  }
  return {};
}

void InstantCopy::freeze() {
  const std::lock_guard lock(mutex_);
  frozen_ = true;
}

void InstantCopy::serve() {
  const ScopedFifo soon;
  std::array<PageIndex, kFaultsAtOnce> pages;
  for (;;) {
    std::array<pollfd, 2> events{pollfd{protect_->fd(), POLLIN, 0}, pollfd{leave_.get(), POLLIN, 0}};
    if (::poll(events.data(), events.size(), -1) < 0 && errno != EINTR) return;
    if (events[1].revents != 0) return;
    const Result<std::size_t> count = protect_->waiting(pages);
    Status status = count ? Status() : Status(count.error());
    for (std::size_t i = 0; count && i < *count && status; ++i) status = admit(pages[i]);
    if (status) continue;
    const std::lock_guard lock(mutex_);
    return lose(std::move(status));
  }
}

void InstantCopy::lose(Status why) {
  spdlog::error("write protection of guest memory: {}", why.error().message());
  failed_ = std::move(why);
  dead_ = true;
  protect_->abandon();  // nobody is kept waiting; what is not captured yet is lost to this capture
  room_.notify_all();
}

/// A writer waits for this page: captured first when it belongs to the instant, then released.
Status InstantCopy::admit(PageIndex page) {
  Lock lock(mutex_);
  ++faults_;
  wait_for_room(page, lock);
  if (dead_) return {};
  if (armed_.test(page)) return take_out(page);
  protect_->wake({page, 1});  // captured meanwhile, or a second writer's
  return {};
}

// The pages of one discard are taken out one by one, and while it waits for room others may be armed again: so it looks
// until none is left, and the lock that says so is held until they are gone.
void InstantCopy::let_go(PageRange pages, const Drop& drop) {
  Lock lock(mutex_);
  for (auto page = first_armed(pages); page && !dead_; page = first_armed(pages)) {
    wait_for_room(*page, lock);
    if (dead_ || !armed_.test(*page)) continue;
    if (Status taken = take_out(*page); !taken) lose(std::move(taken));
  }
  drop();
}

std::optional<PageIndex> InstantCopy::first_armed(PageRange pages) const {
  for (PageIndex page = pages.first; page < pages.first + pages.count; ++page) {
    if (armed_.test(page)) return page;
  }
  return std::nullopt;
}

void InstantCopy::wait_for_room(PageIndex page, Lock& lock) {
  const auto room = [&] { return staged_ < staged_pages_.size() || ending_ || dead_ || !armed_.test(page); };
  if (frozen_ && !room()) room_.wait(lock, room);
}

/// An armed page, for which there is room.
Status InstantCopy::take_out(PageIndex page) {
  if (frozen_ && !ending_) {
    const std::size_t slot = (first_ + staged_++) % staged_pages_.size();
    staged_pages_[slot] = page;
    std::memcpy(staged_bytes_.data() + slot * kPageBytes, protect_->memory().pages({page, 1}).data(), kPageBytes);
  }
  armed_.clear(page);
  return protect_->release({page, 1});
}

Result<bool> InstantCopy::next(const Put& put) {
  if (FVMM_TRY(next_staged(put))) return true;
  PageRange range{};
  {
    const std::lock_guard lock(mutex_);
    range = find_armed();
    if (range.count == 0) return staged_ != 0;
    std::memcpy(run_.data(), protect_->memory().pages(range).data(), range.count * kPageBytes);
    for (PageIndex page = range.first; page < range.first + range.count; ++page) armed_.clear(page);
    FVMM_TRY(protect_->release(range));
  }
  room_.notify_all();  // the one waited for may be among them
  FVMM_TRY(put(range, run_.data()));
  return true;
}

/// The slots stay taken until `put` has copied them, so the thread cannot overwrite them.
Result<bool> InstantCopy::next_staged(const Put& put) {
  std::size_t first = 0;
  std::size_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!failed_) return Error(failed_.error());
    first = first_;
    count = std::min<std::size_t>(staged_, kRunPages);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t slot = (first + i) % staged_pages_.size();
    FVMM_TRY(put({staged_pages_[slot], 1}, staged_bytes_.data() + slot * kPageBytes));
    const std::lock_guard lock(mutex_);
    first_ = (slot + 1) % staged_pages_.size();
    --staged_;
    room_.notify_all();
  }
  return count != 0;
}

PageRange InstantCopy::find_armed() {
  const auto words = armed_.words();
  std::size_t word = cursor_ / 64;
  while (word < words.size() && words[word] == 0) ++word;
  if (word == words.size()) return {.first = 0, .count = 0};
  PageRange found{.first = word * 64 + static_cast<PageIndex>(std::countr_zero(words[word])), .count = 0};
  const PageIndex end = std::min(armed_.pages(), found.first + kRunPages);
  while (found.first + found.count < end && armed_.test(found.first + found.count)) ++found.count;
  cursor_ = found.first;
  return found;
}

void InstantCopy::end() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    for (const PageRange& range : armed_.ranges(kReleasePages)) {
      if (dead_) break;
      const Status released = protect_->release(range);
      if (released) continue;
      spdlog::error("write protection of guest memory: {}", released.error().message());
      dead_ = true;
      protect_->abandon();
    }
    armed_.clear_all();
    frozen_ = false;
    first_ = 0;
    staged_ = 0;
  }
  room_.notify_all();
}

}  // namespace fvmm::memory
