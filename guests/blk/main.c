// A guest that drives one virtio-blk device by polling: it writes blocks whose content it can compute, remembers in
// memory which version of each it wrote last, and reads them back for ever. A disk that is older or newer than the
// memory is found. docs/guests.md has the options and the lines.
#include "blk/bench.h"
#include "blk/content.h"
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"
#include "virtio/queue.h"

#define BLOCKS_MAX 4096
#define ANSWER_MS 20000  // a device that needs longer has lost the request
#define KEPT_MAX 64

enum request { READ = 0, WRITE = 1, FLUSH = 4 };

struct header {
  u32 type, reserved;
  u64 sector;
};

static u64 buffer[BLOCK_WORDS] __attribute__((aligned(4096)));
static u64 kept[KEPT_MAX][BLOCK_WORDS] __attribute__((aligned(4096)));  // that the device alone writes
static u64 keep;                                                        // how many of them are read into, in turn
static u64 versions[BLOCKS_MAX];                                        // that the disk must hold; 0: never written
static struct header header;
static u8 status;
static u64 tsc_khz;
static u64 errors, reads, writes, flushes;
static bool measuring;  // nothing is looked at but the answer

static void report(const char* kind, u64 found, u64 expected) {
  line_error(++errors, kind, g_step, found, expected);
}

/// One request to its end; whether the device says that it is done.
static bool ask_at(enum request type, u64 sector, u64* data, u64 bytes) {
  header.type = type;
  header.sector = sector;
  status = 0xff;
  const struct queue_part all[3] = {
      {(u64)&header, sizeof header, false}, {(u64)data, (u32)bytes, type == READ}, {(u64)&status, 1, true}};
  const struct queue_part without_data[2] = {all[0], all[2]};
  queue_offer_chain(type == FLUSH ? without_data : all, type == FLUSH ? 2 : 3);
  if (!queue_wait(ticks_of_ms(ANSWER_MS, tsc_khz))) {
    report("timeout", type, sector);
    return false;
  }
  const struct used_element used = queue_take();
  if (used.id != queue_last_head()) report("head", used.id, queue_last_head());
  if (!measuring) queue_check_interrupt(report);
  ++g_step;
  const u8 answer = *(volatile u8*)&status;
  if (answer != 0) report("status", answer, type);
  return answer == 0;
}

static bool ask(enum request type, u64 block, u64* data) {
  return ask_at(type, block * BLOCK_SECTORS, data, BLOCK_BYTES);
}

static bool read_for_bench(u64 sector, u64 bytes) {
  return ask_at(READ, sector, kept[0], bytes);
}

static void check_block(u64 block) {
  u64* const data = keep != 0 ? kept[reads % keep] : buffer;
  for (u64 i = 0; keep == 0 && i < BLOCK_WORDS; ++i) data[i] = ~0ULL;
  if (!ask(READ, block, data)) return;
  ++reads;
  const u64 found = *(volatile u64*)data;
  if (found != versions[block]) return report("version", found, versions[block]);
  if (versions[block] != 0 && !block_is_whole(data, block)) report("content", block, versions[block]);
}

static void write_block(u64 block) {
  fill_block(buffer, block, versions[block] + 1);
  if (!ask(WRITE, block, buffer)) return;
  ++writes;
  ++versions[block];
}

/// What an earlier run left becomes what the disk must hold; everything else was never written. The number found.
static u64 adopt(u64 blocks) {
  u64 found = 0;
  for (u64 block = 0; block < blocks; ++block) {
    if (!ask(READ, block, buffer)) continue;
    ++reads;
    if (buffer[0] == 0) continue;
    if (!block_is_whole(buffer, block)) {
      report("old", block, buffer[0]);
      continue;
    }
    versions[block] = buffer[0];
    ++found;
  }
  return found;
}

static void print_start(u64 slot, u64 sectors, u64 found) {
  struct line line;
  line_start(&line, "FVMM disk");
  line_field(&line, "slot", slot);
  line_field(&line, "sectors", sectors);
  line_field(&line, "old", found);
  line_field(&line, "tsc_khz", tsc_khz);
  line_print(&line);
}

static void print_beat(u64 n, u64 ms) {
  struct line line;
  line_start(&line, "DK");
  line_field(&line, "n", n);
  line_field(&line, "requests", g_step);
  line_field(&line, "reads", reads);
  line_field(&line, "writes", writes);
  line_field(&line, "flushes", flushes);
  line_field(&line, "errors", errors);
  line_field(&line, "ms", ms);
  line_print(&line);
}

/// Three of four turns on any block: checked, then written anew. The fourth: a flush.
static void turn(u64 number, u64 blocks, bool readonly) {
  const u64 block = mix(g_seed ^ number) % blocks;
  if (number % 4 == 3) {
    if (ask(FLUSH, 0, 0)) ++flushes;
    return;
  }
  if (versions[block] != 0 || readonly) check_block(block);
  if (!readonly) write_block(block);
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  tsc_khz = tsc_khz_find();
  g_seed = option("seed", 1);
  g_step = 0;
  const u64 beat = ticks_of_ms(max_u64(option("beat", 200), 1), tsc_khz);
  const u64 gap = tsc_khz * 1000 / max_u64(option("rate", 200), 1);
  const bool readonly = option("readonly", 0) != 0;
  keep = option("keep", 0);
  if (keep > KEPT_MAX) keep = KEPT_MAX;
  const u64 slot = queue_start(2, option("event_idx", 1) != 0);
  const u64 sectors = queue_config(0);
  measuring = option("bench", 0) != 0;
  if (measuring) bench_disk(read_for_bench, sectors, sizeof kept, option("bench", 0), tsc_khz);
  measuring = false;
  u64 blocks = option("blocks", 256);
  if (blocks > BLOCKS_MAX) blocks = BLOCKS_MAX;
  if (blocks > sectors / BLOCK_SECTORS) blocks = sectors / BLOCK_SECTORS;
  if (blocks == 0) fatal("the disk has no whole block");
  print_start(slot, sectors, adopt(blocks));
  u64 beats = 0;
  u64 number = 0;
  u64 next_beat = rdtsc() + beat;
  for (u64 next = rdtsc();;) {
    const u64 now = rdtsc();
    if (now >= next) {
      turn(number++, blocks, readonly);
      next = max_u64(next + gap, rdtsc());
    }
    if (now >= next_beat) {
      print_beat(++beats, ms_of_ticks(rdtsc() - boot_ticks, tsc_khz));
      next_beat = max_u64(next_beat + beat, rdtsc());
    }
  }
}
