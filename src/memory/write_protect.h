// userfaultfd write protection of guest memory: a write to a protected page waits until somebody lets it go on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace fvmm::memory {

/// Registers all guest RAM once, which splits and protects nothing; then pages are protected and released at will.
/// Catches whoever writes: guest, KVM, the VMM's devices, the kernel on their behalf. Readers never wait.
/// Owner: the VM's; must not outlive the memory, and ends with its mapping: after GuestMemory::map_* make a new one.
/// Thread: any, also at once; what a page's state is meant to be, the caller knows (InstantCopy).
class WriteProtect {
 public:
  struct Options {
    int device = -1;          // an open /dev/userfaultfd, as the daemon passes it; -1: opened here. Not closed
    bool unpopulated = true;  // false: as on kernels before 6.4, where untouched pages are read before protecting them
  };
  /// Errors: kPermissionDenied or kUnimplemented, with what to change on the host; kFailedPrecondition when this
  /// mapping cannot be write-protected (a private mapping of a file on disk).
  static Result<std::unique_ptr<WriteProtect>> create(GuestMemory& memory, const Options& options);
  static Result<std::unique_ptr<WriteProtect>> create(GuestMemory& memory) { return create(memory, Options()); }

  /// From here on writes to these pages wait, also to those that nobody has touched. 2 to 4 us for a single page.
  Status protect(PageRange range) const;
  /// Writes go on, waiting ones too.
  Status release(PageRange range) const;
  /// Lets writers look again: for a page that is released already.
  void wake(PageRange range) const;
  /// Last resort: nothing is protected any more, nobody waits, and protect() fails from now on.
  void abandon() const;

  /// Pages that writers wait for, each reported once, at most as many as there is room for; 0: none at the moment.
  Result<std::size_t> waiting(std::span<PageIndex> out) const;
  [[nodiscard]] int fd() const { return fd_.get(); }  // for poll(2): readable when somebody waits
  [[nodiscard]] GuestMemory& memory() const { return memory_; }

 private:
  WriteProtect(GuestMemory& memory, UniqueFd fd, bool unpopulated)
      : memory_(memory), fd_(std::move(fd)), unpopulated_(unpopulated) {}
  GuestMemory& memory_;
  UniqueFd fd_;
  bool unpopulated_;  // the kernel protects pages that are not there yet
};

}  // namespace fvmm::memory
