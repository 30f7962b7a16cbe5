// One virtio device with guest memory, and what that memory must be if every write of the device stays inside it and is
// marked. Guard pages on both sides: a touch outside guest memory faults.
#pragma once

#include <poll.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "support/virtio_kinds.h"

namespace fvmm::testing {

/// Zeroed guest memory in small pages: only what was touched has to be looked at.
class FuzzMemory {
 public:
  FuzzMemory() : memory_(memory::GuestMemory::reserve(kDriverMemory).value()) {
    FVMM_CHECK(memory_->map_zero().ok(), "guest memory of a test");
    (void)::madvise(memory_->host_base(), kDriverMemory, MADV_NOHUGEPAGE);
    guard(memory_->host_base() - kPageBytes);
    guard(memory_->host_base() + kDriverMemory);
  }
  ~FuzzMemory() {
    for (void* const page : guards_) ::munmap(page, kPageBytes);
  }
  FuzzMemory(const FuzzMemory&) = delete;
  FuzzMemory& operator=(const FuzzMemory&) = delete;
  FuzzMemory(FuzzMemory&&) = delete;
  FuzzMemory& operator=(FuzzMemory&&) = delete;

  [[nodiscard]] memory::GuestMemory& operator*() const { return *memory_; }
  memory::GuestMemory* operator->() const { return memory_.get(); }
  [[nodiscard]] std::span<std::byte> bytes() const { return memory_->pages_for_load({0, kDriverMemory / kPageBytes}); }
  /// Whether each page that anybody has touched holds the same as the other's.
  [[nodiscard]] bool equals(const FuzzMemory& other) const {
    std::vector<unsigned char> touched(kDriverMemory / kPageBytes);
    FVMM_CHECK(::mincore(memory_->host_base(), kDriverMemory, touched.data()) == 0, "mincore of mapped memory");
    for (std::size_t page = 0; page < touched.size(); ++page) {
      if ((touched[page] & 1) == 0) continue;
      if (std::memcmp(bytes().data() + page * kPageBytes, other.bytes().data() + page * kPageBytes, kPageBytes) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  /// What is mapped there already guards less, but nothing of ours is.
  void guard(std::byte* at) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    void* const page = ::mmap(at, kPageBytes, PROT_NONE, kFlags, -1, 0);
    if (page != MAP_FAILED) guards_.push_back(page);
  }
  std::unique_ptr<memory::GuestMemory> memory_;
  std::vector<void*> guards_;
};

/// What a fuzz run does to one device: register writes, guest memory, pauses and moves.
class FuzzMachine {
 public:
  explicit FuzzMachine(const VirtioKind& kind) : kind_(kind) {
    if (!kind_.threaded) specimen_->device.resume();
  }

  [[nodiscard]] devices::VirtioMmio& device() { return specimen_->device; }
  [[nodiscard]] const FakeIrqLine& line() const { return specimen_->line; }
  [[nodiscard]] std::string sent() const { return earlier_ + specimen_->sink.text; }
  [[nodiscard]] std::uint16_t load(std::uint64_t address) const { return memory_->load_u16(address).value(); }

  void guest_writes(std::uint64_t address, std::span<const std::byte> bytes) {
    std::ranges::copy(bytes, memory_.bytes().begin() + static_cast<std::ptrdiff_t>(address));
    std::ranges::copy(bytes, shadow_.bytes().begin() + static_cast<std::ptrdiff_t>(address));
  }
  template <typename T>
  void put(std::uint64_t address, T value) {
    guest_writes(address, std::as_bytes(std::span(&value, 1)));
  }
  void write(std::uint64_t offset, std::span<const std::byte> bytes) {
    running([&] { device().write(offset, bytes); });
  }
  void write(std::uint64_t offset, std::uint32_t value) { write(offset, std::as_bytes(std::span(&value, 1))); }
  /// What the host may want of a device meanwhile: input to a console, another size of a balloon.
  std::size_t push_input(std::span<const std::byte> bytes) {
    kind_.host_input();
    if (auto* const balloon = dynamic_cast<devices::VirtioBalloon*>(&device().device())) {
      balloon->set_target(static_cast<std::uint32_t>(bytes.size()));
      balloon->ask_statistics();
    }
    auto* const console = dynamic_cast<devices::VirtioConsole*>(&device().device());
    return console == nullptr ? 0 : console->push_input(bytes);
  }
  void pause() {
    FVMM_CHECK(device().quiesce(Deadline::after(std::chrono::seconds(60))).ok(), "a device comes to rest");
  }
  void resume() {
    if (!kind_.threaded) device().resume();
  }
  /// While paused.
  void move() {
    auto there = std::make_unique<VirtioSpecimen>(kind_, *memory_);
    FVMM_CHECK(there->device.load(device().save()).ok(), "what was saved can be loaded");
    FVMM_CHECK(there->line.level == line().level, "a load drives the interrupt line");
    earlier_ += specimen_->sink.text;
    specimen_ = std::move(there);
  }
  /// Takes over what was marked.
  void follow_marks() {
    memory::Bitmap marks(memory_->layout().pages());
    memory_->device_marks().drain_into(marks);
    for (const memory::PageRange& range : marks.ranges(64)) {
      const auto first = static_cast<std::ptrdiff_t>(range.first * kPageBytes);
      std::ranges::copy(memory_->pages(range), shadow_.bytes().begin() + first);
    }
  }
  /// Both ways: what a device has given back is touched by nobody.
  [[nodiscard]] bool all_marked() const { return memory_.equals(shadow_) && shadow_.equals(memory_); }

 private:
  /// A device with a thread of its own runs only here, so that an input does the same each time, and no sanitizer sees
  /// a guest that changes memory under its device (which it may: everything is read once).
  void running(const std::function<void()>& action) {
    if (!kind_.threaded) return action();
    device().resume();
    action();
    settle();
    pause();
  }
  /// Until the thread has heard all notifications, and a moment longer for what it does about them.
  void settle() {
    constexpr int kMoments = 50;
    std::uint64_t waiting = 1;
    const int event = device().device().doorbell(0);
    const Deadline deadline = Deadline::after(std::chrono::seconds(60));
    while (waiting != 0 && !deadline.passed()) {
      pollfd fd{.fd = event, .events = POLLIN, .revents = 0};
      waiting = static_cast<std::uint64_t>(::poll(&fd, 1, 0));
      std::this_thread::yield();
    }
    for (int moment = 0; moment < kMoments; ++moment) std::this_thread::yield();
  }

  const VirtioKind& kind_;
  FuzzMemory memory_;
  FuzzMemory shadow_;
  std::unique_ptr<VirtioSpecimen> specimen_ = std::make_unique<VirtioSpecimen>(kind_, *memory_);
  std::string earlier_;  // what earlier incarnations have sent
};

}  // namespace fvmm::testing
