#include "virtio/rings.h"

#include "lib/boot.h"
#include "virtio/registers.h"
#include "virtio/transport.h"

#define NO_INTERRUPT 1

struct ring {
  volatile struct descriptor descriptors[RING_ENTRIES] __attribute__((aligned(16)));
  volatile struct {
    u16 flags, index;
    u16 heads[RING_ENTRIES];
    u16 used_event;
  } driver __attribute__((aligned(4)));
  volatile struct {
    u16 flags, index;
    struct {
      u32 id, length;
    } elements[RING_ENTRIES];
    u16 avail_event;
  } device __attribute__((aligned(4)));
  u16 taken;
};

static struct ring rings[RINGS_MAX] __attribute__((aligned(4096)));
static bool use_event_idx;

static void compiler_barrier(void) {
  __asm__ volatile("" ::: "memory");
}

static void start_ring(u32 which) {
  struct ring* const ring = &rings[which];
  transport_start_queue(which, RING_ENTRIES, (struct queue_rings){ring->descriptors, &ring->driver, &ring->device});
  ring->driver.flags = NO_INTERRUPT;
  ring->driver.used_event = 0x8000;  // far from any index for as long as we take answers in time
}

u64 rings_start(u32 type, u32 features, u32 queues, bool event_idx) {
  use_event_idx = event_idx;
  const u64 slot = transport_start(type, features | (event_idx ? FEATURE_EVENT_IDX : 0));
  for (u32 i = 0; i < queues; ++i) start_ring(i);
  transport_driver_ok();
  return slot;
}

u8 rings_config8(u64 offset) {
  return transport_get8(REG_CONFIG + offset);
}

void rings_offer(u32 queue, u32 entry, const void* buffer, u32 bytes, bool device_writes) {
  struct ring* const ring = &rings[queue];
  volatile struct descriptor* const descriptor = &ring->descriptors[entry];
  descriptor->address = (u64)buffer;
  descriptor->bytes = bytes;
  descriptor->flags = device_writes ? DESCRIPTOR_WRITE : 0;
  const u16 index = ring->driver.index;
  ring->driver.heads[index % RING_ENTRIES] = (u16)entry;
  compiler_barrier();
  ring->driver.index = (u16)(index + 1);
  __asm__ volatile("lock; orl $0, (%%rsp)" ::: "memory");  // our index before its wish
  const bool wanted = use_event_idx ? ring->device.avail_event == index : !(ring->device.flags & 1);
  if (wanted) transport_set(REG_QUEUE_NOTIFY, queue);
}

int rings_take(u32 queue, u32* written) {
  struct ring* const ring = &rings[queue];
  if (ring->device.index == ring->taken) return -1;
  compiler_barrier();
  const u16 at = ring->taken++ % RING_ENTRIES;
  const u32 entry = ring->device.elements[at].id;
  *written = ring->device.elements[at].length;
  ring->driver.used_event = (u16)(ring->taken - 2);  // never passed: we poll
  if (entry >= RING_ENTRIES) fatal("the device answers what was not asked");
  return (int)entry;
}
