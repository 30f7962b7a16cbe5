// Packets of a virtio-vsock device (virtio 1.2, section 5.10.6), polled.
#ifndef FVMM_GUESTS_VSOCK_PACKETS_H_
#define FVMM_GUESTS_VSOCK_PACKETS_H_

#include "lib/cpu.h"

#define HOST_CID 2
#define DATA_BYTES 2048  // of one packet, either way

enum {
  kRequest = 1,
  kResponse = 2,
  kRst = 3,
  kShutdown = 4,
  kRw = 5,
  kCreditUpdate = 6,
  kCreditRequest = 7,
  kNoReceive = 1,  // flags of kShutdown
  kNoSend = 2,
};

struct packet_header {
  u64 src_cid, dst_cid;
  u32 src_port, dst_port, len;
  u16 type, op;
  u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

struct packet {
  struct packet_header header;
  u8 data[DATA_BYTES];
};

/// Finds the device, starts it, offers all buffers; its slot. FATAL when there is none or it refuses.
u64 packets_start(bool event_idx);
/// The guest's address, as the device shows it now.
u64 packets_cid(void);
/// The next packet for us; null: none. Give it back before asking for the next.
const struct packet* packets_take(void (*report)(const char* kind, u64 found, u64 expected));
void packets_give_back(void);
/// A packet to fill; null: all are with the device. Send it before asking for the next.
struct packet* packets_make(void);
void packets_send(void);
/// Whether the device has said since the last call that all connections are gone.
bool packets_reset(void);

#endif  // FVMM_GUESTS_VSOCK_PACKETS_H_
