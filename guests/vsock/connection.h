// Connections of the guest: those that programs of the host make to it, whose data goes back to them, and one that it
// makes itself, on which it sends a pattern and expects it back.
#ifndef FVMM_GUESTS_VSOCK_CONNECTION_H_
#define FVMM_GUESTS_VSOCK_CONNECTION_H_

#include "vsock/packets.h"

#define ROOM 16384  // for what has come on one connection and not gone back yet; a power of two

enum state { kFree, kAsked, kOpen };

struct connection {
  enum state state;
  bool ours;  // made by us
  u32 host_port, guest_port;
  u32 room, forwarded;             // the host's, as it last said
  u32 sent, got, passed_on, told;  // ours: to the host, from it, of that done with, and said to be
  u32 host_flags;                  // of its kShutdown
  bool said_shutdown;
  u32 owed;                        // operations to send, by bit
  u64 pattern_sent, pattern_seen;  // bytes
  u8 data[ROOM];                   // from passed_on to got
};

struct figures {
  u64 echoed, verified, opened, refused, resets, errors;
};

/// What a packet does to its connection, or to none.
void connection_packet(const struct packet* packet, u32 port);
/// Sends what is owed and what there is to send, as far as the host has room; often.
void connection_pump_all(void);
/// Asks for the one of ours, if there is none.
void connection_ask(u32 host_port);
/// All connections are gone.
void connection_forget_all(void);
u32 connection_count(void);
extern struct figures figures;
/// One difference, counted and printed.
void report(const char* kind, u64 found, u64 expected);

#endif  // FVMM_GUESTS_VSOCK_CONNECTION_H_
