// The C library's calls that change files, as the simulated threads of one host see them (support/sim_files.h). This
// header *defines* them, like support/sim_threads.h: include it in exactly one file of a program, after that one.
// On any other thread, and elsewhere than under the host's directory, they do what they always do.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "support/sim_files.h"
#include "support/sim_threads.h"

namespace fvmm::testing {

/// The host's files when they are concerned; else null.
template <class Where>
SimFiles* sim_files(Where where) {
  for (SimFiles* const files : SimFiles::all) {
    if (files->watches() && files->has(where)) return files;
  }
  return nullptr;
}
/// Whether the step must not happen; errno is set then. A dead process throws out of the calls that may.
inline bool sim_refused(SimFiles& files, bool needs_room, bool may_throw) {
  const int error = files.before(needs_room, may_throw);
  if (error != 0) errno = error;
  return error != 0;
}

}  // namespace fvmm::testing

// NOLINTBEGIN(misc-definitions-in-headers, cert-dcl50-cpp): one file of a program includes this; C's own signatures
extern "C" {

int open(const char* path, int flags, ...) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(open);
  va_list more;
  va_start(more, flags);
  const auto mode = (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(more, unsigned) : 0U;
  va_end(more);
  SimFiles* const files = (flags & O_CREAT) != 0 ? sim_files(path) : nullptr;
  if (files == nullptr) return next(path, flags, mode);
  if (sim_refused(*files, true, true)) return -1;
  const bool existed = ::access(path, F_OK) == 0;
  const int fd = next(path, flags, mode);
  if (fd >= 0 && !existed) files->created(std::filesystem::path(path));
  return fd;
}

int openat(int directory, const char* name, int flags, ...) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(openat);
  va_list more;
  va_start(more, flags);
  const auto mode = (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(more, unsigned) : 0U;
  va_end(more);
  SimFiles* const files = (flags & O_CREAT) != 0 && directory != AT_FDCWD ? sim_files(directory) : nullptr;
  if (files == nullptr) return next(directory, name, flags, mode);
  if (sim_refused(*files, true, true)) return -1;
  const bool existed = ::faccessat(directory, name, F_OK, 0) == 0;
  const int fd = next(directory, name, flags, mode);
  if (fd >= 0 && !existed) files->created(directory, name);
  return fd;
}

ssize_t pwrite(int fd, const void* bytes, size_t count, off_t offset) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pwrite);
  SimFiles* const files = sim_files(fd);
  if (files == nullptr) return next(fd, bytes, count, offset);
  if (sim_refused(*files, true, true)) return -1;
  files->wrote(fd);
  return next(fd, bytes, count, offset);
}

ssize_t copy_file_range(int from, off_t* at, int to, off_t* into, size_t count, unsigned flags) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(copy_file_range);
  SimFiles* const files = sim_files(to);
  if (files == nullptr) return next(from, at, to, into, count, flags);
  if (sim_refused(*files, true, true)) return -1;
  files->wrote(to);
  return next(from, at, to, into, count, flags);
}

int ftruncate(int fd, off_t bytes) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(ftruncate);
  SimFiles* const files = sim_files(fd);
  if (files == nullptr) return next(fd, bytes);
  if (sim_refused(*files, false, false)) return -1;
  files->wrote(fd);
  return next(fd, bytes);
}

/// Nothing goes to a real disk: that it is safe now is all that counts.
int fsync(int fd) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(fsync);
  SimFiles* const files = sim_files(fd);
  if (files == nullptr) return next(fd);
  if (sim_refused(*files, true, true)) return -1;
  files->synced(fd);
  return 0;
}

int mkdir(const char* path, mode_t mode) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(mkdir);
  SimFiles* const files = sim_files(path);
  if (files == nullptr) return next(path, mode);
  if (sim_refused(*files, true, false)) return -1;
  const int made = next(path, mode);
  if (made == 0) files->created(std::filesystem::path(path));
  return made;
}

int rename(const char* from, const char* to) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(rename);
  SimFiles* const files = sim_files(to);
  if (files == nullptr) return next(from, to);
  if (sim_refused(*files, false, false)) return -1;
  const std::string backup = files->back_up(to);
  const int renamed = next(from, to);
  if (renamed == 0) files->renamed(from, to, false, backup);
  return renamed;
}

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(renameat2);
  SimFiles* const files = sim_files(to);
  if (files == nullptr) return next(from_at, from, to_at, to, flags);
  if (sim_refused(*files, false, false)) return -1;
  const int renamed = next(from_at, from, to_at, to, flags);
  if (renamed == 0) files->renamed(from, to, (flags & RENAME_EXCHANGE) != 0, "");
  return renamed;
}

int linkat(int from_at, const char* from, int to_at, const char* to, int flags) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(linkat);
  SimFiles* const files = to_at == AT_FDCWD ? nullptr : sim_files(to_at);
  if (files == nullptr) return next(from_at, from, to_at, to, flags);
  if (sim_refused(*files, true, false)) return -1;
  const int linked = next(from_at, from, to_at, to, flags);
  if (linked == 0) files->created(to_at, to);
  return linked;
}

int unlink(const char* path) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(unlink);
  SimFiles* const files = sim_files(path);
  if (files != nullptr && sim_refused(*files, false, false)) return -1;
  return next(path);
}

int unlinkat(int directory, const char* name, int flags) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(unlinkat);
  SimFiles* const files = directory == AT_FDCWD ? sim_files(name) : sim_files(directory);
  if (files != nullptr && sim_refused(*files, false, false)) return -1;
  return next(directory, name, flags);
}

int rmdir(const char* path) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(rmdir);
  SimFiles* const files = sim_files(path);
  if (files != nullptr && sim_refused(*files, false, false)) return -1;
  return next(path);
}

int remove(const char* path) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(remove);
  SimFiles* const files = sim_files(path);
  if (files != nullptr && sim_refused(*files, false, false)) return -1;
  return next(path);
}

}  // extern "C"
// NOLINTEND(misc-definitions-in-headers, cert-dcl50-cpp)
