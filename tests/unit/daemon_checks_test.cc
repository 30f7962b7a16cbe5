#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/units.h"
#include "daemon/checks.h"
#include "daemon/migration_service.h"
#include "daemon/options.h"
#include "memory/layout.h"
#include "migration/pacer.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

TEST(CheckName, TakesOneTo64OfTheAllowedCharacters) {
  EXPECT_TRUE(check_name("VM", "a"));
  EXPECT_TRUE(check_name("VM", "Web_1.test-x"));
  EXPECT_TRUE(check_name("VM", std::string(64, 'a')));
  for (const std::string bad : {"", ".", "..", "a b", "a/b", "\xc3\xa4"}) {
    EXPECT_EQ(check_name("VM", bad).error().code(), Errc::kInvalidArgument) << bad;
  }
  EXPECT_FALSE(check_name("VM", std::string(65, 'a')));
}

TEST(CheckConfig, EachLimitHoldsAtItAndOnePast) {
  const v1::VmConfig good = test::vm_record("web1", v1::VM_CREATED).config();
  ASSERT_TRUE(check_config(good));
  auto config = good;
  config.set_memory_bytes(memory::kRamBytesMin);
  EXPECT_TRUE(check_config(config));
  config.set_memory_bytes(memory::kRamBytesMin - kPageBytes);
  EXPECT_FALSE(check_config(config));
  config.set_memory_bytes(memory::kRamBytesMin + 1);
  EXPECT_FALSE(check_config(config));
  config.set_memory_bytes(memory::kRamBytesMax);
  EXPECT_TRUE(check_config(config));
  config.set_memory_bytes(memory::kRamBytesMax + kPageBytes);
  EXPECT_FALSE(check_config(config));
  config = good;
  config.set_cmdline(std::string(kCmdlineBytesMax, 'x'));
  EXPECT_TRUE(check_config(config));
  config.set_cmdline(std::string(kCmdlineBytesMax + 1, 'x'));
  EXPECT_FALSE(check_config(config));
}

TEST(CheckConfig, VcpusOutOfRangeAreRefusedWithTheRange) {
  auto config = test::vm_record("web1", v1::VM_CREATED).config();
  for (const unsigned vcpus : {0U, kVcpusMax + 1}) {
    config.set_vcpus(vcpus);
    const auto checked = check_config(config);
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code(), Errc::kInvalidArgument);
    EXPECT_NE(checked.error().message().find("vcpus must be 1"), std::string::npos);
  }
}

TEST(CheckConfig, VirtioDevicesAreCheckedToo) {
  auto config = test::vm_record("web1", v1::VM_CREATED).config();
  config.add_virtio()->mutable_rng();
  EXPECT_TRUE(check_config(config));
  config.add_virtio()->mutable_rng();
  EXPECT_EQ(check_config(config).error().code(), Errc::kInvalidArgument);
}

TEST(CheckConfig, UnknownCpuTemplateIsRefusedWithTheKnownOnes) {
  auto config = test::vm_record("web1", v1::VM_CREATED).config();
  config.set_cpu_template("baseline");
  EXPECT_TRUE(check_config(config));
  config.set_cpu_template("z80");
  const auto checked = check_config(config);
  ASSERT_FALSE(checked);
  EXPECT_NE(checked.error().message().find("host, baseline, pvm"), std::string::npos);
}

TEST(CheckConfig, UnknownTrackingIsRefusedWithTheKnownOnes) {
  auto config = test::vm_record("web1", v1::VM_CREATED).config();
  for (const auto* known : {"", "log", "scan"}) {
    config.set_tracking(known);
    EXPECT_TRUE(check_config(config)) << known;
  }
  config.set_tracking("guess");
  const auto checked = check_config(config);
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code(), Errc::kInvalidArgument);
  EXPECT_NE(checked.error().message().find("log, scan"), std::string::npos);
}

TEST(CheckFits, TakesAllThatIsAvailableAndNamesBothSizesPastIt) {
  auto config = test::vm_record("web1", v1::VM_CREATED).config();
  config.set_memory_bytes(1 * kGiB);
  EXPECT_TRUE(check_fits(config, {4 * kGiB, 1 * kGiB}));
  const auto over = check_fits(config, {4 * kGiB, 1 * kGiB - 1});
  ASSERT_FALSE(over);
  EXPECT_EQ(over.error().code(), Errc::kResourceExhausted);
  EXPECT_NE(over.error().message().find("1 GiB"), std::string::npos);
}

TEST(CheckFiles, NamesWhatIsWrongWithTheKernel) {
  const test::ScratchDirectory scratch;
  v1::VmConfig config;
  EXPECT_EQ(check_files(config).error().code(), Errc::kInvalidArgument);
  config.set_kernel("vmlinux");
  EXPECT_EQ(check_files(config).error().code(), Errc::kInvalidArgument);
  config.set_kernel((scratch.path() / "absent").string());
  EXPECT_EQ(check_files(config).error().code(), Errc::kNotFound);
  config.set_kernel(scratch.path().string());
  EXPECT_EQ(check_files(config).error().code(), Errc::kInvalidArgument);
  ASSERT_EQ(::mkfifo((scratch.path() / "fifo").c_str(), 0600), 0);
  config.set_kernel((scratch.path() / "fifo").string());
  EXPECT_EQ(check_files(config).error().code(), Errc::kInvalidArgument);
  ASSERT_TRUE(replace_file(scratch.path() / "kernel", "ELF"));
  config.set_kernel((scratch.path() / "kernel").string());
  EXPECT_TRUE(check_files(config));
  config.set_initrd((scratch.path() / "absent").string());
  const auto initrd = check_files(config);
  ASSERT_FALSE(initrd);
  EXPECT_NE(initrd.error().message().find("initrd"), std::string::npos);
}

TEST(HostMemory, ReadsTotalAndAvailableAndMissesNeither) {
  const auto memory = parse_meminfo("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   50 kB\n");
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->total, 100 * kKiB);
  EXPECT_EQ(memory->available, 50 * kKiB);
  EXPECT_EQ(parse_meminfo("MemTotal: 100 kB\n").error().code(), Errc::kDataLoss);
  EXPECT_TRUE(read_host_memory());
}

TEST(CheckMigrate, FillsDefaultsAndRefusesEachBadValue) {
  v1::MigrateRequest good;
  good.set_vm("web1");
  good.set_to("127.0.0.1:7000");
  const auto checked = check_migrate(good, false);
  ASSERT_TRUE(checked);
  EXPECT_EQ(checked->timeout_ms(), kMigrateTimeoutMs);
  EXPECT_EQ(checked->max_downtime_us(), 5000U);
  auto request = good;
  for (const char* mode : {"", "auto", "suspend", "live", "precopy"}) {
    request.set_mode(mode);
    EXPECT_TRUE(check_migrate(request, false)) << mode;
  }
  request.set_mode("teleport");
  EXPECT_EQ(check_migrate(request, false).error().code(), Errc::kInvalidArgument);
  request = good;
  request.set_to("192.0.2.1:7000");
  EXPECT_EQ(check_migrate(request, false).error().code(), Errc::kInvalidArgument);
  request = good;
  request.set_bandwidth_bytes_s(migration::kBandwidthMin);
  EXPECT_TRUE(check_migrate(request, false));
  request.set_bandwidth_bytes_s(migration::kBandwidthMin - 1);
  EXPECT_EQ(check_migrate(request, false).error().code(), Errc::kInvalidArgument);
  request = good;
  request.set_connections(1000);
  EXPECT_EQ(check_migrate(request, false).error().code(), Errc::kInvalidArgument);
  request = good;
  request.set_timeout_ms(kMigrateTimeoutMsMax);
  EXPECT_TRUE(check_migrate(request, false));
  request.set_timeout_ms(kMigrateTimeoutMsMax + 1);
  EXPECT_EQ(check_migrate(request, false).error().code(), Errc::kInvalidArgument);
  request = good;
  request.set_test_hook("cut:commit");
  EXPECT_EQ(check_migrate(request, false).error().code(), Errc::kPermissionDenied);
  EXPECT_TRUE(check_migrate(request, true));
}

TEST(Options, CommandLineFillsTheDaemonsOptions) {
  const char* const line[] = {"fvmmd",    "--runtime-dir",  "/tmp/r", "--state-dir", "/tmp/s",
                              "--listen", "127.0.0.1:7000", "--warm", "1Gx2",        "--warm",
                              "512M",     "--warm-workers", "3"};
  const Invocation invocation = parse_command_line(static_cast<int>(std::size(line)), line);
  const auto* options = std::get_if<DaemonOptions>(&invocation);
  ASSERT_NE(options, nullptr);
  EXPECT_EQ(options->runtime_directory, "/tmp/r");
  EXPECT_EQ(options->listen, "127.0.0.1:7000");
  EXPECT_EQ(options->warm.at(Shape{kGiB, 1}), 2U);
  EXPECT_EQ(options->warm.at(Shape{512 * kMiB, 1}), 1U);
  EXPECT_EQ(options->warm_workers, 3U);
}

TEST(Options, ConfigurationFileHasTheSameKeysAndRefusesOthers) {
  const test::ScratchDirectory scratch;
  const std::string file = (scratch.path() / "fvmmd.conf").string();
  ASSERT_TRUE(replace_file(file,
                           "# comment\nruntime-dir = /tmp/r\nlisten = 127.0.0.1:7001\nwarm-workers = 2\n"
                           "test-hooks = true\n"));
  const char* const line[] = {"fvmmd", "--config", file.c_str()};
  const Invocation invocation = parse_command_line(3, line);
  const auto* options = std::get_if<DaemonOptions>(&invocation);
  ASSERT_NE(options, nullptr);
  EXPECT_EQ(options->runtime_directory, "/tmp/r");
  EXPECT_EQ(options->listen, "127.0.0.1:7001");
  EXPECT_EQ(options->warm_workers, 2U);
  EXPECT_TRUE(options->test_hooks);
  ASSERT_TRUE(replace_file(file, "runtime-directory = /tmp/r\n"));
  EXPECT_EQ(std::get<int>(parse_command_line(3, line)), 2);
}

TEST(Options, WorkerModeHasItsOwnLine) {
  const char* const line[] = {"fvmmd",      "--worker", "--socket", "/tmp/w.sock", "--memory",
                              "1073741824", "--vcpus",  "1",        "--ready-fd",  "3"};
  const Invocation invocation = parse_command_line(static_cast<int>(std::size(line)), line);
  const auto* worker = std::get_if<WorkerOptions>(&invocation);
  ASSERT_NE(worker, nullptr);
  EXPECT_EQ(worker->memory_bytes, kGiB);
  EXPECT_EQ(worker->ready_fd, 3);
  EXPECT_FALSE(worker->test_hooks);
}

TEST(Options, BadWarmSizesAreRefused) {
  for (const char* bad : {"", "x2", "8Gx", "8Gx0", "8Gx2y", "1M", "8Q"}) EXPECT_FALSE(parse_warm(bad)) << bad;
  EXPECT_TRUE(parse_warm("16M"));
}

}  // namespace
}  // namespace fvmm::daemon
