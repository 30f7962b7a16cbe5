// Processes that are killed in the middle of their work, and disks that are full.
#pragma once

#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/result.h"

namespace fvmm::testing {

/// Runs `work` in a child and waits for its end.
template <class Work>
int status_of_child(Work work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

inline bool was_killed(int status) {
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/// Runs `work` in a child whose mount namespace has a tmpfs with `options` on `where`. `work` returns what was wrong,
/// or nothing. Returns that; "skip: ..." where mounting is not permitted.
template <class Work>
std::string on_tmpfs(const std::filesystem::path& where, const char* options, Work work) {
  int answer[2];
  EXPECT_EQ(::pipe(answer), 0);
  const int status = status_of_child([&] {
    const bool mounted = ::unshare(CLONE_NEWNS) == 0 &&
                         ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                         ::mount("tmpfs", where.c_str(), "tmpfs", 0, options) == 0;
    const std::string wrong = mounted ? work() : std::string("skip: mount: ") + ::strerror(errno);
    (void)!::write(answer[1], wrong.data(), wrong.size());
  });
  ::close(answer[1]);
  std::string wrong(4096, '\0');
  wrong.resize(static_cast<std::size_t>(std::max<ssize_t>(0, ::read(answer[0], wrong.data(), wrong.size()))));
  ::close(answer[0]);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return "the child died";
  return wrong;
}

template <class T>
std::string not_exhausted(const Result<T>& result, std::string_view doing) {
  if (!result.ok() && result.error().code() == Errc::kResourceExhausted) return {};
  return std::string(doing) + ": " + (result.ok() ? "worked" : result.error().message());
}

}  // namespace fvmm::testing

#define SKIP_OR_EXPECT_GOOD(wrong)                      \
  if (wrong.starts_with("skip")) GTEST_SKIP() << wrong; \
  EXPECT_EQ(wrong, "")
