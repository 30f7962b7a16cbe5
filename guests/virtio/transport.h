// The registers of one virtio-mmio device, and what every driver does before its queues are at work (virtio 1.2,
// sections 3.1.1 and 4.2).
#ifndef FVMM_GUESTS_VIRTIO_TRANSPORT_H_
#define FVMM_GUESTS_VIRTIO_TRANSPORT_H_

#include "lib/cpu.h"

/// Where a queue's three parts are.
struct queue_rings {
  const volatile void *descriptors, *driver, *device;
};

/// Finds the first device of this type, of FVMM or of QEMU's microvm, and negotiates `features` (of the lower 32 bits);
/// its slot. FATAL when there is none or it refuses.
u64 transport_start(u32 type, u32 features);
/// FATAL when the device refuses it.
void transport_start_queue(u32 queue, u32 entries, struct queue_rings rings);
/// All queues are started: the device is at work.
void transport_driver_ok(void);

u32 transport_get(u64 offset);
u8 transport_get8(u64 offset);
void transport_set(u64 offset, u32 value);

#endif  // FVMM_GUESTS_VIRTIO_TRANSPORT_H_
