// A virtio-net device (virtio 1.2, section 5.1), polled: one queue each way over the same buffers, no offloads.
#ifndef FVMM_GUESTS_ECHO_DEVICE_H_
#define FVMM_GUESTS_ECHO_DEVICE_H_

#include "virtio/rings.h"

#define NET_BUFFERS RING_ENTRIES  // the buffer's number is its entry's, in both queues
#define NET_BUFFER_BYTES 2048
#define NET_HEADER_BYTES 12

/// Finds the first network device, negotiates, offers all buffers for reception; its slot. FATAL when there is none or
/// it refuses.
u64 net_start(bool event_idx);
/// The address that the device shows now.
void net_mac(u8 mac[6]);
/// A received frame in `*bytes`, without its virtio header, and the buffer's number; -1: none.
int net_take(u8** frame, u32* bytes);
/// Sends what the buffer holds, header zeroed, and gives it back for reception when the device is done with it.
void net_send(int buffer, u32 bytes);
/// Gives a buffer back for reception.
void net_give_back(int buffer);
/// Gives back what has been sent. Often, or there are no buffers left.
void net_reap(void (*report)(const char* kind, u64 found, u64 expected));

#endif  // FVMM_GUESTS_ECHO_DEVICE_H_
