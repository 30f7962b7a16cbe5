#include "devices/virtio_blk.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "devices/state_codec.h"
#include "devices/virtio_abi.h"

namespace fvmm::devices {
namespace {

constexpr std::array<std::uint16_t, 1> kQueueSizes{kBlkQueueSize};
constexpr auto kResetWait = std::chrono::seconds(30);  // for file I/O under way when the driver resets
constexpr auto kGateWait = std::chrono::milliseconds(1);

// Section 5.2.3: feature bits.
constexpr std::uint64_t kFeatureSegMax = 1ULL << 2;
constexpr std::uint64_t kFeatureReadOnly = 1ULL << 5;
constexpr std::uint64_t kFeatureBlkSize = 1ULL << 6;
constexpr std::uint64_t kFeatureFlush = 1ULL << 9;
constexpr std::uint64_t kFeatureDiscard = 1ULL << 13;
constexpr std::uint64_t kFeatureWriteZeroes = 1ULL << 14;

template <class T>
void put(std::array<std::byte, 60>& config, std::size_t offset, T value) {
  std::memcpy(config.data() + offset, &value, sizeof value);  // little endian, as this machine is
}

// Section 5.2.4: struct virtio_blk_config.
std::array<std::byte, 60> config_of(std::uint64_t sectors) {
  std::array<std::byte, 60> config{};
  put(config, 0, sectors);
  put(config, 12, kBlkSegmentsMax);
  put(config, 20, static_cast<std::uint32_t>(disk::kSectorBytes));
  put(config, 36, kBlkRangeSectorsMax);
  put(config, 40, std::uint32_t{1});
  put(config, 44, static_cast<std::uint32_t>(disk::kClusterBytes / disk::kSectorBytes));
  put(config, 48, kBlkRangeSectorsMax);
  put(config, 52, std::uint32_t{1});
  put(config, 56, std::uint8_t{1});
  return config;
}

}  // namespace

VirtioBlk::VirtioBlk(VirtioBlkSetup setup)
    : sectors_(setup.stack.bytes() / disk::kSectorBytes),
      config_(config_of(sectors_)),
      raw_(setup.stack.is_raw()),
      writable_(setup.stack.writable()),
      id_(std::move(setup.id)),
      gate_(setup.gate),
      doorbell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      engine_(
          std::make_unique<disk::Engine>(std::move(setup.stack), std::move(setup.io),
                                         [this](std::uint64_t token, const Status& status) { ended(token, status); })) {
  FVMM_CHECK(doorbell_.get() >= 0, "eventfd");
  thread_ = std::thread([this] { run(); });
}

VirtioBlk::~VirtioBlk() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    driver_ = {};  // what ends from here on is not answered: the queues may be gone
  }
  wake();
  thread_.join();
  engine_.reset();  // waits for what is under way, and each end looks for its request in pending_
}

std::uint32_t VirtioBlk::type() const {
  return virtio::kTypeBlock;
}

std::uint64_t VirtioBlk::features() const {
  const std::uint64_t common = kFeatureSegMax | kFeatureBlkSize | kFeatureFlush;
  return common | (writable_ ? kFeatureDiscard | kFeatureWriteZeroes : kFeatureReadOnly);
}

std::span<const std::uint16_t> VirtioBlk::queue_sizes() const {
  return kQueueSizes;
}

std::size_t VirtioBlk::config_bytes() const {
  return config_.size();
}

void VirtioBlk::read_config(std::uint64_t offset, std::span<std::byte> out) {
  std::copy_n(config_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
}

int VirtioBlk::doorbell(unsigned) const {
  return doorbell_.get();
}

void VirtioBlk::wake() const {
  const std::uint64_t one = 1;
  FVMM_CHECK(::write(doorbell_.get(), &one, sizeof one) == sizeof one || errno == EAGAIN, "an eventfd takes a 1");
}

void VirtioBlk::activate(const Driver& driver) {
  const std::lock_guard lock(mutex_);
  driver_ = driver;
}

void VirtioBlk::notify(unsigned) {
  wake();
}

void VirtioBlk::reset() {
  const std::lock_guard lock(mutex_);
  FVMM_CHECK(drain(Deadline::after(kResetWait)),
             "a disk whose files do not answer cannot be reset: its I/O points into guest memory");
  driver_ = {};
}

Status VirtioBlk::quiesce(const Deadline& deadline) {
  const std::unique_lock lock(mutex_, deadline.at());
  if (!lock || !drain(deadline)) {
    return Error(Errc::kDeadlineExceeded,
                 "the disk has requests under way: its files are slow, or the output gate holds its writes");
  }
  quiet_ = true;
  return {};
}

void VirtioBlk::resume() {
  {
    const std::lock_guard lock(mutex_);
    quiet_ = false;
  }
  wake();
}

DeviceState VirtioBlk::save() const {
  StateWriter writer;
  writer.put(sectors_);
  return {.version = kBlkStateVersion, .bytes = writer.take()};
}

Status VirtioBlk::load(const DeviceState& state) {
  StateReader reader(state.bytes);
  const auto sectors = reader.get<std::uint64_t>();
  if (state.version != kBlkStateVersion || !reader.complete()) {
    return Error(Errc::kInvalidArgument, fmt::format("virtio-blk state: version {} of {} bytes, want version 1 of 8",
                                                     state.version, state.bytes.size()));
  }
  if (sectors == sectors_) return {};
  return Error(Errc::kFailedPrecondition,
               fmt::format("the guest's disk has {} sectors, the one here {}", sectors, sectors_));
}

disk::EngineCounters VirtioBlk::counters() const {
  const std::lock_guard lock(mutex_);
  return engine_->counters();
}

Status VirtioBlk::flush(const Deadline& deadline) {
  const Error late(Errc::kDeadlineExceeded, fmt::format("disk \"{}\" cannot be flushed in time", id_));
  const std::unique_lock lock(mutex_, deadline.at());
  if (!lock) return late;
  FVMM_CHECK(quiet_, "only a disk at rest is flushed by its owner");
  if (!writable_) return {};
  flush_token_ = next_token_++;
  flushed_.reset();
  pending_[flush_token_] = nullptr;
  engine_->start({.kind = disk::Request::Kind::kFlush, .offset = 0, .bytes = 0, .data = {}, .token = flush_token_});
  while (!flushed_) {
    if (deadline.passed()) return late;
    FVMM_TRY(engine_->poll(deadline));
  }
  return *flushed_;
}

disk::LayerInfo VirtioBlk::top() const {
  const std::lock_guard lock(mutex_);
  FVMM_CHECK(!raw_, "a raw disk has no layers");
  return engine_->stack().top()->info();
}

Status VirtioBlk::lie_on(disk::LowerLayers lower) {
  const std::lock_guard lock(mutex_);
  FVMM_CHECK(quiet_, "only a disk at rest gets other layers below it");
  return engine_->lie_on(std::move(lower));
}

Result<std::shared_ptr<disk::Layer>> VirtioBlk::put_over(std::unique_ptr<disk::Layer> next) {
  const std::lock_guard lock(mutex_);
  FVMM_CHECK(quiet_, "only a disk at rest goes on in another layer");
  return engine_->put_over(std::move(next));
}

Status VirtioBlk::reread() {
  const std::lock_guard lock(mutex_);
  FVMM_CHECK(quiet_, "only a disk at rest is read again");
  return engine_->reread();
}

void VirtioBlk::run() {
  for (;;) {
    std::array<pollfd, 2> fds{pollfd{.fd = doorbell_.get(), .events = POLLIN, .revents = 0},
                              pollfd{.fd = engine_->wait_fd(), .events = POLLIN, .revents = 0}};
    (void)::poll(fds.data(), fds.size(), -1);
    std::uint64_t count = 0;
    (void)!::read(doorbell_.get(), &count, sizeof count);  // before looking: a later ring is not lost
    const std::lock_guard lock(mutex_);
    if (stopping_) return;  // the engine's end waits for what is under way
    work();
  }
}

void VirtioBlk::work() {
  if (!quiet_ && !driver_.queues.empty()) serve(driver_.queues[0]);
  take_cleared();
  const Status polled = engine_->poll(Deadline::after(std::chrono::microseconds(0)));
  FVMM_CHECK(polled.ok(), "io_uring of a disk");
  if (!driver_.queues.empty()) driver_.queues[0].interrupt();
}

bool VirtioBlk::drain(const Deadline& deadline) {
  while (true) {
    take_cleared();
    const Status drained = engine_->drain(deadline);
    if (!drained) return false;
    if (pending_.empty()) break;
    if (deadline.passed()) return false;  // the gate has the rest
    std::this_thread::sleep_for(kGateWait);
  }
  if (!driver_.queues.empty()) driver_.queues[0].interrupt();
  return true;
}

}  // namespace fvmm::devices
