#include "memory/write_protect.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace fvmm::memory {
namespace {

#ifndef UFFD_FEATURE_WP_UNPOPULATED  // Linux 6.4
constexpr std::uint64_t UFFD_FEATURE_WP_UNPOPULATED = 1ULL << 13;
#endif
#ifndef MADV_POPULATE_READ  // Linux 5.14
constexpr int MADV_POPULATE_READ = 22;
#endif
constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;  // without O_NONBLOCK a read can wait for ever after a poll said yes
constexpr int kTriesMax = 1000;                 // of one ioctl, while something else changes the mappings
constexpr std::size_t kMessages = 16;           // read at a time

/// A new userfaultfd of this process that also catches the kernel's own faults. -1 and errno.
int open_by_device(int device) {
  if (device >= 0) return ::ioctl(device, USERFAULTFD_IOC_NEW, kFlags);
  const UniqueFd own(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return own ? ::ioctl(own.get(), USERFAULTFD_IOC_NEW, kFlags) : -1;
}

Result<UniqueFd> open_userfaultfd(int device) {
  UniqueFd fd(open_by_device(device));
  const int error = errno;
  if (!fd) fd.reset(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  if (fd) return fd;
  if (errno == ENOSYS) return Error(Errc::kUnimplemented, "this kernel has no userfaultfd", errno);
  if (errno != EPERM) return Error(Errc::kIo, "userfaultfd", errno);
  return Error(
      Errc::kPermissionDenied,
      "userfaultfd that catches KVM's faults: give this process access to /dev/userfaultfd (Linux 6.1), or set "
      "vm.unprivileged_userfaultfd=1",
      error);
}

/// The best that this kernel has. True: it protects untouched pages, too.
Result<bool> agree(int fd, bool unpopulated) {
  constexpr std::uint64_t kBasic = UFFD_FEATURE_PAGEFAULT_FLAG_WP;            // Linux 5.7
  constexpr std::uint64_t kFiles = kBasic | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;  // 5.19
  for (const std::uint64_t features : {kFiles | UFFD_FEATURE_WP_UNPOPULATED, kFiles, kBasic}) {
    const bool all = (features & UFFD_FEATURE_WP_UNPOPULATED) != 0;
    if (all && !unpopulated) continue;
    uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
    if (::ioctl(fd, UFFDIO_API, &api) == 0) return all;
    if (errno != EINVAL) return Error(Errc::kIo, "UFFDIO_API", errno);
  }
  return Error(Errc::kUnimplemented, "this kernel's userfaultfd cannot write-protect (Linux 5.7 can)");
}

uffdio_range place_of(const GuestMemory& memory, PageRange range) {
  return {.start = reinterpret_cast<std::uintptr_t>(memory.pages(range).data()), .len = range.count * kPageBytes};
}

PageRange all_of(const GuestMemory& memory) {
  return {.first = 0, .count = memory.layout().pages()};
}

Status enlist(int fd, const GuestMemory& memory) {
  uffdio_register request{};
  request.range = place_of(memory, all_of(memory));
  request.mode = UFFDIO_REGISTER_MODE_WP;
  const int result = ::ioctl(fd, UFFDIO_REGISTER, &request);
  if (result == 0 && (request.ioctls & (1ULL << _UFFDIO_WRITEPROTECT)) != 0) return {};
  if (result == 0 || errno == EINVAL) {
    return Error(Errc::kFailedPrecondition,
                 "this guest memory cannot be write-protected: it maps a file on disk; anonymous memory and tmpfs can");
  }
  return Error(errno == ENOMEM ? Errc::kResourceExhausted : Errc::kIo, "UFFDIO_REGISTER", errno);
}

Status set_protection(int fd, const GuestMemory& memory, PageRange range, std::uint64_t mode) {
  uffdio_writeprotect request{.range = place_of(memory, range), .mode = mode};
  for (int attempt = 0; ::ioctl(fd, UFFDIO_WRITEPROTECT, &request) != 0; ++attempt) {
    if ((errno == EAGAIN || errno == EINTR) && attempt < kTriesMax) continue;
    return Error(errno == ENOMEM ? Errc::kResourceExhausted : Errc::kIo,
                 fmt::format("write-protect {} pages at {}", range.count, range.first), errno);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<WriteProtect>> WriteProtect::create(GuestMemory& memory, const Options& options) {
  UniqueFd fd = FVMM_TRY(open_userfaultfd(options.device));
  const bool unpopulated = FVMM_TRY(agree(fd.get(), options.unpopulated));
  FVMM_TRY(enlist(fd.get(), memory));
  return std::unique_ptr<WriteProtect>(new WriteProtect(memory, std::move(fd), unpopulated));
}

Status WriteProtect::protect(PageRange range) const {
  if (!unpopulated_) {  // what is not there cannot be protected: a read brings the page of zeros
    auto* const at = const_cast<std::byte*>(memory_.pages(range).data());
    if (::madvise(at, range.count * kPageBytes, MADV_POPULATE_READ) != 0) {
      return Error(Errc::kIo, "madvise(MADV_POPULATE_READ)", errno);
    }
  }
  return set_protection(fd_.get(), memory_, range, UFFDIO_WRITEPROTECT_MODE_WP);
}

Status WriteProtect::release(PageRange range) const {
  return set_protection(fd_.get(), memory_, range, 0);
}

void WriteProtect::wake(PageRange range) const {
  uffdio_range place = place_of(memory_, range);
  (void)::ioctl(fd_.get(), UFFDIO_WAKE, &place);
}

void WriteProtect::abandon() const {
  uffdio_range place = place_of(memory_, all_of(memory_));
  (void)::ioctl(fd_.get(), UFFDIO_UNREGISTER, &place);
  wake(all_of(memory_));  // unregistering wakes only those who wait for a missing page
}

Result<std::size_t> WriteProtect::waiting(std::span<PageIndex> out) const {
  std::array<uffd_msg, kMessages> messages;
  const std::size_t most = std::min(out.size(), messages.size());
  const ssize_t bytes = ::read(fd_.get(), messages.data(), most * sizeof(uffd_msg));
  if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return std::size_t{0};
  if (bytes < 0) return Error(Errc::kIo, "read from userfaultfd", errno);
  const std::size_t count = static_cast<std::size_t>(bytes) / sizeof(uffd_msg);
  const std::uint64_t base = place_of(memory_, all_of(memory_)).start;
  for (std::size_t i = 0; i < count; ++i) {
    const uffd_msg& message = messages[i];
    if (message.event != UFFD_EVENT_PAGEFAULT) {
      return Error(Errc::kInternal, fmt::format("userfaultfd event {:#x}", unsigned{message.event}));
    }
    out[i] = (message.arg.pagefault.address - base) / kPageBytes;
  }
  return count;
}

}  // namespace fvmm::memory
