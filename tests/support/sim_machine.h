// A Machine of the simulation: real guest memory under a guest that writes from the seed whenever time goes by.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/fence.h"
#include "migration/machine.h"
#include "support/guest_around.h"
#include "support/sim_plan.h"

namespace fvmm::testing {

inline constexpr std::uint64_t kSimRamBytes = memory::kRamBytesMin;
inline constexpr std::uint64_t kSimPages = kSimRamBytes / kPageBytes;
/// Memory files that all machines of this process share: what is read of them costs memory once.
struct SimTemplate {
  explicit SimTemplate(bool blank) : file(::memfd_create("sim-template", MFD_CLOEXEC)) {
    FVMM_CHECK(::ftruncate(file, kSimRamBytes) == 0, "a template's file");
    void* const at = ::mmap(nullptr, kSimRamBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    FVMM_CHECK(at != MAP_FAILED, "a template's mapping");
    bytes = static_cast<std::byte*>(at);
    std::mt19937_64 random(7);
    for (std::uint64_t page = 0; page < kSimPagesWritten && !blank; page += 1 + random() % 3) {
      const std::uint64_t word = random();
      std::memcpy(bytes + page * kPageBytes, &word, sizeof word);
    }
  }
  static SimTemplate& of(bool on_template) {  // for good: machines map them until the end
    static SimTemplate blank(true);
    static SimTemplate filled(false);
    return on_template ? filled : blank;
  }
  int file;
  std::byte* bytes = nullptr;
};

struct SimMachineFaults {
  bool pause = false;
  bool save = false;
  bool load = false;
  bool start = false;
  SimTime start_takes = 0;
};

/// Made paused. One simulated thread at a time, so nothing is locked.
class SimMachine final : public migration::Machine, private memory::DirtySource {
 public:
  struct Hooks {
    std::function<void()> alive;                // lets others, and guests, run; throws in a dead process
    std::function<void(SimMachine&)> starting;  // it is about to run
    std::function<void(SimMachine&)> gone;
    std::function<void(SimMachine&)> saved = {};  // its state was taken: what memory holds now is the instant's
  };
  SimMachine(std::uint64_t seed, const SimPlan& plan, SimMachineFaults faults, Hooks hooks)
      : memory_(*memory::GuestMemory::reserve(kSimRamBytes)),
        dirty_(kSimPages, this, memory_->device_marks()),
        written_(kSimPages),
        cleared_late_(kSimPages),
        seen_early_(kSimPages),
        plant_(plan.plant),
        pages_per_step_(plan.pages_per_step),
        pages_written_(plan.pages_written),
        faults_(faults),
        hooks_(std::move(hooks)),
        registers_{seed, 0} {
    FVMM_CHECK(memory_->map_private(SimTemplate::of(plan.on_template).file).ok(), "the template is mapped");
    ++living;
  }
  ~SimMachine() override {
    hooks_.gone(*this);
    --living;
  }
  SimMachine(const SimMachine&) = delete;
  SimMachine& operator=(const SimMachine&) = delete;
  SimMachine(SimMachine&&) = delete;
  SimMachine& operator=(SimMachine&&) = delete;

  memory::GuestMemory& memory() override { return *memory_; }
  memory::DirtyTracker& dirty() override { return dirty_; }
  [[nodiscard]] bool paused() const override { return !running_; }
  Status pause() override {
    hooks_.alive();
    if (faults_.pause) return Error(Errc::kInternal, "sim: a vCPU does not answer the kick");
    running_ = false;
    hooks_.alive();
    return {};
  }
  Status resume() override {
    hooks_.alive();
    if (faults_.start_takes > 0) {
      SimScheduler::current->block(this, SimScheduler::current->now() + faults_.start_takes);
      hooks_.alive();
    }
    if (faults_.start) return Error(Errc::kInternal, "sim: KVM_RUN");
    FVMM_TRY(fenced());
    start();
    hooks_.alive();
    return {};
  }
  Status fence(const std::string& why) override {
    fence_.close(why);
    running_ = false;
    return {};
  }
  [[nodiscard]] Status fenced() const override { return fence_.check(); }
  void throttle(unsigned percent) override { throttle_ = percent; }
  /// Writes guest memory too, as KVM does for its clock.
  Result<v1::MachineState> save_state() override {
    hooks_.alive();
    if (faults_.save) return Error(Errc::kInternal, "sim: KVM_GET_XSAVE2");
    ++registers_[1];
    if (plant_ == SimPlant::kHarvestBeforeSave) {
      clock_is_due_ = true;
    } else {
      fill(kClockPage, registers_[1]);
    }
    hooks_.alive();
    if (hooks_.saved) hooks_.saved(*this);
    v1::MachineState state;
    state.set_version(1);
    state.set_pit2(std::string(reinterpret_cast<const char*>(registers_.data()), sizeof registers_));
    return state;
  }
  Status load_state(const v1::MachineState& state) override {
    hooks_.alive();
    if (faults_.load) return Error(Errc::kFailedPrecondition, "sim: an MSR that this host lacks");
    if (state.pit2().size() != sizeof registers_) return Error(Errc::kDataLoss, "sim: not a machine's state");
    std::memcpy(registers_.data(), state.pit2().data(), sizeof registers_);
    if (plant_ == SimPlant::kUncommittedStart) start();
    return {};
  }
  [[nodiscard]] v1::CpuIdentity cpu() const override {
    v1::CpuIdentity cpu;
    cpu.set_boot_id("boot");
    return cpu;
  }

  /// A moment passes for the guest.
  void step() {
    if (plant_ == SimPlant::kLateClear && clear_in_ > 0 && --clear_in_ == 0) {
      for (const auto& range : cleared_late_.ranges(kSimPages)) {
        for (std::uint64_t i = 0; i < range.count; ++i) written_.clear(range.first + i);
      }
    }
    if (!running_) return;
    std::mt19937_64 random(registers_[0] * 1'000'003 + registers_[1]++);
    for (unsigned i = 0; i < pages_per_step_ * (100 - throttle_) / 100; ++i) write_one(random);
  }
  /// The process is gone, and with it the guest.
  void die() {
    dead_ = true;
    running_ = false;
  }
  void start() {
    if (dead_) return;  // its threads do not know it yet
    hooks_.starting(*this);
    running_ = true;
  }
  [[nodiscard]] bool running() const { return running_; }
  [[nodiscard]] const std::array<std::uint64_t, 2>& registers() const { return registers_; }
  static inline int living = 0;

 private:
  static constexpr memory::PageIndex kClockPage = 7;
  static constexpr std::uint64_t kHotPages = 24;

  void write_one(std::mt19937_64& random) {
    const memory::PageIndex page = random() % 4 == 0 ? random() % pages_written_ : random() % kHotPages;
    switch (random() % 8) {
      case 0:
        std::memset(memory_->pages_for_load({page, 1}).data(), 0, kPageBytes);
        return written_.set(page);
      case 1:
      case 2:  // by a device
        return device_writes(page * kPageBytes + random() % (kPageBytes - 8), random());
      default:
        return fill(page, random() | 1);
    }
  }
  void device_writes(std::uint64_t at, std::uint64_t word) {
    FVMM_CHECK(memory_->write(at, std::as_bytes(std::span(&word, 1))).ok(), "the page is RAM");
    if (plant_ != SimPlant::kDeviceMarkLost || word % 4 != 0) return;
    memory::Bitmap lost(kSimPages);
    memory_->device_marks().drain_into(lost);
  }
  void fill(memory::PageIndex page, std::uint64_t word) {
    std::byte* const at = memory_->pages_for_load({page, 1}).data();
    for (std::uint64_t i = 0; i < kPageBytes; i += 1024, ++word) std::memcpy(at + i, &word, sizeof word);
    written_.set(page);
  }
  /// The guest may write before, and again after, the moment at which the log is taken.
  Status harvest(memory::Bitmap& out) override {
    hooks_.alive();
    out.merge(plant_ == SimPlant::kLogReadEarly ? std::exchange(seen_early_, written_) : written_);
    if (plant_ == SimPlant::kLateClear) {
      cleared_late_ = written_;
      clear_in_ = 3;
    } else {
      written_.clear_all();
    }
    if (std::exchange(clock_is_due_, false)) fill(kClockPage, registers_[1]);
    hooks_.alive();
    return {};
  }

  std::unique_ptr<memory::GuestMemory> memory_;
  memory::DirtyTracker dirty_;
  memory::Bitmap written_;
  memory::Bitmap cleared_late_;
  memory::Bitmap seen_early_;
  int clear_in_ = 0;
  bool clock_is_due_ = false;
  const SimPlant plant_;
  const unsigned pages_per_step_;
  const std::uint64_t pages_written_;
  const SimMachineFaults faults_;
  Hooks hooks_;
  Fence fence_;
  std::array<std::uint64_t, 2> registers_;  // seed, steps taken
  unsigned throttle_ = 0;
  bool running_ = false;
  bool dead_ = false;
};

inline SimMachine& sim_machine(migration::Guest& guest) {
  return static_cast<SimMachine&>(*guest.machine);
}

}  // namespace fvmm::testing
