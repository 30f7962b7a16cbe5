#include "devices/virtio_vsock.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <array>
#include <utility>

#include "devices/virtio_abi.h"

namespace fvmm::devices {
namespace {

constexpr std::array<std::uint16_t, 3> kQueueSizes{kVsockQueueSize, kVsockQueueSize, kVsockEventQueueSize};
constexpr std::uint64_t kFeatureStream = 1ULL << 0;  // section 5.10.3
constexpr std::size_t kConfigBytes = 8;              // guest_cid; its upper half is zero (section 5.10.4)

}  // namespace

VirtioVsock::VirtioVsock(VirtioVsockSetup setup)
    : guest_cid_(setup.hub.guest_cid),
      path_(setup.hub.host->path()),
      gate_(setup.gate),
      clock_(setup.hub.clock),
      hub_(std::move(setup.hub)),
      data_(kVsockReadBytesMax) {
  thread_ = std::thread([this] { run(); });
  ::pthread_setname_np(thread_.native_handle(), "fvmm-vsock");
}

VirtioVsock::~VirtioVsock() {
  end_thread();
  hub_.close();
}

std::uint32_t VirtioVsock::type() const {
  return virtio::kTypeVsock;
}

std::uint64_t VirtioVsock::features() const {
  return kFeatureStream;
}

std::span<const std::uint16_t> VirtioVsock::queue_sizes() const {
  return kQueueSizes;
}

std::size_t VirtioVsock::config_bytes() const {
  return kConfigBytes;
}

void VirtioVsock::read_config(std::uint64_t offset, std::span<std::byte> out) {
  const std::uint64_t cid = guest_cid_;
  for (std::byte& byte : out) byte = static_cast<std::byte>(cid >> (8 * offset++));
}

int VirtioVsock::doorbell(unsigned) const {
  return inbox_->doorbell();
}

void VirtioVsock::activate(const Driver& driver) {
  const auto lock = turns_.take();
  driver_ = driver;
}

void VirtioVsock::notify(unsigned) {
  inbox_->ring();
}

// Connections are the thread's: it ends them when it has reported the reset, in order with what was sent before.
void VirtioVsock::reset() {
  {
    const auto lock = turns_.take();
    if (!driver_.queues.empty()) driver_gone_ = true;
    driver_ = {};
    gate_full_ = false;
    move_due_ = false;
  }
  inbox_->ring();
}

Status VirtioVsock::quiesce(const Deadline& deadline) {
  const auto lock = turns_.take(deadline);
  if (!lock) return Error(Errc::kDeadlineExceeded, "the vsock's thread is busy");
  if (!std::exchange(quiet_, true)) quiet_since_ = clock_.now();
  return {};
}

void VirtioVsock::resume() {
  {
    const auto lock = turns_.take();
    if (std::exchange(quiet_, false)) hub_.postpone(clock_.now() - quiet_since_);
    gate_full_ = false;
    if (const Status listens = hub_.listen(); !listens) spdlog::error("vsock: {}", listens.error().message());
  }
  inbox_->ring();
}

void VirtioVsock::end_thread() {
  const std::lock_guard ending(ending_mutex_);
  {
    const auto lock = turns_.take();
    stopping_ = true;
  }
  inbox_->ring();
  if (thread_.joinable()) thread_.join();
}

void VirtioVsock::disconnect() {
  end_thread();
  const auto lock = turns_.take();
  hub_.close();
}

VsockCounters VirtioVsock::counters() const {
  const auto lock = turns_.take();
  return hub_.counters();
}

// What a connection holds belongs to this host.
DeviceState VirtioVsock::save() const {
  return {.version = kVsockStateVersion, .bytes = {}};
}

Status VirtioVsock::load(const DeviceState& state) {
  if (state.version != kVsockStateVersion || !state.bytes.empty()) {
    return Error(Errc::kInvalidArgument, fmt::format("virtio-vsock state: version {} with {} bytes, want 1 with none",
                                                     state.version, state.bytes.size()));
  }
  const auto lock = turns_.take();
  move_due_ = true;
  return {};
}

void VirtioVsock::run() {
  inbox_->serve_here();
  std::vector<pollfd> fds{{.fd = inbox_->doorbell(), .events = POLLIN, .revents = 0}};
  for (int wait_ms = -1;;) {
    (void)::poll(fds.data(), fds.size(), wait_ms);
    inbox_->silence();
    const auto lock = turns_.take_turn();
    if (stopping_) return;
    wait_ms = turn(fds);
  }
}

// What is left over comes first in the next. For how long poll(2) may wait for that.
int VirtioVsock::turn(std::vector<pollfd>& fds) {
  if (!quiet_) {
    const auto programs = std::span(fds).subspan(1);
    if (!programs.empty()) hub_.look(programs, guest_there());
    const bool more = serve();
    fds.resize(1);
    hub_.watch(fds);
    return more ? 0 : hub_.wait_ms();
  }
  fds.resize(1);
  return -1;
}

bool VirtioVsock::guest_there() const {
  return !driver_.queues.empty() && !driver_gone_ && resets_heard_ == resets_;
}

}  // namespace fvmm::devices
