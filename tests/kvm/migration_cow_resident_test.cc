// Engine cow of a guest on a resident template: a private mapping of tmpfs, which userfaultfd can write-protect. Each
// generation is compared with memory at its instant; some are run, and the guest says itself whether they are whole.
#include <fcntl.h>

#include <algorithm>

#include "base/file.h"
#include "memory/resident.h"
#include "migration/cow.h"
#include "support/image_sink.h"
#include "support/stored_template.h"
#include "support/userfault.h"
#include "support/vm_migration.h"
#include "support/witness.h"

namespace fvmm {
namespace {

constexpr std::uint64_t kBytes = 32 * kMiB;
constexpr memory::PageRange kAll{.first = 0, .count = kBytes / kPageBytes};

class CowResidentVm : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    FVMM_NEEDS_USERFAULT();
    ASSERT_TRUE(store_.use_residents(ram_.path() / "resident").ok());
    auto made = test::running_guest("workload.elf", kBytes, "seed=5 ws=8 rate=20000 beat=20");
    ASSERT_TRUE(made.ok()) << made.error().message();
    guest_ = std::move(*made);
    test::wait_for_output(test::vm_of(*guest_), "HB n=2 ");
    ASSERT_TRUE(put_on_resident().ok());
  }
  migration::Machine& machine() { return *guest_->machine; }

  /// The guest goes on as a private mapping of its resident template.
  Status put_on_resident() {
    FVMM_TRY(test::put_on_template(*guest_, store_, "golden"));
    FVMM_TRY(machine().pause());
    // What it wrote since lies in its private pages: the template below is exchanged and they are put back.
    FVMM_TRY(machine().dirty().harvest());
    const memory::Bitmap written = guest_->since_base->pending();
    std::vector<std::byte> now(kBytes);
    std::ranges::copy(machine().memory().pages(kAll), now.begin());
    const auto info = FVMM_TRY(store_.load("golden", {.available_bytes = kGiB}));
    FVMM_TRY(machine().memory().map_template(memory::resident_or_stored(info.resident_file, *guest_->pin)));
    for (const memory::PageRange& range : written.ranges(256)) {
      std::copy_n(now.begin() + static_cast<std::ptrdiff_t>(range.first * kPageBytes), range.count * kPageBytes,
                  machine().memory().pages_for_load(range).begin());
    }
    EXPECT_TRUE(std::ranges::equal(machine().memory().pages(kAll), now));
    return machine().resume();
  }

  /// A VM from an image and a state; what it says after two sweeps.
  std::string run(const std::vector<std::byte>& image, const v1::MachineState& state) {
    auto made = test::make_sibling(test::vm_of(*guest_));
    if (!made) return made.error().message();
    vmm::Vm& clone = **made;
    Status status = clone.memory().map_zero();
    if (status) std::ranges::copy(image, clone.memory().pages_for_load(kAll).begin());
    if (status) status = clone.load_state(state);
    if (status) status = clone.resume();
    return status ? test::verified(clone) : status.error().message();
  }

  const testing::TempDir dir_;
  const testing::TempDir ram_{"/dev/shm"};
  memory::TemplateStore store_ = *memory::TemplateStore::open(dir_.path());
  std::unique_ptr<migration::Guest> guest_;
};

TEST_F(CowResidentVm, HundredsOfGenerationsUnderLoadAreEachOneInstantAndTheTemplateNeverChanges) {
  constexpr int kGenerations = 200;
  constexpr int kRunEvery = 25;
  const auto copy = testing::instant_copy_of(machine().memory());
  testing::Witness witness(machine());
  testing::ImageSink image(kBytes / kPageBytes);
  guest_->since_base->put_back([] {
    memory::Bitmap all(kBytes / kPageBytes);
    all.set_all();
    return all;
  }());  // the first generation is of all pages: also of those that nobody has touched since the mapping
  std::uint64_t faults = 0;
  for (int generation = 0; generation < kGenerations; ++generation) {
    const auto taken = migration::cow(witness, *guest_->since_base, image, *copy);
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    ASSERT_EQ(image.digest(), witness.instant) << generation;
    ASSERT_TRUE(image.came_once(taken->pages)) << generation;
    faults += taken->faults;
    if (generation % kRunEvery != kRunEvery - 1) continue;
    ASSERT_TRUE(machine().pause().ok());  // leaves the CPU to the clone
    EXPECT_EQ(run(image.bytes, taken->state), "") << generation;
    ASSERT_TRUE(machine().resume().ok());
  }
  EXPECT_GT(faults, 0U) << "the guest wrote pages that were not captured yet";
  EXPECT_EQ(test::verified(test::vm_of(*guest_)), "") << "the guest itself";
  EXPECT_EQ(store_.verify("golden")->detail, "");
  const auto resident = *open_file(store_.find("golden")->resident_file, O_RDONLY);
  std::vector<std::byte> kept(kBytes);
  ASSERT_TRUE(read_all(resident.get(), kept, 0).ok());
  std::vector<std::byte> stored(kBytes);
  ASSERT_TRUE(guest_->pin->read_pages(kAll, stored).ok());
  EXPECT_EQ(kept, stored) << "no write of the guest, or of the protection, reaches the shared file";
}

}  // namespace
}  // namespace fvmm
