// Frames of virtio-net, both ways (virtio 1.2, sections 5.1.6.2 to 5.1.6.4), and RARP frames of an announcement.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "devices/virtio_net.h"
#include "devices/virtio_net_abi.h"

namespace fvmm::devices {
namespace {

constexpr std::size_t kFrameBytesMin = kNetHeaderBytes + kEthernetHeaderBytes;

/// A reverse ARP request for one's own address (RFC 903), which every switch on the way learns from.
std::vector<std::byte> rarp_of(const Mac& mac) {
  constexpr std::array<std::uint8_t, 10> kEthernetAndArp{0x80, 0x35,   // EtherType
                                                         0x00, 0x01,   // Ethernet
                                                         0x08, 0x00,   // IPv4
                                                         6,    4,      // lengths of addresses
                                                         0x00, 0x03};  // request reverse
  std::vector<std::byte> frame(kNetHeaderBytes);
  const auto add = [&](const auto& bytes) {
    for (const std::uint8_t byte : bytes) frame.push_back(static_cast<std::byte>(byte));
  };
  constexpr std::array<std::uint8_t, 4> kNoAddress{};
  add(Mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
  add(mac);
  add(kEthernetAndArp);
  add(mac);
  add(kNoAddress);
  add(mac);
  add(kNoAddress);
  frame.resize(kNetHeaderBytes + 60);  // the least that Ethernet carries
  return frame;
}

}  // namespace

// True: there is more.
bool VirtioNet::transmit() {
  Virtqueue& queue = driver_.queues[net::kTransmitQueue];
  unsigned left = kNetTurnFrames;
  queue.disarm();
  while (left > 0 && !gate_full_ && !backend_->backlogged()) {
    if (!queue.pop(chain_)) {
      if (queue.arm() == 0) break;
      continue;
    }
    if (chain_.readable_bytes() < kNetHeaderBytes) {
      driver_.signals->fault(GuestFault::kRequest);
      break;
    }
    if (!send(chain_)) {
      queue.unpop();
      gate_full_ = true;
      break;
    }
    queue.push(chain_, 0);
    --left;
  }
  queue.interrupt();
  return left == 0;
}

// The copy is what a gate may keep, and what the guest can no longer change. False: the gate has no room.
bool VirtioNet::send(const Chain& chain) {
  const std::uint64_t bytes = chain.readable_bytes();
  if (bytes < kFrameBytesMin || bytes > kNetFrameBytesMax) {
    ++counters_.send_dropped;
    return true;
  }
  const auto frame = std::span(sending_).first(bytes);
  FVMM_CHECK(chain.read(0, frame) == bytes, "a chain has as many bytes as it says");
  const bool unfinished = (frame[net::kFlags] | frame[net::kGsoType]) != std::byte{0};
  if (unfinished && !backend_->offloads()) {
    ++counters_.send_dropped;
    return true;
  }
  if (!gate_.pass(*backend_, frame)) return false;
  ++counters_.sent_frames;
  counters_.sent_bytes += bytes - kNetHeaderBytes;
  return true;
}

// A frame is read only once the guest has a buffer for it, at least for its beginning. True: there is more.
bool VirtioNet::receive() {
  Virtqueue& queue = driver_.queues[net::kReceiveQueue];
  readable_wanted_ = false;
  unsigned left = kNetTurnFrames;
  queue.disarm();
  for (; left > 0; --left) {
    if (received_bytes_ == 0) {
      if (!queue.waiting() && queue.arm() == 0) break;
      if (!fetch()) {
        readable_wanted_ = true;
        break;
      }
      if (received_bytes_ == 0) continue;  // it was not for the guest
    }
    const Delivered delivered = deliver(queue);
    if (delivered == Delivered::kNoRoom) break;
    if (delivered == Delivered::kYes) {
      ++counters_.received_frames;
      counters_.received_bytes += received_bytes_ - kNetHeaderBytes;
    } else {
      ++counters_.receive_dropped;
    }
    received_bytes_ = 0;
  }
  queue.interrupt();
  return left == 0;
}

// The backend's next frame, checked. False: it has none. True without a frame: that one is not for the guest.
bool VirtioNet::fetch() {
  const auto bytes = backend_->receive(received_);
  if (!bytes) return false;
  if (*bytes < kFrameBytesMin) {
    ++counters_.receive_dropped;
    return true;
  }
  if (negotiated(net::kControlRx) && !filter_.wants(std::span(received_).subspan(kNetHeaderBytes, kMacBytes))) {
    ++counters_.filtered;
    return true;
  }
  // A frame from before the driver said what it can take may want more of it.
  const auto gso = std::to_integer<std::uint8_t>(received_[net::kGsoType]);
  const bool taken = gso == net::kGsoNone || (gso == net::kGsoTcp4 && negotiated(net::kGuestTso4)) ||
                     (gso == net::kGsoTcp6 && negotiated(net::kGuestTso6));
  constexpr std::byte kNeedsChecksum{1};
  const bool unfinished = (received_[net::kFlags] & kNeedsChecksum) != std::byte{0};
  if (!taken || (unfinished && !negotiated(net::kGuestCsum))) {
    ++counters_.receive_dropped;
    return true;
  }
  if (!negotiated(net::kGuestCsum)) received_[net::kFlags] = std::byte{0};  // "is valid" is an offload, too
  received_bytes_ = *bytes;
  return true;
}

/// Takes chains for the frame in hand into chains_, at most `most`.
VirtioNet::Gathered VirtioNet::gather(Virtqueue& queue, std::uint16_t most) {
  Gathered got;
  while (got.chains < most && got.room < received_bytes_) {
    if (chains_.size() == got.chains) chains_.emplace_back();
    Chain& chain = chains_[got.chains];
    if (!queue.pop(chain)) break;
    const bool for_header = got.chains++ > 0 || chain.writable_bytes() >= kNetHeaderBytes;
    if (chain.writable_bytes() == 0 || !for_header) driver_.signals->fault(GuestFault::kRequest);
    got.room += chain.writable_bytes();
  }
  return got;
}

// A turn more for each time that the driver has added something meanwhile, which it can do no more often than the queue
// has entries.
VirtioNet::Delivered VirtioNet::deliver(Virtqueue& queue) {
  const std::uint16_t most = negotiated(net::kMergeable) ? queue.size() : 1;
  for (unsigned turn = 0; turn <= queue.size(); ++turn) {
    const Gathered got = gather(queue, most);
    if (driver_.signals->needs_reset()) break;
    if (got.room >= received_bytes_) {
      fill(queue, got.chains);
      return Delivered::kYes;
    }
    queue.unpop(got.chains);
    if (got.chains == most) return Delivered::kDropped;  // the driver keeps them for smaller frames
    if (queue.arm() <= got.chains) break;
  }
  return Delivered::kNoRoom;
}

// The driver sees all buffers of a frame at once (section 5.1.6.4.1).
void VirtioNet::fill(Virtqueue& queue, std::uint16_t chains) {
  received_[net::kNumBuffers] = static_cast<std::byte>(chains);
  received_[net::kNumBuffers + 1] = static_cast<std::byte>(chains >> 8);
  std::size_t at = 0;
  for (std::uint16_t i = 0; i < chains; ++i) {
    const std::size_t part = std::min<std::uint64_t>(chains_[i].writable_bytes(), received_bytes_ - at);
    chains_[i].write(0, std::span(received_).subspan(at, part));
    queue.fill(chains_[i], static_cast<std::uint32_t>(part));
    at += part;
  }
  queue.publish();
}

void VirtioNet::announce() {
  {
    const auto lock = turns_.take();
    if (filter_.own() != filter_.known()) return;
    announcements_left_ = kNetAnnounceRounds;
    next_announcement_ = std::chrono::steady_clock::now();
    if (!driver_.queues.empty() && negotiated(net::kGuestAnnounce) && negotiated(net::kStatus)) {
      set_status(net::kAnnounce, true);
      driver_.signals->config_changed();
    }
  }
  wake();
}

// One frame may be lost while a switch or a bridge still comes up. In how many milliseconds the next is due; -1: never.
int VirtioNet::send_announcements() {
  constexpr std::chrono::milliseconds kFirstPause{50};
  constexpr std::chrono::milliseconds kLonger{100};  // each pause than the one before
  if (announcements_left_ == 0) return -1;
  const SteadyTime now = std::chrono::steady_clock::now();
  if (now >= next_announcement_) {
    const auto frame = rarp_of(filter_.known());
    if (gate_.pass(*backend_, frame)) ++counters_.announced;
    next_announcement_ = now + kFirstPause + (kNetAnnounceRounds - announcements_left_) * kLonger;
    if (--announcements_left_ == 0) return -1;
  }
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_announcement_ - now);
  return static_cast<int>(left.count());
}

}  // namespace fvmm::devices
