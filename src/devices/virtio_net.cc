#include "devices/virtio_net.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "devices/virtio_abi.h"
#include "devices/virtio_net_abi.h"

namespace fvmm::devices {
namespace {

constexpr std::array<std::uint16_t, 3> kQueueSizes{kNetQueueSize, kNetQueueSize, kNetControlQueueSize};
constexpr std::size_t kConfigBytes = kMacBytes + 2;  // mac, status; the rest belongs to features that are not offered
constexpr unsigned kStatusShift = 8 * kMacBytes;

std::uint64_t config_of(const Mac& mac, std::uint64_t status) {
  std::uint64_t value = status << kStatusShift;
  for (std::size_t i = 0; i < mac.size(); ++i) value |= std::uint64_t{mac.at(i)} << (8 * i);
  return value;
}

}  // namespace

VirtioNet::VirtioNet(VirtioNetSetup setup)
    : configured_(setup.mac),
      gate_(setup.gate),
      doorbell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      config_(config_of(setup.mac, setup.backend->fd() >= 0 ? net::kLinkUp : 0)),
      backend_(std::move(setup.backend)),
      sending_(kNetFrameBytesMax),
      received_(kNetFrameBytesMax) {
  FVMM_CHECK(doorbell_.get() >= 0, "eventfd");
  filter_.reset(configured_);
  thread_ = std::thread([this] { run(); });
}

VirtioNet::~VirtioNet() {
  end_thread();
}

std::uint32_t VirtioNet::type() const {
  return virtio::kTypeNet;
}

std::uint64_t VirtioNet::features() const {
  const std::uint64_t common = net::kMac | net::kMergeable | net::kStatus | net::kControlQueue | net::kControlRx |
                               net::kGuestAnnounce | net::kControlMac;
  const std::uint64_t offloads =
      net::kCsum | net::kGuestCsum | net::kGuestTso4 | net::kGuestTso6 | net::kHostTso4 | net::kHostTso6;
  return common | (backend_->offloads() ? offloads : 0);
}

std::span<const std::uint16_t> VirtioNet::queue_sizes() const {
  return kQueueSizes;
}

std::size_t VirtioNet::config_bytes() const {
  return kConfigBytes;
}

void VirtioNet::read_config(std::uint64_t offset, std::span<std::byte> out) {
  const std::uint64_t config = config_;
  for (std::byte& byte : out) byte = static_cast<std::byte>(config >> (8 * offset++));
}

void VirtioNet::show_mac(const Mac& mac) {
  config_ = config_of(mac, config_ >> kStatusShift);
}

void VirtioNet::set_status(std::uint16_t bit, bool on) {
  const std::uint64_t mask = std::uint64_t{bit} << kStatusShift;
  config_ = on ? config_ | mask : config_ & ~mask;
}

Mac VirtioNet::mac() const {
  Mac mac{};
  const std::uint64_t config = config_;
  for (std::size_t i = 0; i < mac.size(); ++i) mac.at(i) = static_cast<std::uint8_t>(config >> (8 * i));
  return mac;
}

bool VirtioNet::link_up() const {
  return (config_ >> kStatusShift & net::kLinkUp) != 0;
}

int VirtioNet::doorbell(unsigned) const {
  return doorbell_.get();
}

void VirtioNet::wake() const {
  const std::uint64_t one = 1;
  FVMM_CHECK(::write(doorbell_.get(), &one, sizeof one) == sizeof one || errno == EAGAIN, "an eventfd takes a 1");
}

void VirtioNet::activate(const Driver& driver) {
  const auto lock = turns_.take();
  driver_ = driver;
  fresh_ = true;
  const bool checksum = negotiated(net::kGuestCsum);
  const Status set = backend_->set_offloads({.checksum = checksum,
                                             .tso4 = checksum && negotiated(net::kGuestTso4),
                                             .tso6 = checksum && negotiated(net::kGuestTso6)});
  if (!set) spdlog::warn("a network's frames that the guest cannot take are dropped: {}", set.error().message());
}

void VirtioNet::notify(unsigned) {
  wake();
}

void VirtioNet::reset() {
  const auto lock = turns_.take();
  driver_ = {};
  filter_.reset(configured_);
  show_mac(configured_);
  set_status(net::kAnnounce, false);
  received_bytes_ = 0;
  gate_full_ = false;
}

Status VirtioNet::quiesce(const Deadline& deadline) {
  const auto lock = turns_.take(deadline);
  if (!lock) return Error(Errc::kDeadlineExceeded, "the network's thread is busy");
  quiet_ = true;
  return {};
}

void VirtioNet::resume() {
  {
    const auto lock = turns_.take();
    quiet_ = false;
    gate_full_ = false;
  }
  wake();
}

void VirtioNet::end_thread() {
  const std::lock_guard ending(ending_mutex_);
  {
    const auto lock = turns_.take();
    stopping_ = true;
  }
  wake();
  if (thread_.joinable()) thread_.join();
}

void VirtioNet::disconnect() {
  end_thread();
  const auto lock = turns_.take();
  backend_->close();
}

NetCounters VirtioNet::counters() const {
  const auto lock = turns_.take();
  NetCounters counters = counters_;
  counters.send_dropped += backend_->dropped();
  return counters;
}

void VirtioNet::run() {
  for (Wait wait;;) {
    // Without events not even a hang-up is polled for: it would be reported for ever.
    std::array<pollfd, 2> fds{
        pollfd{.fd = doorbell_.get(), .events = POLLIN, .revents = 0},
        pollfd{.fd = wait.events != 0 ? backend_->fd() : -1, .events = wait.events, .revents = 0}};
    (void)::poll(fds.data(), fds.size(), wait.milliseconds);
    std::uint64_t count = 0;
    (void)!::read(doorbell_.get(), &count, sizeof count);  // before looking: a later ring is not lost
    const auto lock = turns_.take_turn();
    if (stopping_) return;
    wait = work();
  }
}

// One turn. What is left over comes first in the next.
VirtioNet::Wait VirtioNet::work() {
  Wait wait;
  if (quiet_) return wait;
  backend_->flush();
  wait.milliseconds = send_announcements();
  if (!driver_.queues.empty()) {
    if (std::exchange(fresh_, false)) backend_->discard_waiting();
    const bool control = serve_control();
    const bool sending = transmit();
    const bool receiving = receive();
    if (control || sending || receiving) wait.milliseconds = 0;
    if (readable_wanted_) wait.events |= POLLIN;
    follow_link();
  }
  if (backend_->backlogged()) wait.events |= POLLOUT;
  return wait;
}

void VirtioNet::follow_link() {
  const bool up = backend_->fd() >= 0;
  if (up == link_up()) return;
  set_status(net::kLinkUp, up);
  driver_.signals->config_changed();
}

}  // namespace fvmm::devices
