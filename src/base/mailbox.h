#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>

#include "base/clock.h"

namespace fvmm {

/// Bounded queue between threads: many senders, one receiving owner. A full box makes try_send fail; a closed one too.
/// Thread: any. Nothing is dropped silently: what try_send refuses stays with the sender.
template <class Message>
class Mailbox {
 public:
  explicit Mailbox(std::size_t messages_max) : messages_max_(messages_max) {}

  [[nodiscard]] bool try_send(Message&& message) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_ || queue_.size() >= messages_max_) return false;
      queue_.push_back(std::move(message));
    }
    ready_.notify_one();
    return true;
  }

  /// The next message; nothing when the deadline passes, or when the box is closed and empty.
  [[nodiscard]] std::optional<Message> receive(const Deadline& deadline) {
    std::unique_lock lock(mutex_);
    ready_.wait_until(lock, deadline.at(), [this] { return closed_ || !queue_.empty(); });
    return pop();
  }
  /// The same without a deadline, for an owner thread whose end is close().
  [[nodiscard]] std::optional<Message> receive() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    return pop();
  }
  [[nodiscard]] std::optional<Message> try_receive() {
    const std::lock_guard lock(mutex_);
    return pop();
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

 private:
  std::optional<Message> pop() {
    if (queue_.empty()) return std::nullopt;
    std::optional<Message> message(std::move(queue_.front()));
    queue_.pop_front();
    return message;
  }

  const std::size_t messages_max_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Message> queue_;  // mutex_
  bool closed_ = false;        // mutex_
};

}  // namespace fvmm
