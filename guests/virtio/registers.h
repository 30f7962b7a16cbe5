// Registers, feature bits and descriptors of a virtio-mmio device, as its driver sees them (virtio 1.2, sections 2.7
// and 4.2).
#ifndef FVMM_GUESTS_VIRTIO_REGISTERS_H_
#define FVMM_GUESTS_VIRTIO_REGISTERS_H_

#include "lib/cpu.h"

#define REG_MAGIC 0x000
#define REG_VERSION 0x004
#define REG_DEVICE_ID 0x008
#define REG_DRIVER_FEATURES 0x020
#define REG_DRIVER_FEATURES_SEL 0x024
#define REG_QUEUE_SEL 0x030
#define REG_QUEUE_SIZE 0x038
#define REG_QUEUE_READY 0x044
#define REG_QUEUE_NOTIFY 0x050
#define REG_INTERRUPT_STATUS 0x060
#define REG_INTERRUPT_ACK 0x064
#define REG_STATUS 0x070
#define REG_QUEUE_DESC 0x080
#define REG_QUEUE_DRIVER 0x090
#define REG_QUEUE_DEVICE 0x0a0
#define REG_CONFIG 0x100
#define MAGIC 0x74726976
#define FEATURE_EVENT_IDX (1U << 29)
#define FEATURE_VERSION_1_HIGH 1U  // bit 32
#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2

struct descriptor {
  u64 address;
  u32 bytes;
  u16 flags, next;
};

#endif  // FVMM_GUESTS_VIRTIO_REGISTERS_H_
