#include "base/ring.h"
#include "disk/file_io.h"

namespace fvmm::disk {

namespace {

constexpr unsigned kRingEntries = 256;

class RingIo final : public FileIo {
 public:
  explicit RingIo(std::unique_ptr<Ring> ring) : ring_(std::move(ring)) {}

  std::size_t operations_max() const override { return kRingEntries; }
  void read(int fd, std::span<const iovec> into, std::uint64_t offset, std::uint64_t token) override {
    io_uring_sqe& sqe = ring_->next();
    io_uring_prep_readv(&sqe, fd, into.data(), static_cast<unsigned>(into.size()), offset);
    io_uring_sqe_set_data64(&sqe, token);
  }
  void write(int fd, std::span<const iovec> from, std::uint64_t offset, std::uint64_t token) override {
    io_uring_sqe& sqe = ring_->next();
    io_uring_prep_writev(&sqe, fd, from.data(), static_cast<unsigned>(from.size()), offset);
    io_uring_sqe_set_data64(&sqe, token);
  }
  void sync(int fd, std::uint64_t token) override {
    io_uring_sqe& sqe = ring_->next();
    io_uring_prep_fsync(&sqe, fd, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data64(&sqe, token);
  }
  void allocate(int fd, int mode, std::uint64_t offset, std::uint64_t bytes, std::uint64_t token) override {
    io_uring_sqe& sqe = ring_->next();
    io_uring_prep_fallocate(&sqe, fd, mode, static_cast<off_t>(offset), static_cast<off_t>(bytes));
    io_uring_sqe_set_data64(&sqe, token);
  }
  Status submit() override { return ring_->submit(); }
  Status poll(const Deadline& deadline, const Ended& ended) override {
    bool any = false;
    const auto each = [&](std::uint64_t token, int result) {
      any = true;
      ended(token, result);
    };
    ring_->reap(each);
    if (any) return ring_->submit();
    FVMM_TRY(ring_->wait(deadline));
    ring_->reap(each);
    return {};
  }
  int wait_fd() const override { return ring_->fd(); }

 private:
  std::unique_ptr<Ring> ring_;
};

}  // namespace

Result<std::unique_ptr<FileIo>> make_ring_io() {
  return std::make_unique<RingIo>(FVMM_TRY(Ring::make(kRingEntries), "disk I/O"));
}

}  // namespace fvmm::disk
