// Asynchronous transmission buffering: captured pages wait here for the link. Capturing and sending are two threads;
// a full buffer slows capturing down, and nothing is ever dropped.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "migration/capture.h"

namespace fvmm::migration {

inline constexpr std::uint64_t kCaptureBufferMin = 4 * kMiB;
inline constexpr std::uint64_t kCaptureBufferMax = 16 * kGiB;
inline constexpr std::chrono::milliseconds kRoomLook{50};  // between two looks whether somebody wants the guest

/// A captured page and the slot that holds its bytes.
struct BufferedPage {
  memory::PageIndex page;
  std::uint32_t slot;
};

/// The end of a generation's pages, and what belongs to it.
struct GenerationEnd {
  std::uint64_t number = 0;
  std::uint64_t realtime_ns = 0;
  v1::MachineState state;
};

using BufferItem = std::variant<std::vector<BufferedPage>, GenerationEnd>;

struct BufferFigures {
  std::uint64_t bytes = 0;     // in use
  std::uint64_t pages_in = 0;  // ever
  std::uint64_t waits = 0;     // for room, ever
  std::chrono::nanoseconds waited{};
};

/// Producer: one capturing thread (begin, put, reserve, finish). Consumer: one sending thread (take, release).
/// break_off(), open() and figures() from any.
class CaptureBuffer final : public PageSink {
 public:
  /// @param bytes_max  kCaptureBufferMin to kCaptureBufferMax (kInvalidArgument). Address space only: memory is taken
  ///                   as pages come.
  static Result<std::unique_ptr<CaptureBuffer>> create(std::uint64_t bytes_max);
  ~CaptureBuffer() override;
  CaptureBuffer(const CaptureBuffer&) = delete;
  CaptureBuffer& operator=(const CaptureBuffer&) = delete;
  CaptureBuffer(CaptureBuffer&&) = delete;
  CaptureBuffer& operator=(CaptureBuffer&&) = delete;

  /// A generation begins: what follows belongs to the link as it is now. kUnavailable while there is none.
  /// @param give_up  asked now and then while waiting for room: kCancelled
  Status begin(std::function<bool()> give_up = {});
  /// Waits for room as long as it takes: the consumer frees it, or break_off() ends the wait with kUnavailable.
  Status put(memory::PageRange range, const std::byte* bytes) override;
  Status reserve(std::uint64_t pages) override;
  Status finish(GenerationEnd end);

  /// The next pages of one generation, at most `pages_max`, or its end. Nothing at the deadline.
  std::optional<BufferItem> take(std::size_t pages_max, const Deadline& deadline);
  [[nodiscard]] const std::byte* bytes(std::uint32_t slot) const { return arena_ + std::uint64_t{slot} * kPageBytes; }
  void release(std::span<const BufferedPage> pages);

  /// The link is gone, or the end has come: empties the buffer and fails the producer until open() and its next
  /// begin(), so that half a generation never meets a new link. The pages are not lost: the producer's generation fails
  /// and gives its pages back, and those of finished generations the session has. What the consumer holds stays its own
  /// until release().
  void break_off();
  void open();
  [[nodiscard]] BufferFigures figures() const;
  [[nodiscard]] std::uint64_t bytes_max() const { return slots_ * kPageBytes; }

 private:
  CaptureBuffer(std::byte* arena, std::uint64_t slots);
  [[nodiscard]] bool usable() const { return open_ && link_ == links_; }
  Status wait_for(std::unique_lock<std::mutex>& lock, std::uint64_t slots);

  std::byte* const arena_;
  const std::uint64_t slots_;
  mutable std::mutex mutex_;
  std::condition_variable room_;
  std::function<bool()> give_up_;  // the producer's
  std::condition_variable ready_;
  std::vector<std::uint32_t> free_;                              // mutex_
  std::deque<std::variant<BufferedPage, GenerationEnd>> queue_;  // mutex_; at most slots_ pages and as many ends
  bool open_ = true;                                             // mutex_
  std::uint64_t links_ = 0;                                      // mutex_; how many have ended
  std::uint64_t link_ = 0;                                       // mutex_; on which the producer's generation began
  BufferFigures figures_;                                        // mutex_
};

}  // namespace fvmm::migration
