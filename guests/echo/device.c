#include "echo/device.h"

#define TYPE_NET 1
#define FEATURE_MAC (1U << 5)

enum { kReceive = 0, kTransmit = 1, kQueues = 2 };

static u8 buffers[NET_BUFFERS][NET_BUFFER_BYTES] __attribute__((aligned(4096)));

u64 net_start(bool event_idx) {
  const u64 slot = rings_start(TYPE_NET, FEATURE_MAC, kQueues, event_idx);
  for (int i = 0; i < NET_BUFFERS; ++i) net_give_back(i);
  return slot;
}

void net_mac(u8 mac[6]) {
  for (u32 i = 0; i < 6; ++i) mac[i] = rings_config8(i);
}

int net_take(u8** frame, u32* bytes) {
  u32 length = 0;
  const int buffer = rings_take(kReceive, &length);
  if (buffer < 0) return -1;
  *frame = buffers[buffer] + NET_HEADER_BYTES;
  *bytes = length < NET_HEADER_BYTES ? 0 : length - NET_HEADER_BYTES;
  return buffer;
}

void net_send(int buffer, u32 bytes) {
  for (u32 i = 0; i < NET_HEADER_BYTES; ++i) buffers[buffer][i] = 0;
  rings_offer(kTransmit, (u32)buffer, buffers[buffer], NET_HEADER_BYTES + bytes, false);
}

void net_give_back(int buffer) {
  rings_offer(kReceive, (u32)buffer, buffers[buffer], NET_BUFFER_BYTES, true);
}

void net_reap(void (*report)(const char* kind, u64 found, u64 expected)) {
  u32 length = 0;
  for (int buffer = rings_take(kTransmit, &length); buffer >= 0; buffer = rings_take(kTransmit, &length)) {
    if (length != 0) report("length", length, 0);
    net_give_back(buffer);
  }
}
