#include "vsock/packets.h"

#include "virtio/rings.h"

#define TYPE_VSOCK 19
#define FEATURE_STREAM 1
#define TYPE_STREAM 1
#define EVENTS 8

enum { kReceive = 0, kTransmit = 1, kEvent = 2, kQueues = 3 };

static struct packet received[RING_ENTRIES] __attribute__((aligned(4096)));
static struct packet sending[RING_ENTRIES] __attribute__((aligned(4096)));
static volatile u32 events[EVENTS];
static u32 taken;                       // of received
static u32 free_entries[RING_ENTRIES];  // of sending
static u32 free_count;

u64 packets_start(bool event_idx) {
  const u64 slot = rings_start(TYPE_VSOCK, FEATURE_STREAM, kQueues, event_idx);
  for (u32 i = 0; i < EVENTS; ++i) rings_offer(kEvent, i, (const void*)&events[i], sizeof events[i], true);
  for (u32 i = 0; i < RING_ENTRIES; ++i) {
    free_entries[free_count++] = i;
    rings_offer(kReceive, i, &received[i], sizeof received[i], true);
  }
  return slot;
}

u64 packets_cid(void) {
  u64 cid = 0;
  for (u32 i = 0; i < 8; ++i) cid |= (u64)rings_config8(i) << (8 * i);
  return cid;
}

const struct packet* packets_take(void (*report)(const char* kind, u64 found, u64 expected)) {
  u32 written = 0;
  const int entry = rings_take(kReceive, &written);
  if (entry < 0) return 0;
  taken = (u32)entry;
  const struct packet_header* const header = &received[taken].header;
  const u64 length = sizeof *header + (u64)header->len;
  if (written != length) report("length", written, length);
  if (header->src_cid != HOST_CID) report("from", header->src_cid, HOST_CID);
  if (header->dst_cid != packets_cid()) report("to", header->dst_cid, packets_cid());
  if (header->type != TYPE_STREAM) report("type", header->type, TYPE_STREAM);
  return &received[taken];
}

void packets_give_back(void) {
  rings_offer(kReceive, taken, &received[taken], sizeof received[taken], true);
}

struct packet* packets_make(void) {
  u32 written = 0;
  for (int entry = rings_take(kTransmit, &written); entry >= 0; entry = rings_take(kTransmit, &written)) {
    free_entries[free_count++] = (u32)entry;
  }
  return free_count == 0 ? 0 : &sending[free_entries[free_count - 1]];
}

void packets_send(void) {
  const u32 entry = free_entries[--free_count];
  struct packet_header* const header = &sending[entry].header;
  header->src_cid = packets_cid();
  header->dst_cid = HOST_CID;
  header->type = TYPE_STREAM;
  rings_offer(kTransmit, entry, &sending[entry], (u32)sizeof *header + header->len, false);
}

bool packets_reset(void) {
  u32 written = 0;
  bool reset = false;
  for (int entry = rings_take(kEvent, &written); entry >= 0; entry = rings_take(kEvent, &written)) {
    if (written == sizeof events[0] && events[entry] == 0) reset = true;
    rings_offer(kEvent, (u32)entry, (const void*)&events[entry], sizeof events[entry], true);
  }
  return reset;
}
