// Generations of a VM whose devices write its memory at that very moment: the kernel, reading from a disk, and a
// network's thread. Each generation is compared with memory at its instant.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <future>

#include "base/file.h"
#include "devices/virtio_blk.h"
#include "migration/cow.h"
#include "support/image_sink.h"
#include "support/net_peer.h"
#include "support/temp_dir.h"
#include "support/userfault.h"
#include "support/vm_migration.h"
#include "support/witness.h"
#include "vmm/net_config.h"

namespace fvmm {
namespace {

constexpr std::uint64_t kBytes = 32 * kMiB;
constexpr memory::PageRange kAll{.first = 0, .count = kBytes / kPageBytes};
constexpr std::uint64_t kDiskBytes = 2 * kMiB;
constexpr int kGenerations = 100;
constexpr std::uint64_t kBetween = 20;    // requests, at least, between two generations
constexpr unsigned kWaitsMax = 32;        // for the device, in one generation
constexpr unsigned kFramesOfATurn = 101;  // odd, so that no buffer of the guest gets the same frame each time

/// How many requests a device has served so far: of the disk, one at a time; of the network, frames. Thread: any.
using Answered = std::function<std::uint64_t()>;

/// Waits until so many more are answered; false at the deadline.
bool answers(const Answered& answered, std::uint64_t more) {
  const std::uint64_t wanted = answered() + more;
  const Deadline deadline = Deadline::after(std::chrono::seconds(30));
  while (answered() < wanted) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

class DeviceWrites : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    FVMM_NEEDS_USERFAULT();
  }
  static vmm::Vm& vm_of(const std::unique_ptr<migration::Guest>& guest) { return test::vm_of(*guest); }

  /// Boots the guest with the devices of the configuration, up to its line `ready`.
  static std::unique_ptr<migration::Guest> start(const v1::VmConfig& config, const std::string& name,
                                                 const std::string& options, const std::string& ready) {
    auto guest = [&]() -> Result<std::unique_ptr<migration::Guest>> {
      auto vm = FVMM_TRY(test::make_vm(kBytes));
      vm->give_nets(FVMM_TRY(vmm::open_nets(config)));
      FVMM_TRY(vm->attach_virtio(config, {}));
      FVMM_TRY(vm->memory().map_zero());
      FVMM_TRY(vm->boot({.kernel = test::guest(name), .initrd = "", .cmdline = test::cmdline_for(*vm, options)}));
      auto made = test::guest_of(std::move(vm), config);
      FVMM_TRY(made->machine->resume());
      return made;
    }();
    if (!guest) {
      ADD_FAILURE() << guest.error().message();
      return nullptr;
    }
    test::wait_for_output(vm_of(*guest), ready);
    return std::move(*guest);
  }

  /// While the guest runs, the first pages wait for the device to answer again before they go to the sink: it writes in
  /// the middle of each generation. Every other one begins with all pages, and most are copied before those writes.
  static void take_generations(migration::Guest& guest, bool by_cow, const Answered& answered) {
    migration::Machine& machine = *guest.machine;
    const auto copy = by_cow ? testing::instant_copy_of(machine.memory()) : nullptr;
    testing::Witness witness(machine);
    testing::ImageSink image(kAll.count);
    unsigned waits = 0;
    image.on_put = [&](memory::PageRange) -> Status {
      if (machine.paused() || waits++ >= kWaitsMax || answers(answered, 2)) return {};
      return Error(Errc::kDeadlineExceeded, "the device does not answer any more");
    };
    memory::Bitmap all(kAll.count);
    all.set_all();
    std::uint64_t during = 0;
    std::uint64_t faults = 0;
    for (int generation = 0; generation < kGenerations; ++generation) {
      ASSERT_TRUE(answers(answered, kBetween)) << "after generation " << generation;
      if (generation % 2 == 0) guest.since_base->put_back(all);
      waits = 0;
      const std::uint64_t before = answered();
      const auto taken = by_cow ? migration::cow(witness, *guest.since_base, image, *copy)
                                : migration::chase(witness, *guest.since_base, image);
      ASSERT_TRUE(taken.ok()) << generation << ": " << taken.error().message();
      ASSERT_EQ(image.digest(), witness.instant) << generation;
      ASSERT_FALSE(machine.paused());
      during += answered() - before;
      faults += taken->faults;
    }
    EXPECT_GE(during, kGenerations / 2 * kWaitsMax) << "the device went on writing while a generation was copied";
    EXPECT_EQ(faults > 0, by_cow) << "a write of the device, or of the guest, waited for its page";
    std::printf("%d generations by %s: %llu requests during them, %llu faults\n", kGenerations,
                by_cow ? "cow" : "chase", static_cast<unsigned long long>(during),
                static_cast<unsigned long long>(faults));
  }

  const testing::TempDir directory_;
};

TEST_P(DeviceWrites, OfADiskAreInTheGenerationOfTheirInstant) {
  const std::string image = (directory_.path() / "disk").string();
  ASSERT_EQ(::ftruncate(open_file(image, O_RDWR | O_CREAT).value().get(), kDiskBytes), 0);
  v1::VmConfig config = test::vm_config(kBytes);
  config.add_disks()->set_path(image);
  const auto guest = start(config, "blk.elf", "seed=7 rate=100000 beat=50", "DK n=2 ");
  ASSERT_NE(guest, nullptr);
  const auto& disk = dynamic_cast<devices::VirtioBlk&>(vm_of(guest).virtio().device(0).device());
  take_generations(*guest, GetParam(), [&] { return disk.counters().requests; });
  const std::string line = test::wait_for_next(vm_of(guest), "DK ");
  EXPECT_EQ(test::field(line, "errors"), 0U) << vm_of(guest).serial_output()->recent();
  EXPECT_EQ(disk.counters().failed, 0U);
}

TEST_P(DeviceWrites, OfANetworkAreInTheGenerationOfTheirInstant) {
  testing::NetPeer peer((directory_.path() / "net").string());
  v1::VmConfig config = test::vm_config(kBytes);
  config.add_nets()->set_socket(peer.path());
  vmm::give_macs(config);
  const auto guest = start(config, "echo.elf", "", "FVMM echo slot=0");
  ASSERT_NE(guest, nullptr);
  ASSERT_TRUE(peer.accept());
  std::atomic<bool> enough = false;
  auto load = std::async(std::launch::async, [&] {
    auto good = ::testing::AssertionSuccess();
    while (good && !enough) good = testing::echoes(peer, kFramesOfATurn);
    return good;
  });
  take_generations(*guest, GetParam(), [&] { return vm_of(guest).nets().at(0)->counters().received_frames; });
  enough = true;
  EXPECT_TRUE(load.get());
  const std::string line = test::wait_for_next(vm_of(guest), "NET ");
  EXPECT_EQ(test::field(line, "errors"), 0U) << vm_of(guest).serial_output()->recent();
}

INSTANTIATE_TEST_SUITE_P(Engines, DeviceWrites, ::testing::Bool(),
                         [](const auto& engine) { return engine.param ? "cow" : "chase"; });

}  // namespace
}  // namespace fvmm
