// Disk images of tests, and what guests/blk says about its disk. After support/daemons.h.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/file.h"
#include "support/daemons.h"

namespace fvmm::test {

/// A sparse image of zeros.
inline std::string disk_image(const std::filesystem::path& path, std::uint64_t bytes = 2 << 20) {
  const UniqueFd file = open_file(path, O_RDWR | O_CREAT).value();
  FVMM_CHECK(::ftruncate(file.get(), static_cast<off_t>(bytes)) == 0, "an image of a test");
  return path.string();
}

/// blk.elf with these disks, started; it has written to the first one.
inline ::testing::AssertionResult boot_disk_guest(Host& host, const std::string& vm,
                                                  const std::vector<std::string>& disks,
                                                  const std::string& words = "seed=7 rate=500") {
  std::vector<std::string> command{"vm",       "create",         vm,          "--memory",         "32M",
                                   "--kernel", guest("blk.elf"), "--cmdline", words + " beat=50", "--start"};
  for (const std::string& disk : disks) command.insert(command.end(), {"--disk", disk});
  const Ctl created = host.ctl(command);
  if (created.code != 0) return ::testing::AssertionFailure() << created;
  if (!host.serial_contains(vm, "DK n=2 ")) {
    return ::testing::AssertionFailure() << vm << " does not get through to its disk: " << host.serial(vm);
  }
  return ::testing::AssertionSuccess();
}

/// The last whole line of the disk guest.
inline std::string last_disk_line(const std::string& serial) {
  const std::size_t end = serial.rfind('\n');
  if (end == std::string::npos) return "";
  const std::size_t begin = serial.rfind("DK n=", end);
  return begin == std::string::npos ? "" : serial.substr(begin, serial.find('\n', begin) - begin);
}

/// The guest has read back what it wrote since this call, and never complained.
inline ::testing::AssertionResult disk_guest_goes_on(Host& host, const std::string& vm) {
  const auto reads = [&] { return field(last_disk_line(host.serial(vm)), "reads").value_or(0); };
  const std::size_t size = host.serial(vm).size();
  const bool fresh = wait_until([&] { return host.serial(vm).find("DK n=", size) != std::string::npos; });
  const std::uint64_t before = reads();
  const bool on = fresh && wait_until([&] { return reads() >= before + 20; });
  const std::string all = host.serial(vm);
  if (!on) return ::testing::AssertionFailure() << vm << " on " << host.name() << " does not go on: " << all;
  const std::string wrong = complaint(all);
  if (!wrong.empty() || field(last_disk_line(all), "errors") != 0U) {
    return ::testing::AssertionFailure() << vm << " on " << host.name() << " complains: " << wrong;
  }
  return ::testing::AssertionSuccess();
}

}  // namespace fvmm::test
