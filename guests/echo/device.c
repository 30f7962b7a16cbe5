#include "echo/device.h"

#include "lib/boot.h"
#include "virtio/find.h"
#include "virtio/registers.h"

#define TYPE_NET 1

#define FEATURE_MAC (1U << 5)
#define NO_INTERRUPT 1

enum { kReceive = 0, kTransmit = 1, kQueues = 2 };

struct queue {
  volatile struct descriptor descriptors[NET_BUFFERS] __attribute__((aligned(16)));
  volatile struct {
    u16 flags, index;
    u16 heads[NET_BUFFERS];
    u16 used_event;
  } driver __attribute__((aligned(4)));
  volatile struct {
    u16 flags, index;
    struct {
      u32 id, length;
    } elements[NET_BUFFERS];
    u16 avail_event;
  } device __attribute__((aligned(4)));
  u16 taken;
};

static struct queue queues[kQueues] __attribute__((aligned(4096)));
static u8 buffers[NET_BUFFERS][NET_BUFFER_BYTES] __attribute__((aligned(4096)));
static u64 base;
static bool use_event_idx;

static u32 get(u64 offset) {
  return *(volatile u32*)(base + offset);
}

static void set(u64 offset, u32 value) {
  mmio_write32(base + offset, value);
}

static void set_address(u64 offset, const volatile void* ring) {
  set(offset, (u32)(u64)ring);
  set(offset + 4, (u32)((u64)ring >> 32));
}

static void compiler_barrier(void) {
  __asm__ volatile("" ::: "memory");
}

// The buffer's number is its descriptor's, in both queues.
static void offer(u32 which, int buffer, u32 bytes, u16 flags) {
  struct queue* const queue = &queues[which];
  volatile struct descriptor* const descriptor = &queue->descriptors[buffer];
  descriptor->address = (u64)buffers[buffer];
  descriptor->bytes = bytes;
  descriptor->flags = flags;
  const u16 index = queue->driver.index;
  queue->driver.heads[index % NET_BUFFERS] = (u16)buffer;
  compiler_barrier();
  queue->driver.index = (u16)(index + 1);
  __asm__ volatile("lock; orl $0, (%%rsp)" ::: "memory");  // our index before its wish
  const bool wanted = use_event_idx ? queue->device.avail_event == index : !(queue->device.flags & 1);
  if (wanted) set(REG_QUEUE_NOTIFY, which);
}

static void start_queue(u32 which) {
  struct queue* const queue = &queues[which];
  set(REG_QUEUE_SEL, which);
  set(REG_QUEUE_SIZE, NET_BUFFERS);
  set_address(REG_QUEUE_DESC, queue->descriptors);
  set_address(REG_QUEUE_DRIVER, &queue->driver);
  set_address(REG_QUEUE_DEVICE, &queue->device);
  set(REG_QUEUE_READY, 1);
  if (get(REG_QUEUE_READY) != 1) fatal("the device refuses a queue");
  queue->driver.flags = NO_INTERRUPT;
  queue->driver.used_event = 0x8000;  // far from any index for as long as we take answers in time
}

u64 net_start(bool event_idx) {
  const struct virtio_place place = virtio_find(TYPE_NET);
  base = place.base;
  use_event_idx = event_idx;
  set(REG_STATUS, 0);
  set(REG_STATUS, 1);
  set(REG_STATUS, 1 | 2);
  set(REG_DRIVER_FEATURES_SEL, 0);
  set(REG_DRIVER_FEATURES, FEATURE_MAC | (event_idx ? FEATURE_EVENT_IDX : 0));
  set(REG_DRIVER_FEATURES_SEL, 1);
  set(REG_DRIVER_FEATURES, FEATURE_VERSION_1_HIGH);
  set(REG_STATUS, 1 | 2 | 8);
  if (!(get(REG_STATUS) & 8)) fatal("the device refuses the features");
  for (u32 i = 0; i < kQueues; ++i) start_queue(i);
  set(REG_STATUS, 1 | 2 | 8 | 4);
  for (int i = 0; i < NET_BUFFERS; ++i) net_give_back(i);
  return place.slot;
}

void net_mac(u8 mac[6]) {
  for (u32 i = 0; i < 6; ++i) mac[i] = *(volatile u8*)(base + REG_CONFIG + i);
}

int net_take(u8** frame, u32* bytes) {
  struct queue* const queue = &queues[kReceive];
  if (queue->device.index == queue->taken) return -1;
  const u16 at = queue->taken++ % NET_BUFFERS;
  const u32 buffer = queue->device.elements[at].id;
  const u32 length = queue->device.elements[at].length;
  queue->driver.used_event = (u16)(queue->taken - 2);  // never passed: we poll
  if (buffer >= NET_BUFFERS) fatal("the device answers what was not asked");
  *frame = buffers[buffer] + NET_HEADER_BYTES;
  *bytes = length < NET_HEADER_BYTES ? 0 : length - NET_HEADER_BYTES;
  return (int)buffer;
}

void net_send(int buffer, u32 bytes) {
  for (u32 i = 0; i < NET_HEADER_BYTES; ++i) buffers[buffer][i] = 0;
  offer(kTransmit, buffer, NET_HEADER_BYTES + bytes, 0);
}

void net_give_back(int buffer) {
  offer(kReceive, buffer, NET_BUFFER_BYTES, DESCRIPTOR_WRITE);
}

void net_reap(void (*report)(const char* kind, u64 found, u64 expected)) {
  struct queue* const queue = &queues[kTransmit];
  while (queue->device.index != queue->taken) {
    const u16 at = queue->taken++ % NET_BUFFERS;
    const u32 buffer = queue->device.elements[at].id;
    if (buffer >= NET_BUFFERS) fatal("the device answers what was not asked");
    if (queue->device.elements[at].length != 0) report("length", queue->device.elements[at].length, 0);
    queue->driver.used_event = (u16)(queue->taken - 2);
    net_give_back((int)buffer);
  }
}
