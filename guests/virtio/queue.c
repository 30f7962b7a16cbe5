#include "virtio/queue.h"

#include "virtio/registers.h"
#include "virtio/transport.h"

#define QUEUE_SIZE 16  // power of two

struct driver_ring {
  u16 flags, index;
  u16 heads[QUEUE_SIZE];
  u16 used_event;
};

struct device_ring {
  u16 flags, index;
  struct used_element elements[QUEUE_SIZE];
  u16 avail_event;
};

static volatile struct descriptor descriptors[QUEUE_SIZE] __attribute__((aligned(4096)));
static volatile struct driver_ring driver_ring __attribute__((aligned(4096)));
static volatile struct device_ring device_ring __attribute__((aligned(4096)));
static bool use_event_idx;
static u16 taken;

u64 queue_start(u32 type, bool event_idx) {
  use_event_idx = event_idx;
  const u64 slot = transport_start(type, event_idx ? FEATURE_EVENT_IDX : 0);
  transport_start_queue(0, QUEUE_SIZE, (struct queue_rings){descriptors, &driver_ring, &device_ring});
  transport_driver_ok();
  return slot;
}

u32 queue_last_head(void) {
  return (u16)(driver_ring.index - 1) % QUEUE_SIZE;
}

u64 queue_config(u64 offset) {
  return transport_get(REG_CONFIG + offset) | (u64)transport_get(REG_CONFIG + offset + 4) << 32;
}

void queue_config_write(u64 offset, u32 value) {
  transport_set(REG_CONFIG + offset, value);
}

void queue_acknowledge(void) {
  transport_set(REG_INTERRUPT_ACK, transport_get(REG_INTERRUPT_STATUS));
}

void queue_offer(u64 address, u32 bytes) {
  const struct queue_part part = {address, bytes, true};
  queue_offer_chain(&part, 1);
}

void queue_offer_chain(const struct queue_part* parts, u32 count) {
  const u16 index = driver_ring.index;
  const u16 head = index % QUEUE_SIZE;
  for (u32 i = 0; i < count; ++i) {
    volatile struct descriptor* const descriptor = &descriptors[(head + i) % QUEUE_SIZE];
    descriptor->address = parts[i].address;
    descriptor->bytes = parts[i].bytes;
    descriptor->flags = (u16)((parts[i].device_writes ? DESCRIPTOR_WRITE : 0) | (i + 1 < count ? DESCRIPTOR_NEXT : 0));
    descriptor->next = (u16)((head + i + 1) % QUEUE_SIZE);
  }
  driver_ring.heads[head] = head;
  driver_ring.used_event = index;  // an interrupt for this request
  __asm__ volatile("" ::: "memory");
  driver_ring.index = (u16)(index + 1);
  __asm__ volatile("lock; orl $0, (%%rsp)" ::: "memory");  // our index before its wish
  if (use_event_idx ? device_ring.avail_event == index : !(device_ring.flags & 1)) transport_set(REG_QUEUE_NOTIFY, 0);
}

bool queue_answered(void) {
  return device_ring.index != taken;
}

bool queue_wait(u64 ticks) {
  const u64 limit = rdtsc() + ticks;
  while (!queue_answered()) {
    if (rdtsc() >= limit) return false;
  }
  return true;
}

struct used_element queue_take(void) {
  const volatile struct used_element* const element = &device_ring.elements[taken++ % QUEUE_SIZE];
  const struct used_element answer = {element->id, element->length};
  return answer;
}

void queue_check_interrupt(void (*report)(const char* kind, u64 found, u64 expected)) {
  u32 status = transport_get(REG_INTERRUPT_STATUS);
  for (u32 turns = 0; status == 0 && turns < 100000; ++turns)
    status = transport_get(REG_INTERRUPT_STATUS);  // index first
  if (status != 1) report("interrupt", status, 1);
  transport_set(REG_INTERRUPT_ACK, 1);
  if (transport_get(REG_INTERRUPT_STATUS) != 0) report("acknowledge", transport_get(REG_INTERRUPT_STATUS), 0);
}
