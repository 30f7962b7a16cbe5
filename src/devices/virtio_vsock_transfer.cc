// Packets of virtio-vsock, both ways (virtio 1.2, section 5.10.6), and the event of a move (section 5.10.6.7).
#include <algorithm>
#include <array>
#include <utility>

#include "devices/virtio_vsock.h"

namespace fvmm::devices {
namespace {

constexpr unsigned kReceiveQueue = 0;
constexpr unsigned kTransmitQueue = 1;
constexpr unsigned kEventQueue = 2;
constexpr std::array<std::byte, 4> kTransportReset{};  // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: 0

}  // namespace

// True: there is more.
bool VirtioVsock::serve() {
  report_reset();
  take_arrivals();
  if (driver_.queues.empty()) return false;
  const bool sending = transmit();
  if (!guest_there() || !tell_of_move()) return sending;
  const bool stuck = hub_.full();
  const bool receiving = receive();
  return sending || receiving || (stuck && !hub_.full());
}

// Through the gate, as what the guest has sent before: programs see it end when they have seen that.
void VirtioVsock::report_reset() {
  if (!driver_gone_ || gate_full_) return;
  const std::uint64_t reset = resets_ + 1;
  gate_full_ =
      !gate_.pass(kVsockHeaderBytes, [inbox = inbox_, reset] { inbox->put({.packet = nullptr, .reset = reset}); });
  if (gate_full_) return;
  driver_gone_ = false;
  resets_ = reset;
}

void VirtioVsock::take_arrivals() {
  while (!hub_.full()) {
    const auto item = inbox_->take();
    if (!item) return;
    if (item->packet != nullptr) {
      hub_.receive(item->packet->header, item->packet->data);
    } else {
      hub_.forget_guest();
      resets_heard_ = item->reset;
    }
  }
}

bool VirtioVsock::transmit() {
  Virtqueue& queue = driver_.queues[kTransmitQueue];
  unsigned left = kVsockTurnPackets;
  queue.disarm();
  while (left > 0 && !driver_gone_ && !gate_full_ && !hub_.full()) {
    if (!queue.pop(chain_)) {
      if (queue.arm() == 0) break;
      continue;
    }
    if (chain_.readable_bytes() < kVsockHeaderBytes) {
      driver_.signals->fault(GuestFault::kRequest);
      break;
    }
    if (!send(chain_)) {
      queue.unpop();
      gate_full_ = true;
      break;
    }
    queue.push(chain_, 0);
    take_arrivals();
    --left;
  }
  queue.interrupt();
  return left == 0;
}

// The copy is what a gate may keep, and what the guest can no longer change. A length that cannot be true makes the
// packet one that ends its connection. False: the gate has no room.
bool VirtioVsock::send(const Chain& chain) {
  VsockHeaderBytes raw{};
  chain.read(0, raw);
  auto packet = std::make_shared<VsockPacket>();
  packet->header = decode_vsock(raw);
  const std::uint32_t len = packet->header.op == VsockOp::kRw ? packet->header.len : 0;
  if (len > kVsockBufferBytes || len > chain.readable_bytes() - kVsockHeaderBytes) {
    packet->header.op = VsockOp::kInvalid;
  } else {
    packet->data.resize(len);
    chain.read(kVsockHeaderBytes, packet->data);
  }
  return gate_.pass(kVsockHeaderBytes + packet->data.size(),
                    [inbox = inbox_, packet] { inbox->put({.packet = packet}); });
}

// Before anything else goes to the guest: it must not take a new connection for one that it had. False: it has no
// buffer for it yet. A driver without that queue learns from resets.
bool VirtioVsock::tell_of_move() {
  Virtqueue& queue = driver_.queues[kEventQueue];
  if (!move_due_ || !queue.enabled()) return true;
  while (!queue.pop(chain_)) {
    if (queue.arm() == 0) return false;
  }
  if (chain_.writable_bytes() < kTransportReset.size()) {
    driver_.signals->fault(GuestFault::kRequest);
    return false;
  }
  chain_.write(0, kTransportReset);
  queue.push(chain_, kTransportReset.size());
  queue.disarm();
  queue.interrupt();
  move_due_ = false;
  return true;
}

// A buffer is taken only when there may be a packet for it. True: there is more.
bool VirtioVsock::receive() {
  Virtqueue& queue = driver_.queues[kReceiveQueue];
  unsigned left = kVsockTurnPackets;
  queue.disarm();
  while (left > 0 && hub_.has_packet()) {
    if (!queue.pop(chain_)) {
      if (queue.arm() == 0) break;
      continue;
    }
    if (chain_.writable_bytes() <= kVsockHeaderBytes) {
      driver_.signals->fault(GuestFault::kRequest);
      break;
    }
    if (fill(queue)) {
      --left;
    } else {
      queue.unpop();
    }
  }
  queue.interrupt();
  return left == 0;
}

bool VirtioVsock::fill(Virtqueue& queue) {
  const std::uint64_t room = std::min<std::uint64_t>(data_.size(), chain_.writable_bytes() - kVsockHeaderBytes);
  const auto header = hub_.next(std::span(data_).first(room));
  if (!header) return false;
  chain_.write(0, encode_vsock(*header));
  chain_.write(kVsockHeaderBytes, std::span(data_).first(header->len));
  queue.push(chain_, static_cast<std::uint32_t>(kVsockHeaderBytes + header->len));
  return true;
}

}  // namespace fvmm::devices
