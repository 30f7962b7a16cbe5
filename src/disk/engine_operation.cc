// Operations on files: queued while there is no room, continued when they end short, ended once.

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "disk/engine_parts.h"

namespace fvmm::disk {

namespace {

std::uint64_t sum(const std::vector<iovec>& parts) {
  std::uint64_t bytes = 0;
  for (const iovec& part : parts) bytes += part.iov_len;
  return bytes;
}

Status failure(const char* what, int number) {
  const bool full = number == ENOSPC || number == EDQUOT || number == EFBIG;
  return Error(full ? Errc::kResourceExhausted : Errc::kIo, std::string("disk file: ") + what, number);
}

}  // namespace

void Engine::read_file(const Extent& extent, std::vector<iovec> parts, Then then) {
  const std::uint64_t bytes = sum(parts);
  enqueue(std::make_unique<Operation>(Operation{.kind = Operation::Kind::kRead,
                                                .fd = extent.fd,
                                                .offset = extent.offset,
                                                .bytes = bytes,
                                                .parts = std::move(parts),
                                                .zeros_past_end = stack_.is_base(extent.fd),
                                                .then = std::move(then)}));
}

void Engine::write_file(int fd, std::uint64_t offset, std::vector<iovec> parts, Then then) {
  const std::uint64_t bytes = sum(parts);
  enqueue(std::make_unique<Operation>(Operation{.kind = Operation::Kind::kWrite,
                                                .fd = fd,
                                                .offset = offset,
                                                .bytes = bytes,
                                                .parts = std::move(parts),
                                                .then = std::move(then)}));
}

void Engine::sync_file(int fd, Then then) {
  enqueue(std::make_unique<Operation>(
      Operation{.kind = Operation::Kind::kSync, .fd = fd, .parts = {}, .then = std::move(then)}));
}

void Engine::allocate_file(int mode, std::uint64_t offset, std::uint64_t bytes, Then then) {
  enqueue(std::make_unique<Operation>(Operation{.kind = Operation::Kind::kAllocate,
                                                .fd = stack_.write_fd(),
                                                .mode = mode,
                                                .offset = offset,
                                                .bytes = bytes,
                                                .parts = {},
                                                .then = std::move(then)}));
}

void Engine::enqueue(std::unique_ptr<Operation> operation) {
  operation->id = next_id_++;
  waiting_.push_back(std::move(operation));
}

void Engine::pump() {
  while (!waiting_.empty() && operations_.size() < io_->operations_max()) {
    std::unique_ptr<Operation> operation = std::move(waiting_.front());
    waiting_.pop_front();
    Operation& issued = *operation;
    operations_[issued.id] = std::move(operation);
    issue(issued);
  }
}

void Engine::issue(Operation& operation) {
  const auto parts =
      std::span(operation.parts).first(std::min(operation.parts.size(), kRequestPartsMax));  // the rest comes after
  switch (operation.kind) {
    case Operation::Kind::kRead:
      return io_->read(operation.fd, parts, operation.offset, operation.id);
    case Operation::Kind::kWrite:
      return io_->write(operation.fd, parts, operation.offset, operation.id);
    case Operation::Kind::kSync:
      return io_->sync(operation.fd, operation.id);
    case Operation::Kind::kAllocate:
      return io_->allocate(operation.fd, operation.mode, operation.offset, operation.bytes, operation.id);
  }
}

void Engine::ended(std::uint64_t token, int result) {
  const auto found = operations_.find(token);
  FVMM_CHECK(found != operations_.end(), "an operation that was never begun has ended");
  Operation& operation = *found->second;
  // Cancelled: the thread that submitted it has ended (a pause that ran into its deadline); nothing of it is lost by
  // doing it again.
  if (result == -EINTR || result == -EAGAIN || result == -ECANCELED) return issue(operation);
  const bool moves = operation.kind == Operation::Kind::kRead || operation.kind == Operation::Kind::kWrite;
  Status status;
  if (result < 0) {
    constexpr const char* kNames[] = {"read", "write", "fdatasync", "fallocate"};
    status = failure(kNames[static_cast<std::size_t>(operation.kind)], -result);
  } else if (moves && static_cast<std::uint64_t>(result) < operation.bytes) {
    operation.bytes -= static_cast<std::uint64_t>(result);
    operation.offset += static_cast<std::uint64_t>(result);
    operation.parts = slice(operation.parts, static_cast<std::uint64_t>(result), operation.bytes);
    if (result > 0) return issue(operation);
    if (operation.kind == Operation::Kind::kRead && operation.zeros_past_end) {
      fill_zeros(operation.parts);
    } else {
      status = Error(Errc::kDataLoss, "disk file: it ends where the disk has data; has somebody truncated it?");
    }
  }
  const std::unique_ptr<Operation> over = std::move(found->second);
  operations_.erase(found);
  over->then(status);
}

}  // namespace fvmm::disk
