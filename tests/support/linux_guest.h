// Linux guests of the tests: kernel and initramfs, their marks on the serial console, and what these must say.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "linux/content.h"
#include "support/daemons.h"

namespace fvmm::test {

inline constexpr std::chrono::seconds kLinuxBootWait{240};
inline constexpr std::chrono::seconds kLinuxBeatWait{120};
inline constexpr unsigned kLinuxPages = 256;  // that each thread of init dirties

/// Path of the kernel "up" or "smp"; nothing when there is none (tools/build-linux says what to do, in `why`).
inline std::optional<std::string> linux_kernel(const std::string& name, std::string& why) {
  const std::string base = "/tmp/fvmm-linux-" + std::to_string(::getpid());
  Process find({std::string(FVMM_SOURCE_DIR) + "/tools/build-linux", "--cached", name}, base + ".out", base + ".err");
  const auto code = find.wait(std::chrono::seconds(60));
  std::string path = read_text(base + ".out");
  why = read_text(base + ".err");
  std::filesystem::remove(base + ".out");
  std::filesystem::remove(base + ".err");
  if (code != 0) return std::nullopt;
  path.erase(path.find_last_not_of('\n') + 1);
  return path;
}

/// What docs/linux.md gives for PVM hosts, and harms nowhere; the last words are init's.
inline std::string linux_cmdline(unsigned cpus, unsigned disk_blocks = 0) {
  return "console=ttyS0 noxsave clearcpuid=151,59,295,308,298,311,312,150,129,131,297,580,514 nokaslr mitigations=off "
         "nosmap nosmep tsc=reliable no_timer_check random.trust_cpu=on panic=-1 reboot=k rodata=off lpj=25961480 "
         "quiet "
         "-- ws=" +
         std::to_string(kLinuxPages) + " cpus=" + std::to_string(cpus) +
         (disk_blocks == 0 ? "" : " disk=" + std::to_string(disk_blocks));
}

/// One "BEAT cpu= step= sum=" line.
struct LinuxMark {
  unsigned cpu = 0;
  std::uint64_t step = 0;
  std::uint64_t sum = 0;
};

/// All whole marks of a serial log, oldest first. A log may begin or end in the middle of a line.
inline std::vector<LinuxMark> linux_marks(const std::string& log) {
  std::vector<LinuxMark> marks;
  for (std::size_t at = log.find("BEAT cpu="); at != std::string::npos; at = log.find("BEAT cpu=", at + 1)) {
    const std::size_t end = log.find('\n', at);
    if (end == std::string::npos) break;
    LinuxMark mark;
    unsigned long long step = 0;
    unsigned long long sum = 0;
    if (std::sscanf(log.substr(at, end - at).c_str(), "BEAT cpu=%u step=%llu sum=%llx", &mark.cpu, &step, &sum) != 3) {
      continue;
    }
    mark.step = step;
    mark.sum = sum;
    marks.push_back(mark);
  }
  return marks;
}

/// The same work as a thread of init, done here.
class LinuxModel {
 public:
  explicit LinuxModel(unsigned cpu) : words_(std::size_t{kLinuxPages} * kContentWordsPerPage) {
    content_ = {.words = words_.data(), .pages = kLinuxPages, .seed = cpu + 1, .step = 0, .sum = 0};
  }
  /// The sum after `step` steps; steps may only grow.
  std::uint64_t sum_at(std::uint64_t step) {
    while (content_.step < step) content_step(&content_);
    return content_.sum;
  }

 private:
  std::vector<std::uint64_t> words_;
  Content content_{};
};

/// Whether every mark in a log has the sum that its step must have, and never goes back. One page lost, stale or torn
/// by a clone or a migration makes every later sum wrong.
inline ::testing::AssertionResult linux_sums_hold(const std::string& log, unsigned cpus) {
  for (unsigned cpu = 0; cpu < cpus; ++cpu) {
    LinuxModel model(cpu);
    std::uint64_t last = 0;
    int seen = 0;
    for (const LinuxMark& mark : linux_marks(log)) {
      if (mark.cpu != cpu) continue;
      if (mark.step < last) return ::testing::AssertionFailure() << "CPU " << cpu << " goes back to step " << mark.step;
      if (const std::uint64_t wanted = model.sum_at(mark.step); mark.sum != wanted) {
        return ::testing::AssertionFailure()
               << "CPU " << cpu << ", step " << mark.step << ": sum " << std::hex << mark.sum << ", must be " << wanted;
      }
      last = mark.step;
      ++seen;
    }
    if (seen == 0) return ::testing::AssertionFailure() << "no mark of CPU " << cpu;
  }
  return ::testing::AssertionSuccess();
}

/// Waits until every CPU has written marks that are not yet there, and checks all of the log.
inline ::testing::AssertionResult linux_goes_on(Host& host, const std::string& vm, unsigned cpus, unsigned beats = 2) {
  const std::size_t before = host.serial(vm).size();
  std::string log;
  const bool on = wait_until(
      [&] {
        log = host.serial(vm);
        if (log.find("Kernel panic") != std::string::npos) return true;  // said below
        std::map<unsigned, unsigned> fresh;
        for (const LinuxMark& mark : linux_marks(log.substr(std::min(before, log.size())))) ++fresh[mark.cpu];
        for (unsigned cpu = 0; cpu < cpus; ++cpu) {
          if (fresh[cpu] < beats) return false;
        }
        return true;
      },
      kLinuxBeatWait);
  if (!on || log.find("Kernel panic") != std::string::npos)
    return ::testing::AssertionFailure() << vm << " on " << host.name() << " does not go on; it wrote:\n" << log;
  return linux_sums_hold(log, cpus);
}

/// Waits until the guest has gone on with its disk since this call; it has never complained.
inline ::testing::AssertionResult linux_disk_goes_on(Host& host, const std::string& vm) {
  const std::size_t before = host.serial(vm).size();
  std::string log;
  const bool on = wait_until(
      [&] {
        log = host.serial(vm);
        const std::size_t first = log.find("DISK step=", before);
        return log.find("ERROR") != std::string::npos ||
               (first != std::string::npos && log.find("DISK step=", first + 1) != std::string::npos);
      },
      kLinuxBeatWait);
  if (on && log.find("ERROR") == std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << vm << " on " << host.name() << " does not go on; it wrote:\n" << log;
}

/// Runs a program of the host to its end; what it wrote.
inline std::string run_tool(const std::filesystem::path& scratch, const std::vector<std::string>& words, int& code) {
  Process process(words, scratch.string() + ".out", scratch.string() + ".out");
  code = process.wait(std::chrono::seconds(60)).value_or(-1);
  return read_text(scratch.string() + ".out");
}

/// Skips without the kernel; fails instead when FVMM_REQUIRE_LINUX=1.
#define FVMM_NEEDS_LINUX(name, path)                                               \
  FVMM_NEEDS_KVM();                                                                \
  std::string path;                                                                \
  do {                                                                             \
    std::string why;                                                               \
    const auto found = fvmm::test::linux_kernel(name, why);                        \
    if (!found) {                                                                  \
      const char* const required = std::getenv("FVMM_REQUIRE_LINUX");              \
      if (required != nullptr && std::string_view(required) == "1") FAIL() << why; \
      GTEST_SKIP() << why;                                                         \
    }                                                                              \
    path = *found;                                                                 \
  } while (false)

}  // namespace fvmm::test
