#include "virtio/transport.h"

#include "lib/boot.h"
#include "virtio/registers.h"

/// Where virtio-mmio devices are: FVMM's, and those of QEMU's microvm.
static const struct { u64 base, bytes, slots; } ranges[] = {{0xd0000000ULL, 0x1000, 18}, {0xfeb00000ULL, 0x200, 24}};

static u64 base;

u32 transport_get(u64 offset) {
  return *(volatile u32*)(base + offset);
}

u8 transport_get8(u64 offset) {
  return *(volatile u8*)(base + offset);
}

void transport_set(u64 offset, u32 value) {
  mmio_write32(base + offset, value);
}

static void set_address(u64 offset, const volatile void* ring) {
  transport_set(offset, (u32)(u64)ring);
  transport_set(offset + 4, (u32)((u64)ring >> 32));
}

static bool is_here(u32 type) {
  return transport_get(REG_MAGIC) == MAGIC && transport_get(REG_VERSION) == 2 && transport_get(REG_DEVICE_ID) == type;
}

static u64 find(u32 type) {
  for (u32 range = 0; range < sizeof ranges / sizeof ranges[0]; ++range) {
    for (u64 slot = 0; slot < ranges[range].slots; ++slot) {
      base = ranges[range].base + slot * ranges[range].bytes;
      if (is_here(type)) return slot;
    }
  }
  fatal("no virtio device of that type");
}

u64 transport_start(u32 type, u32 features) {
  const u64 slot = find(type);
  transport_set(REG_STATUS, 0);
  transport_set(REG_STATUS, 1);
  transport_set(REG_STATUS, 1 | 2);
  transport_set(REG_DRIVER_FEATURES_SEL, 0);
  transport_set(REG_DRIVER_FEATURES, features);
  transport_set(REG_DRIVER_FEATURES_SEL, 1);
  transport_set(REG_DRIVER_FEATURES, FEATURE_VERSION_1_HIGH);
  transport_set(REG_STATUS, 1 | 2 | 8);
  if (!(transport_get(REG_STATUS) & 8)) fatal("the device refuses the features");
  return slot;
}

void transport_start_queue(u32 queue, u32 entries, struct queue_rings rings) {
  transport_set(REG_QUEUE_SEL, queue);
  transport_set(REG_QUEUE_SIZE, entries);
  set_address(REG_QUEUE_DESC, rings.descriptors);
  set_address(REG_QUEUE_DRIVER, rings.driver);
  set_address(REG_QUEUE_DEVICE, rings.device);
  transport_set(REG_QUEUE_READY, 1);
  if (transport_get(REG_QUEUE_READY) != 1) fatal("the device refuses a queue");
}

void transport_driver_ok(void) {
  transport_set(REG_STATUS, 1 | 2 | 8 | 4);
}
