// Numbers of virtio-net (virtio 1.2, section 5.1) that more than one file of the device needs.
#pragma once

#include <cstdint>

namespace fvmm::devices::net {

// Section 5.1.3: feature bits.
inline constexpr std::uint64_t kCsum = 1ULL << 0;       // the guest may leave checksums to us
inline constexpr std::uint64_t kGuestCsum = 1ULL << 1;  // we may leave them to the guest
inline constexpr std::uint64_t kMac = 1ULL << 5;
inline constexpr std::uint64_t kGuestTso4 = 1ULL << 7;
inline constexpr std::uint64_t kGuestTso6 = 1ULL << 8;
inline constexpr std::uint64_t kHostTso4 = 1ULL << 11;
inline constexpr std::uint64_t kHostTso6 = 1ULL << 12;
inline constexpr std::uint64_t kMergeable = 1ULL << 15;
inline constexpr std::uint64_t kStatus = 1ULL << 16;
inline constexpr std::uint64_t kControlQueue = 1ULL << 17;
inline constexpr std::uint64_t kControlRx = 1ULL << 18;
inline constexpr std::uint64_t kGuestAnnounce = 1ULL << 21;
inline constexpr std::uint64_t kControlMac = 1ULL << 23;

inline constexpr unsigned kReceiveQueue = 0;
inline constexpr unsigned kTransmitQueue = 1;
inline constexpr unsigned kControl = 2;

// Section 5.1.4: bits of the status.
inline constexpr std::uint16_t kLinkUp = 1;
inline constexpr std::uint16_t kAnnounce = 2;

// Section 5.1.6: struct virtio_net_hdr. Offsets of bytes; num_buffers is a le16.
inline constexpr std::size_t kFlags = 0;
inline constexpr std::size_t kGsoType = 1;
inline constexpr std::size_t kNumBuffers = 10;
inline constexpr std::uint8_t kGsoNone = 0;
inline constexpr std::uint8_t kGsoTcp4 = 1;
inline constexpr std::uint8_t kGsoTcp6 = 4;

}  // namespace fvmm::devices::net
