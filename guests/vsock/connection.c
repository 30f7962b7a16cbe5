#include "vsock/connection.h"

#define CONNECTIONS 16
#define PATTERN_AHEAD 8192  // bytes sent and not seen again
#define FIRST_PORT 1024

static struct connection connections[CONNECTIONS];
static u32 next_port = FIRST_PORT;
struct figures figures;

/// Byte `at` of what we send, on connection `port`.
static u8 pattern(u64 at, u32 port) {
  return (u8)(((at + port) * 0x9e3779b97f4a7c15ULL) >> 56);
}

static u32 used(const struct connection* c) {
  return c->got - c->passed_on;
}

static u32 credit(const struct connection* c) {
  const u32 under_way = c->sent - c->forwarded;
  return under_way < c->room ? c->room - under_way : 0;
}

static void owe(struct connection* c, u32 op) {
  c->owed |= 1U << op;
}

static void fill_header(struct packet_header* header, u32 host_port, u32 guest_port, u16 op) {
  header->src_port = guest_port;
  header->dst_port = host_port;
  header->len = 0;
  header->op = op;
  header->flags = op == kShutdown ? kNoReceive | kNoSend : 0;
  header->buf_alloc = ROOM;
  header->fwd_cnt = 0;
}

static struct connection* find(u32 host_port, u32 guest_port) {
  for (u32 i = 0; i < CONNECTIONS; ++i) {
    struct connection* const c = &connections[i];
    if (c->state != kFree && c->host_port == host_port && c->guest_port == guest_port) return c;
  }
  return 0;
}

static struct connection* add(u32 host_port, u32 guest_port, enum state state, bool ours) {
  for (u32 i = 0; i < CONNECTIONS; ++i) {
    struct connection* const c = &connections[i];
    if (c->state != kFree) continue;
    c->state = state;
    c->ours = ours;
    c->host_port = host_port;
    c->guest_port = guest_port;
    c->room = c->forwarded = c->sent = c->got = c->passed_on = c->told = 0;
    c->host_flags = c->owed = 0;
    c->said_shutdown = false;
    c->pattern_sent = c->pattern_seen = 0;
    return c;
  }
  return 0;
}

/// A packet that is for nobody, or that we have no room for. Lost when all buffers are with the device.
static void refuse(const struct packet_header* header) {
  if (header->op == kRst) return;
  struct packet* const packet = packets_make();
  if (!packet) return;
  fill_header(&packet->header, header->src_port, header->dst_port, kRst);
  packets_send();
}

static void take_data(struct connection* c, const struct packet* packet) {
  const u32 bytes = packet->header.len;
  if (bytes > ROOM - used(c)) {
    report("room", bytes, ROOM - used(c));
    return;
  }
  for (u32 i = 0; i < bytes; ++i) c->data[(c->got + i) % ROOM] = packet->data[i];
  c->got += bytes;
  if (!c->ours) return;
  for (; used(c) > 0; ++c->passed_on) {
    const u8 expected = pattern(c->pattern_seen++, c->guest_port);
    if (c->data[c->passed_on % ROOM] != expected) report("pattern", c->pattern_seen - 1, expected);
    ++figures.verified;
  }
}

static void open_from_host(const struct packet_header* header, u32 port) {
  struct connection* const c = header->dst_port == port ? add(header->src_port, port, kOpen, false) : 0;
  if (!c) {
    ++figures.refused;
    refuse(header);
    return;
  }
  c->room = header->buf_alloc;
  c->forwarded = header->fwd_cnt;
  owe(c, kResponse);
  ++figures.opened;
}

void connection_packet(const struct packet* packet, u32 port) {
  const struct packet_header* const header = &packet->header;
  struct connection* const c = find(header->src_port, header->dst_port);
  if (!c && header->op == kRequest) {
    open_from_host(header, port);
    return;
  }
  if (!c) {
    refuse(header);
    return;
  }
  c->room = header->buf_alloc;
  c->forwarded = header->fwd_cnt;
  if (header->op == kRst) {
    if (c->state == kAsked) ++figures.refused;
    c->state = kFree;
  } else if (header->op == kResponse && c->state == kAsked) {
    c->state = kOpen;
    ++figures.opened;
  } else if (header->op == kRw && c->state == kOpen) {
    take_data(c, packet);
  } else if (header->op == kShutdown) {
    c->host_flags |= header->flags;
  } else if (header->op == kCreditRequest) {
    owe(c, kCreditUpdate);
  } else if (header->op != kCreditUpdate) {
    report("op", header->op, 0);
  }
}

/// The next data to send into `out`; how much.
static u32 data_to_send(struct connection* c, u8* out) {
  u32 bytes = (u32)min_u64(credit(c), DATA_BYTES);
  if (c->state != kOpen || c->said_shutdown || (c->host_flags & kNoReceive)) return 0;
  if (c->ours) {
    bytes = (u32)min_u64(bytes, PATTERN_AHEAD - (c->pattern_sent - c->pattern_seen));
    for (u32 i = 0; i < bytes; ++i) out[i] = pattern(c->pattern_sent++, c->guest_port);
  } else {
    bytes = (u32)min_u64(bytes, used(c));
    for (u32 i = 0; i < bytes; ++i) out[i] = c->data[c->passed_on++ % ROOM];
    figures.echoed += bytes;
  }
  c->sent += bytes;
  return bytes;
}

/// The operation to send next; 0: none.
static u16 next_op(struct connection* c, u8* data, u32* bytes) {
  for (u16 op = kRequest; op <= kResponse; ++op) {
    if (c->owed & 1U << op) return op;
  }
  *bytes = data_to_send(c, data);
  if (*bytes > 0) return kRw;
  if (c->host_flags == (kNoReceive | kNoSend)) return kRst;                              // the program has closed
  if ((c->host_flags & kNoSend) && used(c) == 0 && !c->said_shutdown) return kShutdown;  // and got all of it back
  if ((c->owed & 1U << kCreditUpdate) || c->passed_on - c->told > ROOM / 2) return kCreditUpdate;
  return 0;
}

static bool pump(struct connection* c) {
  struct packet* const packet = packets_make();
  if (!packet) return false;
  u32 bytes = 0;
  const u16 op = next_op(c, packet->data, &bytes);
  if (op == 0) return false;
  fill_header(&packet->header, c->host_port, c->guest_port, op);
  packet->header.len = bytes;
  packet->header.fwd_cnt = c->passed_on;
  c->owed &= ~(1U << op | 1U << kCreditUpdate);
  c->told = c->passed_on;
  if (op == kShutdown) c->said_shutdown = true;
  if (op == kRst) c->state = kFree;
  packets_send();
  return true;
}

void connection_pump_all(void) {
  for (u32 i = 0; i < CONNECTIONS; ++i) {
    if (connections[i].state != kFree) (void)pump(&connections[i]);
  }
}

void connection_ask(u32 host_port) {
  for (u32 i = 0; i < CONNECTIONS; ++i) {
    if (connections[i].state != kFree && connections[i].ours) return;
  }
  struct connection* const c = add(host_port, next_port++, kAsked, true);
  if (c) owe(c, kRequest);
}

void connection_forget_all(void) {
  for (u32 i = 0; i < CONNECTIONS; ++i) connections[i].state = kFree;
  ++figures.resets;
}

u32 connection_count(void) {
  u32 count = 0;
  for (u32 i = 0; i < CONNECTIONS; ++i) count += connections[i].state != kFree;
  return count;
}
