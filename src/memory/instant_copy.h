// Guest memory as it was at one instant, copied while the guest runs on: what is not copied yet is write-protected,
// and a writer's page is copied first.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/priority_mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/dirty.h"
#include "memory/write_protect.h"

namespace fvmm::memory {

inline constexpr std::uint64_t kStagedPagesMax = 1024;  // captured by faults and not yet taken; then writers wait

/// One capture after another: begin(), arm() while the guest runs, freeze() and arm() while it stands, next() until
/// nothing is left, end(). A thread of its own serves the writers; it only reads guest memory, so it never waits for
/// itself. It waits for room in the staging buffer, never for the receiver of the pages: that is next()'s caller.
/// Owner: the thread that owns the VM, which must not write guest memory between freeze() and end() while it holds
/// back next(). Must not outlive the memory.
class InstantCopy final : public PageKeeper {
 public:
  using Stop = std::function<bool()>;
  using Put = std::function<Status(PageRange, const std::byte*)>;

  /// @param staged_max  kStagedPagesMax, less in tests
  static Result<std::unique_ptr<InstantCopy>> create(std::unique_ptr<WriteProtect> protect,
                                                     std::uint64_t staged_max = kStagedPagesMax);
  ~InstantCopy() override;
  InstantCopy(const InstantCopy&) = delete;
  InstantCopy& operator=(const InstantCopy&) = delete;
  InstantCopy(InstantCopy&&) = delete;
  InstantCopy& operator=(InstantCopy&&) = delete;

  /// kFailedPrecondition once a capture has failed in a way that ended the protection: make a new one.
  Status begin();
  /// Protects those of the pages that are not protected. Before the instant a write takes its page out again.
  /// kCancelled by `stop`, which is asked every few hundred pages.
  Status arm(const Bitmap& pages, const Stop& stop = {});
  [[nodiscard]] std::uint64_t unarmed(const Bitmap& pages);
  /// The instant: from here on no protected page changes before it was captured. Call while nobody writes; a page armed
  /// between here and the next write counts as well.
  void freeze();
  /// Gives some of the captured pages to `put`, each page once, in no order; may wait as long as `put` does. False:
  /// there are none left.
  Result<bool> next(const Put& put);
  /// Whatever is still protected is released, every writer goes on. What was captured and not taken is gone.
  void end();
  /// A discard captures first, as a write does, and waits for room in the staging buffer as a writer does.
  void let_go(PageRange pages, const Drop& drop) override;
  [[nodiscard]] std::uint64_t faults() const { return faults_; }  // since begin(): pages that a writer waited for

 private:
  InstantCopy(std::unique_ptr<WriteProtect> protect, UniqueFd leave, std::uint64_t staged_max);
  using Lock = std::unique_lock<PriorityMutex>;
  void serve();
  Status admit(PageIndex page);
  void wait_for_room(PageIndex page, Lock& lock);
  Status take_out(PageIndex page);  // mutex_ held
  void lose(Status why);            // mutex_ held
  std::optional<PageIndex> first_armed(PageRange pages) const;
  Result<bool> next_staged(const Put& put);
  PageRange find_armed();

  const std::unique_ptr<WriteProtect> protect_;
  const UniqueFd leave_;  // eventfd: the thread ends
  std::vector<std::byte> staged_bytes_;
  std::vector<PageIndex> staged_pages_;
  std::vector<std::byte> run_;  // owner
  PageIndex cursor_ = 0;        // owner; nothing before it is armed once frozen
  std::atomic<std::uint64_t> faults_{0};

  PriorityMutex mutex_;
  std::condition_variable_any room_;
  Bitmap armed_;            // mutex_; exactly the pages that are protected
  bool frozen_ = false;     // mutex_
  bool ending_ = false;     // mutex_; what is captured now is nobody's
  bool dead_ = false;       // mutex_; the protection is gone for good
  std::size_t first_ = 0;   // mutex_; oldest staged page
  std::size_t staged_ = 0;  // mutex_; how many follow it, round the end
  Status failed_;           // mutex_; of the thread
  std::thread thread_;      // last: it uses all of the above
};

}  // namespace fvmm::memory
