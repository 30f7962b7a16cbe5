// The control queue of virtio-net (virtio 1.2, section 5.1.6.5): class, command, data; then one byte of answer.
#include <algorithm>
#include <array>
#include <utility>

#include "devices/virtio_net.h"
#include "devices/virtio_net_abi.h"

namespace fvmm::devices {
namespace {

enum Class : std::uint8_t { kClassRx = 0, kClassMac = 1, kClassAnnounce = 3 };
enum RxCommand : std::uint8_t { kPromiscuous = 0, kAllMulticast = 1 };
enum MacCommand : std::uint8_t { kTableSet = 0, kAddressSet = 1 };
enum AnnounceCommand : std::uint8_t { kAcknowledge = 0 };

constexpr std::byte kOk{0};
constexpr std::byte kError{1};
constexpr std::uint64_t kDataOffset = 2;

template <std::size_t N>
bool read_exactly(const Chain& chain, std::uint64_t offset, std::array<std::uint8_t, N>& out) {
  return chain.read(offset, std::as_writable_bytes(std::span(out))) == out.size();
}

/// struct virtio_net_ctrl_mac at `offset`, which moves behind it. False: the chain ends before the table does.
bool read_table(const Chain& chain, std::uint64_t& offset, NetFilter::Table& table) {
  std::array<std::uint8_t, 4> count{};
  if (!read_exactly(chain, offset, count)) return false;
  offset += count.size();
  const std::uint64_t entries = count[0] | count[1] << 8 | count[2] << 16 | std::uint64_t{count[3]} << 24;
  if (entries * kMacBytes > chain.readable_bytes() - offset) return false;
  table.all = entries > kMacTableEntriesMax;
  for (std::uint64_t i = 0; !table.all && i < entries; ++i) {
    Mac& mac = table.entries.emplace_back();
    if (!read_exactly(chain, offset + i * kMacBytes, mac)) return false;
  }
  offset += entries * kMacBytes;
  return true;
}

}  // namespace

// True: there is more.
bool VirtioNet::serve_control() {
  Virtqueue& queue = driver_.queues[net::kControl];
  std::uint16_t left = queue.arm();
  for (; left > 0 && queue.pop(chain_); --left) {
    if (chain_.writable_bytes() == 0) {
      driver_.signals->fault(GuestFault::kRequest);
      return false;
    }
    const std::array<std::byte, 1> answer{obey(chain_) ? kOk : kError};
    queue.push(chain_, static_cast<std::uint32_t>(chain_.write(0, answer)));
  }
  queue.interrupt();
  return queue.waiting();
}

bool VirtioNet::obey(const Chain& chain) {
  std::array<std::uint8_t, 2> command{};
  if (!read_exactly(chain, 0, command)) return false;
  std::array<std::uint8_t, 1> on{};
  switch (command[0]) {
    case kClassRx:
      if (!negotiated(net::kControlRx) || !read_exactly(chain, kDataOffset, on) || on[0] > 1) return false;
      if (command[1] == kPromiscuous) {
        filter_.set_promiscuous(on[0] == 1);
      } else if (command[1] == kAllMulticast) {
        filter_.set_all_multicast(on[0] == 1);
      } else {
        return false;
      }
      return true;
    case kClassMac: {
      if (command[1] == kTableSet) return negotiated(net::kControlRx) && set_mac_table(chain);
      Mac mac{};
      const bool good = command[1] == kAddressSet && negotiated(net::kControlMac) &&
                        read_exactly(chain, kDataOffset, mac) && is_station(mac);
      if (!good) return false;
      show_mac(mac);
      filter_.set_own(mac);
      filter_.set_known(mac);
      return true;
    }
    case kClassAnnounce:
      if (!negotiated(net::kGuestAnnounce) || command[1] != kAcknowledge) return false;
      set_status(net::kAnnounce, false);
      return true;
    default:
      return false;
  }
}

bool VirtioNet::set_mac_table(const Chain& chain) {
  NetFilter::Table unicast;
  NetFilter::Table multicast;
  std::uint64_t offset = kDataOffset;
  if (!read_table(chain, offset, unicast) || !read_table(chain, offset, multicast)) return false;
  filter_.set_tables(std::move(unicast), std::move(multicast));
  return true;
}

}  // namespace fvmm::devices
