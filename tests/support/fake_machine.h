// A Machine without KVM: real guest memory, a guest that writes from a seed, and a count of who runs it at once.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/fence.h"
#include "memory/digest.h"
#include "migration/machine.h"
#include "support/guest_around.h"

namespace fvmm::testing {

inline constexpr std::uint64_t kFakeRamBytes = 16 * kMiB;
inline constexpr std::uint64_t kFakePages = kFakeRamBytes / kPageBytes;

/// How many machines of one VM run at this moment, and how many ever ran at once. Thread: any.
class Runners {
 public:
  void entered() {
    const int now = ++now_;
    for (int most = most_; now > most && !most_.compare_exchange_weak(most, now);) continue;
  }
  void left() { --now_; }
  [[nodiscard]] int now() const { return now_; }
  [[nodiscard]] int most() const { return most_; }

  /// From here on the VM has a disk, which one machine at a time may hold; without, everybody may.
  void add_disk() { has_disk_ = true; }
  [[nodiscard]] bool has_disk() const { return has_disk_; }
  bool take_disk(const void* machine) {
    const void* holder = nullptr;
    return !has_disk_ || disk_.compare_exchange_strong(holder, machine) || holder == machine;
  }
  void let_go_of_disk(const void* machine) { disk_.compare_exchange_strong(machine, nullptr); }
  [[nodiscard]] const void* disk_holder() const { return disk_; }

 private:
  std::atomic<int> now_{0};
  std::atomic<int> most_{0};
  bool has_disk_ = false;  // before any thread
  std::atomic<const void*> disk_{nullptr};
};

/// What a FakeMachine refuses to do.
struct FakeFaults {
  bool pause = false;
  bool resume = false;
  bool save = false;
  bool load = false;
  bool flush = false;       // of disks
  bool take_disks = false;  // although nobody has them
};

/// The guest is a function of its two registers and its memory: each step writes a few pages, fills some with zeros,
/// and writes some through the device door. It takes steps inside harvest(), as a guest that runs meanwhile does, and
/// whenever a test calls step(). Made paused. Owner: one thread; running() from any.
class FakeMachine final : public migration::Machine, private memory::DirtySource {
 public:
  /// @param template_file  the memory file of the template it runs on; -1: the zero template
  FakeMachine(std::uint64_t seed, std::shared_ptr<Runners> runners, int template_file = -1, FakeFaults faults = {})
      : memory_(*memory::GuestMemory::reserve(kFakeRamBytes)),
        dirty_(kFakePages, this, memory_->device_marks()),
        written_(kFakePages),
        runners_(std::move(runners)),
        faults_(faults),
        registers_{seed, 0} {
    const Status mapped = template_file < 0 ? memory_->map_zero() : memory_->map_private(template_file);
    FVMM_CHECK(mapped.ok(), "the fake's memory is mapped");
    (void)::madvise(memory_->host_base(), kFakeRamBytes, MADV_NOHUGEPAGE);  // few pages are touched: keep them small
  }
  ~FakeMachine() override {
    if (running_) runners_->left();
    runners_->let_go_of_disk(this);
  }
  FakeMachine(const FakeMachine&) = delete;
  FakeMachine& operator=(const FakeMachine&) = delete;
  FakeMachine(FakeMachine&&) = delete;
  FakeMachine& operator=(FakeMachine&&) = delete;

  memory::GuestMemory& memory() override { return *memory_; }
  memory::DirtyTracker& dirty() override { return dirty_; }
  [[nodiscard]] bool paused() const override { return !running_; }
  Status pause() override {
    if (faults_.pause) return Error(Errc::kInternal, "a vCPU does not answer the kick");
    if (running_.exchange(false)) {
      runners_->left();
      ++pauses_;
    }
    return {};
  }
  Status resume() override {
    if (faults_.resume) return Error(Errc::kInternal, "KVM_RUN");
    const std::lock_guard lock(fencing_);
    FVMM_TRY(fenced());
    FVMM_TRY(take_disks());
    if (!running_.exchange(true)) {
      flushed_ = false;
      runners_->entered();
      ++resumes_;
    }
    return {};
  }
  Status fence(const std::string& why) override {
    const std::lock_guard lock(fencing_);
    fence_.close(why);
    if (running_.exchange(false)) runners_->left();
    return {};
  }
  [[nodiscard]] Status fenced() const override { return fence_.check(); }
  /// A guest held back writes less between two harvests.
  void throttle(unsigned percent) override {
    FVMM_CHECK(percent <= 99, "a guest is never held back for good");
    throttle_ = percent;
    throttle_most_ = std::max(throttle_most_, percent);
  }
  /// Writes guest memory too, as KVM does for its clock.
  Result<v1::MachineState> save_state() override {
    if (faults_.save) return Error(Errc::kInternal, "KVM_GET_XSAVE2");
    fill(kClockPage, ++registers_[1]);
    if (records_instants_) instants_[registers_[1]] = memory::hash_bytes(memory_->pages({0, kFakePages}));
    v1::MachineState state;
    state.set_version(1);
    state.set_pit2(std::string(reinterpret_cast<const char*>(registers_.data()), sizeof registers_));
    return state;
  }
  Status load_state(const v1::MachineState& state) override {
    if (faults_.load) return Error(Errc::kFailedPrecondition, "an MSR that this host lacks");
    if (state.version() != 1 || state.pit2().size() != sizeof registers_) {
      return Error(Errc::kDataLoss, "machine state of another version");
    }
    std::memcpy(registers_.data(), state.pit2().data(), sizeof registers_);
    return {};
  }
  [[nodiscard]] v1::CpuIdentity cpu() const override {
    v1::CpuIdentity cpu;
    cpu.set_cpuid("leaf");
    cpu.set_tsc_khz(2'000'000);
    cpu.set_boot_id("boot");
    return cpu;
  }

  Status flush_disks() override {
    if (faults_.flush) return Error(Errc::kIo, "fdatasync");
    flushed_ = !running_;
    return {};
  }
  void let_go_of_disks() override {
    FVMM_CHECK(!running_, "a guest that runs has its disks");
    FVMM_CHECK(flushed_ || !runners_->has_disk(), "nobody takes a disk that is not flushed");
    runners_->let_go_of_disk(this);
  }
  Status take_disks() override {
    if (!faults_.take_disks && runners_->take_disk(this)) return {};
    return Error(Errc::kFailedPrecondition, "the disk is in use");
  }

  /// The guest runs for a moment.
  void step() {
    std::mt19937_64 random(registers_[0] * 1'000'003 + registers_[1]++);
    for (unsigned i = 0; i < pages_per_step_ * (100 - throttle_) / 100; ++i) {
      const memory::PageIndex page = random() % 4 == 0 ? random() % kFakePages : random() % kHotPages;
      if (random() % 5 == 0) {
        std::memset(memory_->pages_for_load({page, 1}).data(), 0, kPageBytes);
        written_.set(page);
      } else if (random() % 7 == 0) {
        const std::uint64_t word = random();
        const auto bytes = std::as_bytes(std::span(&word, 1));
        FVMM_CHECK(memory_->write(page * kPageBytes + random() % (kPageBytes - 8), bytes).ok(), "the page is RAM");
      } else {
        fill(page, random() | 1);
      }
    }
  }
  void step_if_running() {
    if (running_) step();
  }
  /// How much one step writes; 0: an idle guest.
  void set_pages_per_step(unsigned pages) { pages_per_step_ = pages; }

  [[nodiscard]] bool running() const { return running_; }
  /// From now on the digest of all memory is kept at each save of the state, by the second register.
  void record_instants() { records_instants_ = true; }
  [[nodiscard]] const std::map<std::uint64_t, memory::Digest>& instants() const { return instants_; }
  [[nodiscard]] unsigned throttled() const { return throttle_; }
  [[nodiscard]] unsigned throttled_most() const { return throttle_most_; }
  [[nodiscard]] int pauses() const { return pauses_; }
  [[nodiscard]] int resumes() const { return resumes_; }
  [[nodiscard]] const std::array<std::uint64_t, 2>& registers() const { return registers_; }

 private:
  static constexpr memory::PageIndex kClockPage = 7;
  static constexpr std::uint64_t kHotPages = 48;

  void fill(memory::PageIndex page, std::uint64_t word) {
    std::byte* const at = memory_->pages_for_load({page, 1}).data();
    for (std::uint64_t i = 0; i < kPageBytes; i += 512, ++word) std::memcpy(at + i, &word, sizeof word);
    written_.set(page);
  }
  /// The guest writes before, and again after, the moment at which the log is taken.
  Status harvest(memory::Bitmap& out) override {
    step_if_running();
    out.merge(written_);
    written_.clear_all();
    step_if_running();
    return {};
  }

  std::unique_ptr<memory::GuestMemory> memory_;
  memory::DirtyTracker dirty_;
  memory::Bitmap written_;
  std::shared_ptr<Runners> runners_;
  FakeFaults faults_;
  Fence fence_;
  std::mutex fencing_;                      // resume() against fence()
  std::array<std::uint64_t, 2> registers_;  // seed, steps taken
  unsigned pages_per_step_ = 6;
  bool records_instants_ = false;
  std::map<std::uint64_t, memory::Digest> instants_;
  unsigned throttle_ = 0;
  unsigned throttle_most_ = 0;
  std::atomic<bool> running_{false};
  std::atomic<bool> flushed_{false};  // since it last ran
  int pauses_ = 0;
  int resumes_ = 0;
};

inline FakeMachine& fake(migration::Guest& guest) {
  return static_cast<FakeMachine&>(*guest.machine);
}

inline v1::VmConfig fake_config() {
  v1::VmConfig config;
  config.set_id(std::string(16, 'v'));
  config.set_name("web1");
  config.set_memory_bytes(kFakeRamBytes);
  config.set_vcpus(1);
  return config;
}

inline bool same_memory(migration::Guest& a, migration::Guest& b) {
  const auto left = a.machine->memory().pages({0, kFakePages});
  const auto right = b.machine->memory().pages({0, kFakePages});
  return std::memcmp(left.data(), right.data(), left.size()) == 0;
}

/// Pages that differ from the template although nobody has marked them.
inline std::vector<memory::PageIndex> unmarked_pages(migration::Guest& guest) {
  std::vector<memory::PageIndex> found;
  std::array<std::byte, kPageBytes> original{};
  for (memory::PageIndex page = 0; page < kFakePages; ++page) {
    if (guest.since_base->pending().test(page)) continue;
    FVMM_CHECK(guest.machine->memory().template_page(page, original).ok(), "the template can be read");
    if (std::memcmp(guest.machine->memory().pages({page, 1}).data(), original.data(), kPageBytes) != 0) {
      found.push_back(page);
    }
  }
  return found;
}

}  // namespace fvmm::testing
