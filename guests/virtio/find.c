#include "virtio/find.h"

#include "lib/boot.h"
#include "virtio/registers.h"

/// FVMM's, and those of QEMU's microvm.
static const struct { u64 base, bytes, slots; } ranges[] = {{0xd0000000ULL, 0x1000, 18}, {0xfeb00000ULL, 0x200, 24}};

static u32 get(u64 address) {
  return *(volatile u32*)address;
}

struct virtio_place virtio_find(u32 type) {
  for (u32 range = 0; range < sizeof ranges / sizeof ranges[0]; ++range) {
    for (u64 slot = 0; slot < ranges[range].slots; ++slot) {
      const u64 base = ranges[range].base + slot * ranges[range].bytes;
      if (get(base + REG_MAGIC) == MAGIC && get(base + REG_VERSION) == 2 && get(base + REG_DEVICE_ID) == type) {
        return (struct virtio_place){base, slot};
      }
    }
  }
  fatal("no virtio device of that type");
}
