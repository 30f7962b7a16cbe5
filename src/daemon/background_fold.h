// Generations that can no longer be mapped are folded into bases of their own, one at a time, while nothing waits for
// it.
//
//   a seal, a push, a squash: rename into the store ──inotify──► FoldQueue ──due──► more than kMappableRunsMax runs, or
//   a chain longer than kFoldChainMax? ──► TemplateStore::fold(), in pieces, at the lowest priority
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/result.h"
#include "base/unique_fd.h"
#include "daemon/fold_queue.h"
#include "memory/template_store.h"

namespace fvmm::daemon {

inline constexpr std::chrono::seconds kLetGoWait{
    30};  // for a fold to end that was told to: one piece at the disk's speed

/// One thread, asleep in poll(2) unless a generation appears in the store, whoever seals it, or a wait is over.
/// Owner: the daemon. A process killed at any step leaves what TemplateStore::fold() leaves, and its next start begins
/// anew.
class BackgroundFold {
 public:
  /// Looks at everything in the store, then at what is renamed into it. kIo when the kernel has no inotify for it:
  /// raise fs.inotify.max_user_instances.
  static Result<std::unique_ptr<BackgroundFold>> start(memory::TemplateStore& store, FoldTimes times = {});
  ~BackgroundFold();  // gives up what is under way
  BackgroundFold(const BackgroundFold&) = delete;
  BackgroundFold& operator=(const BackgroundFold&) = delete;
  BackgroundFold(BackgroundFold&&) = delete;
  BackgroundFold& operator=(BackgroundFold&&) = delete;

  /// FoldQueue::state(), and ", given up" while let_go() waits. Thread: any.
  [[nodiscard]] std::string state(const std::string& name) const;
  /// Somebody wants to remove or fold it himself: gives up its fold, if it is under way, and waits until its pins are
  /// gone, at most kLetGoWait. True when they are and were there. Thread: any.
  bool let_go(const std::string& name);

 private:
  BackgroundFold(memory::TemplateStore& store, FoldTimes times, UniqueFd events, UniqueFd wake);
  void run();
  void note_all();
  void note(const std::string& name);
  void read_events();
  void wait();
  void fold(const std::string& name);
  Result<memory::TemplateInfo> try_fold(const std::string& name, bool& worth_it);
  void report(const std::string& name, const Error& error);

  memory::TemplateStore& store_;
  const UniqueFd events_;  // inotify; the thread's
  const UniqueFd wake_;    // eventfd: stopping_
  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  FoldQueue queue_;         // mutex_
  std::string working_on_;  // mutex_; empty: nothing
  bool let_go_ = false;     // mutex_; of what it works on
  std::thread thread_;      // last: sees the others made
};

}  // namespace fvmm::daemon
