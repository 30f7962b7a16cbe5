// Templates by engine `stop`, one after another of the same running guest: each is memory at its instant, and what the
// guest runs on from then on.
#include "daemon/worker_template.h"
#include "support/stored_template.h"
#include "support/vm_migration.h"
#include "support/witness.h"

namespace fvmm {
namespace {

constexpr std::uint64_t kBytes = 16 * kMiB;
constexpr memory::PageRange kAll{.first = 0, .count = kBytes / kPageBytes};
constexpr int kTemplates = 200;
constexpr int kRunEvery = 25;
constexpr std::uint64_t kWrittenBetween = 64;  // pages, at least, between two templates

class StopEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    auto made = test::running_guest("workload.elf", kBytes, "seed=5 ws=4 rate=20000 beat=20");
    ASSERT_TRUE(made.ok()) << made.error().message();
    guest_ = std::move(*made);
    vm_ = &test::vm_of(*guest_);
    test::wait_for_output(*vm_, "HB n=2 ");
    machine_ = std::move(guest_->machine);
    auto witness = std::make_unique<testing::Witness>(*machine_);
    witness_ = witness.get();
    guest_->machine = std::move(witness);
  }

  Result<v1::TemplateInfo> take(const std::string& name) {
    v1::WorkerTemplateRequest request;
    request.set_name(name);
    request.set_store_directory(store_.directory());
    return daemon::make_template(*guest_, "stop", request, {});
  }

  /// The guest has written to so many pages since its template; false at the deadline.
  bool writes(std::uint64_t pages) {
    const Deadline deadline = Deadline::after(std::chrono::seconds(30));
    while (guest_->since_base->pending().count() < pages) {
      if (deadline.passed() || !machine_->dirty().harvest()) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  /// Pages of the paused guest that differ from its template and are not in its delta.
  std::uint64_t lost_pages() {
    EXPECT_TRUE(machine_->dirty().harvest().ok());
    std::array<std::byte, kPageBytes> stored{};
    std::uint64_t lost = 0;
    for (memory::PageIndex page = 0; page < kAll.count; ++page) {
      EXPECT_TRUE(machine_->memory().template_page(page, stored).ok());
      const bool same = std::ranges::equal(machine_->memory().pages({page, 1}), stored);
      if (!same && !guest_->since_base->pending().test(page)) ++lost;
    }
    return lost;
  }

  /// A VM from the template that the guest runs on; what it says after two sweeps.
  std::string run(const std::vector<std::byte>& stored) {
    auto made = test::make_sibling(*vm_);
    if (!made) return made.error().message();
    vmm::Vm& clone = **made;
    const auto state = guest_->pin->machine_state();
    if (!state) return state.error().message();
    Status status = clone.memory().map_zero();
    if (status) std::ranges::copy(stored, clone.memory().pages_for_load(kAll).begin());
    if (status) status = clone.load_state(*state);
    if (status) status = clone.resume();
    return status ? test::verified(clone) : status.error().message();
  }

  const testing::TempDir directory_{"/dev/shm"};  // whatever this host's disk takes for an fsync
  memory::TemplateStore store_ = *memory::TemplateStore::open(directory_.path() / "store");
  std::unique_ptr<migration::Machine> machine_;  // behind the guest's, which is the witness
  std::unique_ptr<migration::Guest> guest_;
  testing::Witness* witness_ = nullptr;  // the guest's
  vmm::Vm* vm_ = nullptr;                // the machine's
};

TEST_F(StopEngine, HundredsOfTemplatesUnderLoadAreEachOneInstant) {
  std::vector<std::byte> stored(kBytes);
  for (int number = 0; number < kTemplates; ++number) {
    ASSERT_TRUE(writes(kWrittenBetween)) << number;
    const auto taken = take("t" + std::to_string(number));
    ASSERT_TRUE(taken.ok()) << number << ": " << taken.error().message();
    ASSERT_FALSE(machine_->paused());
    ASSERT_EQ(guest_->pin->info().name, "t" + std::to_string(number));
    ASSERT_TRUE(guest_->pin->read_pages(kAll, stored).ok());
    ASSERT_EQ(memory::hash_bytes(stored), witness_->instant) << number;
    if (number > 0) {
      ASSERT_TRUE(store_.remove("t" + std::to_string(number - 1)).ok()) << "nothing uses the one before any more";
    }
    if (number % kRunEvery != kRunEvery - 1) continue;
    ASSERT_TRUE(machine_->pause().ok());  // leaves the CPU to the clone
    EXPECT_EQ(lost_pages(), 0U) << number;
    EXPECT_EQ(run(stored), "") << number;
    ASSERT_TRUE(machine_->resume().ok());
  }
  EXPECT_EQ(test::verified(*vm_), "") << "the guest itself";
}

}  // namespace
}  // namespace fvmm
