// Generations of a VM whose devices write its memory at that very moment: the kernel, reading from a disk, a network's
// thread, and a balloon that gives pages back. Each generation is compared with memory at its instant.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <future>

#include "base/file.h"
#include "devices/virtio_balloon.h"
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
constexpr std::uint64_t kBetween = 10;      // requests, at least, between two generations
constexpr int kWholeEvery = 4;              // generations; such a one begins with all pages
constexpr unsigned kWaitsMax = 16;          // for the device, in one generation
constexpr std::uint64_t kFramesAhead = 24;  // of what is waited for: there are some on their way
constexpr std::uint64_t kEnough = ~0ULL;

/// A device at work. Thread: any.
struct Work {
  std::function<std::uint64_t()> answered;  // requests so far: of the disk, one at a time; of the network, frames
  std::function<void(std::uint64_t)> bring = [](std::uint64_t) {};  // so many must come, in all
};

/// Waits until so many more are answered; false at the deadline.
bool answers(const Work& work, std::uint64_t more) {
  const std::uint64_t wanted = work.answered() + more;
  work.bring(wanted);
  const Deadline deadline = Deadline::after(std::chrono::seconds(30));
  while (work.answered() < wanted) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

/// A frame that is not for echo.elf, which gives its buffer back as it is.
std::vector<std::byte> ignored_frame(unsigned number) {
  std::vector<std::byte> frame = testing::echo_frame(60 + (number * 97) % 1455, number);
  frame[13] = std::byte{0xb6};  // the other experimental EtherType
  return frame;
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
  /// the middle of each generation. Some begin with all pages, of which most are copied before those writes; in the
  /// others the device writes to some of its pages only: what it wrote to them is known by its marks, until the guest
  /// looks, for KVM may take a first look at a page for a write.
  static void take_generations(migration::Guest& guest, bool by_cow, const Work& work) {
    migration::Machine& machine = *guest.machine;
    const auto copy = by_cow ? testing::instant_copy_of(machine.memory()) : nullptr;
    testing::Witness witness(machine);
    testing::ImageSink image(kAll.count);
    unsigned waits = 0;
    image.on_put = [&](memory::PageRange) -> Status {
      if (machine.paused() || waits == 0) return {};
      --waits;
      if (answers(work, 2)) return {};
      return Error(Errc::kDeadlineExceeded, "the device does not answer any more");
    };
    memory::Bitmap all(kAll.count);
    all.set_all();
    std::uint64_t during = 0;
    std::uint64_t faults = 0;
    for (int generation = 0; generation < kGenerations; ++generation) {
      ASSERT_TRUE(answers(work, kBetween)) << "after generation " << generation;
      const bool whole = generation % kWholeEvery == 0;
      if (whole) guest.since_base->put_back(all);
      waits = whole ? kWaitsMax : 1;
      const std::uint64_t before = work.answered();
      const auto taken = by_cow ? migration::cow(witness, *guest.since_base, image, *copy)
                                : migration::chase(witness, *guest.since_base, image);
      ASSERT_TRUE(taken.ok()) << generation << ": " << taken.error().message();
      ASSERT_EQ(image.digest(), witness.instant) << generation;
      ASSERT_FALSE(machine.paused());
      during += work.answered() - before;
      faults += taken->faults;
    }
    EXPECT_GE(during, kGenerations / kWholeEvery * kWaitsMax)
        << "the device went on writing while a generation was copied";
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
  const auto guest = start(config, "blk.elf", "seed=7 rate=100000 keep=64 beat=50", "DK n=2 ");
  ASSERT_NE(guest, nullptr);
  const auto& disk = dynamic_cast<devices::VirtioBlk&>(vm_of(guest).virtio().device(0).device());
  take_generations(*guest, GetParam(), {.answered = [&] { return disk.counters().requests; }});
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
  std::atomic<std::uint64_t> wanted = 0;  // frames; kEnough: no more
  auto load = std::async(std::launch::async, [&] {
    unsigned sent = 0;
    for (std::uint64_t now = wanted; now != kEnough; now = wanted) {
      if (sent >= now) {
        wanted.wait(now);
      } else if (!peer.send(ignored_frame(++sent))) {
        return false;
      }
    }
    return true;
  });
  const auto bring = [&](std::uint64_t frames) {
    wanted = frames;
    wanted.notify_one();
  };
  take_generations(*guest, GetParam(),
                   {.answered = [&] { return vm_of(guest).nets().at(0)->counters().received_frames; },
                    .bring = [&](std::uint64_t frames) { bring(frames + kFramesAhead); }});
  bring(kEnough);
  EXPECT_TRUE(load.get());
  EXPECT_TRUE(testing::echoes(peer, 500));
  const std::string line = test::wait_for_next(vm_of(guest), "NET ");
  EXPECT_EQ(test::field(line, "errors"), 0U) << vm_of(guest).serial_output()->recent();
}

// No write protection sees a discard: without GuestMemory's keeper a generation by cow would hold the pages that came
// after its instant, and without the mark none would learn of them.
TEST_P(DeviceWrites, OfABalloonAreInTheGenerationOfTheirInstant) {
  v1::VmConfig config = test::vm_config(kBytes);
  config.add_virtio()->mutable_balloon();
  const auto guest = start(config, "balloon.elf", "churn=1 rate=20000 beat=50", "BL n=2 ");
  ASSERT_NE(guest, nullptr);
  const auto& balloon = dynamic_cast<devices::VirtioBalloon&>(vm_of(guest).virtio().device(0).device());
  take_generations(*guest, GetParam(), {.answered = [&] { return balloon.figures().given_back; }});
  const std::string line = test::wait_for_next(vm_of(guest), "BL ");
  EXPECT_EQ(test::field(line, "errors"), 0U) << vm_of(guest).serial_output()->recent();
}

INSTANTIATE_TEST_SUITE_P(Engines, DeviceWrites, ::testing::Bool(),
                         [](const auto& engine) { return engine.param ? "cow" : "chase"; });

}  // namespace
}  // namespace fvmm
