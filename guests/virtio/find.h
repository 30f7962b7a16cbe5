// Where virtio-mmio devices are.
#ifndef FVMM_GUESTS_VIRTIO_FIND_H_
#define FVMM_GUESTS_VIRTIO_FIND_H_

#include "lib/cpu.h"

struct virtio_place {
  u64 base;  // of the device's registers
  u64 slot;
};

/// The first device of this type, version 2. FATAL when there is none.
struct virtio_place virtio_find(u32 type);

#endif  // FVMM_GUESTS_VIRTIO_FIND_H_
