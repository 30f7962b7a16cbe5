// Some queues of one virtio-mmio device (virtio 1.2, sections 2.7 and 4.2), polled: each entry is one buffer, and as
// many may be with the device at once as a queue has entries.
#ifndef FVMM_GUESTS_VIRTIO_RINGS_H_
#define FVMM_GUESTS_VIRTIO_RINGS_H_

#include "lib/cpu.h"

#define RING_ENTRIES 64  // of each queue; a power of two
#define RINGS_MAX 3

/// Finds the first device of this type, of FVMM or of QEMU's microvm, negotiates `features` (of the lower 32 bits) and
/// starts its first queues; its slot. FATAL when there is none or it refuses.
u64 rings_start(u32 type, u32 features, u32 queues, bool event_idx);
/// A byte of the configuration space.
u8 rings_config8(u64 offset);
/// Gives the device the buffer behind an entry that it does not have. Notifies, if it wants to be told.
void rings_offer(u32 queue, u32 entry, const void* buffer, u32 bytes, bool device_writes);
/// The next entry that the device has given back, and how much it has written; -1: none.
int rings_take(u32 queue, u32* written);

#endif  // FVMM_GUESTS_VIRTIO_RINGS_H_
