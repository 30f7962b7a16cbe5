#include "daemon/pool.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

namespace fvmm::daemon {

Result<std::unique_ptr<WorkerPool>> WorkerPool::open(Spawner& spawner, Options options) {
  unsigned total = 0;
  unsigned most = options.per_recent_shape;
  for (const auto& [shape, count] : options.always) {
    total += count;
    most = std::max(most, count);
  }
  if (most > kWarmWorkersMax || total > kWarmWorkersTotalMax) {
    return Error(Errc::kInvalidArgument, fmt::format("at most {} warm workers of one shape and {} in all",
                                                     kWarmWorkersMax, kWarmWorkersTotalMax));
  }
  std::unique_ptr<WorkerPool> pool(new WorkerPool(spawner, std::move(options)));
  pool->thread_ = std::thread([raw = pool.get()] { raw->replenish(); });
  return pool;
}

WorkerPool::WorkerPool(Spawner& spawner, Options options) : spawner_(spawner), options_(std::move(options)) {}

WorkerPool::~WorkerPool() {
  drain();
}

Result<WorkerPool::Taken> WorkerPool::take(const Shape& shape, const Deadline& deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return Error(Errc::kUnavailable, "fvmmd is stopping");
    remember(shape);
    last_take_ = std::chrono::steady_clock::now();
    failed_ = false;
    changed_.notify_all();
    for (auto it = warm_.begin(); it != warm_.end();) {
      if ((*it)->shape() != shape) {
        ++it;
        continue;
      }
      const auto worker = *it;
      it = warm_.erase(it);
      if (worker->alive()) return Taken{worker, false, 0};
      worker->remove_files();
    }
  }
  const auto started = std::chrono::steady_clock::now();
  auto worker = FVMM_TRY(spawner_.spawn(shape, deadline));
  return Taken{std::move(worker), true, to_ms(std::chrono::steady_clock::now() - started)};
}

void WorkerPool::remember(const Shape& shape) {
  std::erase(recent_, shape);
  recent_.push_front(shape);
  if (recent_.size() > kRecentShapesMax) recent_.pop_back();
}

std::map<Shape, unsigned> WorkerPool::wanted() const {
  std::map<Shape, unsigned> counts = options_.always;
  unsigned total = 0;
  for (const auto& [shape, count] : counts) total += count;
  for (const Shape& shape : recent_) {
    unsigned& count = counts[shape];
    while (count < options_.per_recent_shape && total < kWarmWorkersTotalMax) {
      ++count;
      ++total;
    }
  }
  return counts;
}

std::optional<Shape> WorkerPool::missing() const {
  for (const auto& [shape, count] : wanted()) {
    const auto have = std::ranges::count_if(warm_, [&](const auto& worker) { return worker->shape() == shape; });
    if (static_cast<unsigned>(have) < count) return shape;
  }
  return std::nullopt;
}

std::shared_ptr<WorkerProcess> WorkerPool::surplus() {
  auto counts = wanted();
  for (auto it = warm_.begin(); it != warm_.end(); ++it) {
    unsigned& left = counts[(*it)->shape()];
    if (left == 0) {
      auto worker = *it;
      warm_.erase(it);
      return worker;
    }
    --left;
  }
  return nullptr;
}

void WorkerPool::replenish() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || (!failed_ && missing().has_value()); });
    if (stopping_) return;
    // Each take moves the end of the quiet time.
    while (!stopping_ && std::chrono::steady_clock::now() < last_take_ + options_.quiet) {
      changed_.wait_until(lock, last_take_ + options_.quiet);
    }
    const auto shape = missing();
    if (stopping_ || !shape) continue;
    const auto unwanted = surplus();
    lock.unlock();
    if (unwanted) spawner_.end(*unwanted);
    auto worker = spawner_.spawn(*shape, Deadline::after(kSpawnWaitMax));
    if (!worker) spdlog::warn("no warm worker: {}", worker.error().message());
    lock.lock();
    failed_ = !worker;
    if (worker) warm_.push_back(std::move(*worker));
    changed_.notify_all();
  }
}

void WorkerPool::drop_dead() {
  const std::lock_guard lock(mutex_);
  const auto dead = std::erase_if(warm_, [](const auto& worker) {
    if (worker->alive()) return false;
    spdlog::warn("warm worker {} died: {}", worker->pid(), worker->how_it_ended());
    worker->remove_files();
    return true;
  });
  // What kills one warm worker may kill its replacement: wait for the next take instead of looping.
  if (dead > 0) failed_ = true;
  changed_.notify_all();
}

unsigned WorkerPool::warm() const {
  const std::lock_guard lock(mutex_);
  return static_cast<unsigned>(warm_.size());
}

bool WorkerPool::wait_full(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline.at(), [this] { return stopping_ || failed_ || !missing().has_value(); });
  return !missing().has_value();
}

void WorkerPool::drain() {
  std::list<std::shared_ptr<WorkerProcess>> last;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  {
    const std::lock_guard lock(mutex_);
    last.swap(warm_);
  }
  for (const auto& worker : last) spawner_.end(*worker);
}

}  // namespace fvmm::daemon
