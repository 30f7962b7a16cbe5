// Numbers of the virtio 1.2 specification (OASIS, virtio-v1.2): feature bits, device status, split rings, and the
// registers of the MMIO transport, section 4.2.2.
#pragma once

#include <cstdint>

namespace fvmm::devices::virtio {

// Section 5: device types.
inline constexpr std::uint32_t kTypeNet = 1;
inline constexpr std::uint32_t kTypeBlock = 2;
inline constexpr std::uint32_t kTypeConsole = 3;
inline constexpr std::uint32_t kTypeEntropy = 4;
inline constexpr std::uint32_t kTypeBalloon = 5;
inline constexpr std::uint32_t kTypeVsock = 19;

// Section 6: reserved feature bits, as masks.
inline constexpr std::uint64_t kFeatureIndirect = 1ULL << 28;  // VIRTIO_F_INDIRECT_DESC
inline constexpr std::uint64_t kFeatureEventIdx = 1ULL << 29;  // VIRTIO_F_EVENT_IDX
inline constexpr std::uint64_t kFeatureVersion1 = 1ULL << 32;  // VIRTIO_F_VERSION_1
/// Offered for every device by the transport.
inline constexpr std::uint64_t kTransportFeatures = kFeatureIndirect | kFeatureEventIdx | kFeatureVersion1;
/// Bits 24 to 40 are the transport's and the queues'; a device offers only others (section 2.2).
inline constexpr std::uint64_t kReservedFeatures = ((1ULL << 41) - 1) & ~((1ULL << 24) - 1);

// Section 2.1: device status.
inline constexpr std::uint32_t kStatusAcknowledge = 1;
inline constexpr std::uint32_t kStatusDriver = 2;
inline constexpr std::uint32_t kStatusDriverOk = 4;
inline constexpr std::uint32_t kStatusFeaturesOk = 8;
inline constexpr std::uint32_t kStatusNeedsReset = 64;
inline constexpr std::uint32_t kStatusFailed = 128;

// Section 2.7: split virtqueues.
inline constexpr std::uint16_t kDescriptorNext = 1;
inline constexpr std::uint16_t kDescriptorWrite = 2;
inline constexpr std::uint16_t kDescriptorIndirect = 4;
inline constexpr std::uint64_t kDescriptorBytes = 16;
inline constexpr std::uint64_t kUsedElementBytes = 8;
inline constexpr std::uint64_t kRingHeaderBytes = 4;  // flags, idx
inline constexpr std::uint16_t kAvailNoInterrupt = 1;
inline constexpr std::uint16_t kUsedNoNotify = 1;
inline constexpr std::uint64_t kDescriptorAlign = 16;
inline constexpr std::uint64_t kDriverRingAlign = 2;
inline constexpr std::uint64_t kDeviceRingAlign = 4;

// Section 4.2.2: offsets of registers.
inline constexpr std::uint64_t kMagicValue = 0x000;
inline constexpr std::uint64_t kVersion = 0x004;
inline constexpr std::uint64_t kDeviceId = 0x008;
inline constexpr std::uint64_t kVendorId = 0x00c;
inline constexpr std::uint64_t kDeviceFeatures = 0x010;
inline constexpr std::uint64_t kDeviceFeaturesSel = 0x014;
inline constexpr std::uint64_t kDriverFeatures = 0x020;
inline constexpr std::uint64_t kDriverFeaturesSel = 0x024;
inline constexpr std::uint64_t kQueueSel = 0x030;
inline constexpr std::uint64_t kQueueSizeMaxRegister = 0x034;
inline constexpr std::uint64_t kQueueSize = 0x038;
inline constexpr std::uint64_t kQueueReady = 0x044;
inline constexpr std::uint64_t kQueueNotify = 0x050;
inline constexpr std::uint64_t kInterruptStatus = 0x060;
inline constexpr std::uint64_t kInterruptAck = 0x064;
inline constexpr std::uint64_t kStatus = 0x070;
inline constexpr std::uint64_t kQueueDescLow = 0x080;
inline constexpr std::uint64_t kQueueDescHigh = 0x084;
inline constexpr std::uint64_t kQueueDriverLow = 0x090;
inline constexpr std::uint64_t kQueueDriverHigh = 0x094;
inline constexpr std::uint64_t kQueueDeviceLow = 0x0a0;
inline constexpr std::uint64_t kQueueDeviceHigh = 0x0a4;
inline constexpr std::uint64_t kShmSel = 0x0ac;
inline constexpr std::uint64_t kShmLenLow = 0x0b0;
inline constexpr std::uint64_t kShmLenHigh = 0x0b4;
inline constexpr std::uint64_t kShmBaseLow = 0x0b8;
inline constexpr std::uint64_t kShmBaseHigh = 0x0bc;
inline constexpr std::uint64_t kConfigGeneration = 0x0fc;
inline constexpr std::uint64_t kConfig = 0x100;

inline constexpr std::uint32_t kMagic = 0x74726976;  // "virt"
inline constexpr std::uint32_t kMmioVersion = 2;
inline constexpr std::uint32_t kVendor = 0x4d4d5646;  // "FVMM"; any value will do
inline constexpr std::uint32_t kInterruptUsed = 1;
inline constexpr std::uint32_t kInterruptConfig = 2;

}  // namespace fvmm::devices::virtio
