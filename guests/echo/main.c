// A guest that answers on its network: ARP and ICMP echo for its IPv4 address, UDP datagrams and frames of the
// experimental EtherType 0x88b5 sent back as they came. docs/guests.md has the options and the lines.
#include "echo/device.h"
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"

enum {
  kMacBytes = 6,
  kEthernetBytes = 14,
  kArpBytes = 28,
  kIpBytes = 20,
  kUdpBytes = 8,
  kTypeArp = 0x0806,
  kTypeIp = 0x0800,
  kTypeEcho = 0x88b5,
  kIcmp = 1,
  kUdp = 17,
};

/// Frames answered, in a register of its own; the copy in memory must agree.
register u64 g_frames __asm__("r15");

static u64 frames_copy;
static u64 others;
static u64 errors;
static u8 mac[kMacBytes];
static u32 address;

static void report(const char* kind, u64 found, u64 expected) {
  line_error(++errors, kind, g_frames, found, expected);
}

static u32 get16(const u8* from) {
  return (u32)from[0] << 8 | from[1];
}

static u32 get32(const u8* from) {
  return get16(from) << 16 | get16(from + 2);
}

static void put16(u8* to, u32 value) {
  to[0] = (u8)(value >> 8);
  to[1] = (u8)value;
}

static void put32(u8* to, u32 value) {
  put16(to, value >> 16);
  put16(to + 2, value);
}

static void copy(u8* to, const u8* from, u32 bytes) {
  for (u32 i = 0; i < bytes; ++i) to[i] = from[i];
}

static void swap(u8* a, u8* b, u32 bytes) {
  for (u32 i = 0; i < bytes; ++i) {
    const u8 kept = a[i];
    a[i] = b[i];
    b[i] = kept;
  }
}

// RFC 826. False: not for us.
static bool answer_arp(u8* frame, u32 bytes) {
  u8* const arp = frame + kEthernetBytes;
  if (bytes < kEthernetBytes + kArpBytes || get32(arp) != 0x00010800 || get16(arp + 6) != 1) return false;
  if (get32(arp + 24) != address) return false;
  put16(arp + 6, 2);
  copy(arp + 18, arp + 8, 10);  // its addresses become the target's
  copy(arp + 8, mac, kMacBytes);
  put32(arp + 14, address);
  return true;
}

// Sums of the headers stay right when addresses or ports change places.
static bool answer_ip(u8* frame, u32 bytes) {
  u8* const ip = frame + kEthernetBytes;
  if (bytes < kEthernetBytes + kIpBytes + kUdpBytes || ip[0] != 0x45 || get32(ip + 16) != address) return false;
  u8* const inner = ip + kIpBytes;
  if (ip[9] == kUdp) {
    swap(inner, inner + 2, 2);
  } else if (ip[9] == kIcmp && inner[0] == 8) {
    inner[0] = 0;
    const u32 sum = get16(inner + 2) + 0x0800;
    put16(inner + 2, (sum & 0xffff) + (sum >> 16));
  } else {
    return false;
  }
  swap(ip + 12, ip + 16, 4);
  return true;
}

static bool answer(u8* frame, u32 bytes) {
  if (bytes < kEthernetBytes) {
    report("runt", bytes, kEthernetBytes);
    return false;
  }
  const u32 type = get16(frame + 12);
  const bool good = type == kTypeEcho || (type == kTypeArp && answer_arp(frame, bytes)) ||
                    (type == kTypeIp && answer_ip(frame, bytes));
  if (!good) return false;
  copy(frame, frame + kMacBytes, kMacBytes);
  copy(frame + kMacBytes, mac, kMacBytes);
  return true;
}

static void print_beat(u64 n, u64 ms) {
  struct line line;
  line_start(&line, "NET");
  line_field(&line, "n", n);
  line_field(&line, "frames", g_frames);
  line_field(&line, "others", others);
  line_field(&line, "errors", errors);
  line_field(&line, "ms", ms);
  line_print(&line);
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 beat = ticks_of_ms(max_u64(option("beat", 200), 1), tsc_khz);
  address = (u32)option("ip", 0x0a000002);
  const u64 slot = net_start(option("event_idx", 1) != 0);
  net_mac(mac);
  struct line line;
  line_start(&line, "FVMM echo");
  line_field(&line, "slot", slot);
  u64 shown = 0;
  for (u32 i = 0; i < kMacBytes; ++i) shown = shown << 8 | mac[i];
  line_text(&line, " mac=");
  line_hex(&line, shown);
  line_print(&line);
  u64 beats = 0;
  u64 next_beat = rdtsc() + beat;
  for (;;) {
    u8* frame = 0;
    u32 bytes = 0;
    const int buffer = net_take(&frame, &bytes);
    net_reap(report);
    if (buffer >= 0 && answer(frame, bytes)) {
      frames_copy = ++g_frames;
      net_send(buffer, bytes);
    } else if (buffer >= 0) {
      ++others;
      net_give_back(buffer);
    }
    if (frames_copy != g_frames) report("counter", frames_copy, g_frames);
    if (rdtsc() >= next_beat) {
      print_beat(++beats, ms_of_ticks(rdtsc() - boot_ticks, tsc_khz));
      next_beat = max_u64(next_beat + beat, rdtsc());
    }
  }
}
