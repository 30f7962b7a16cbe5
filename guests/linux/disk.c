#include "linux/disk.h"

#include "linux/syscalls.h"

enum { kBlockBytes = 4096, kBlockWords = kBlockBytes / 8, kBlocksMax = 1024, kStepsPerSync = 8 };

static _Alignas(kBlockBytes) uint64_t buffer[kBlockWords];  // O_DIRECT wants it aligned
static uint64_t versions[kBlocksMax];                       // that the file must hold; 0: never written
static uint64_t blocks;
static uint64_t steps;
static int file = -1;

static uint64_t word_of(uint64_t block, uint64_t version, uint64_t i) {
  uint64_t x = block * 0x8ebc6af09c88c6e3u + version * 0x589965cc75374cc3u + i;
  x = (x ^ x >> 31) * 0xd6e8feb86659fd93u;
  return x ^ x >> 32;
}

const char* disk_start(uint64_t wanted) {
  enum { kReadWrite = 2, kCreate = 0100, kDirect = 040000 };
  blocks = wanted < kBlocksMax ? wanted : kBlocksMax;
  if (syscall6(kSysMount, (long)"dev", (long)"/dev", (long)"devtmpfs", 0, 0, 0) < 0) return "mount /dev";
  (void)syscall3(kSysMkdir, (long)"/disk", 0700, 0);
  if (syscall6(kSysMount, (long)"/dev/vda", (long)"/disk", (long)"ext2", 0, 0, 0) < 0) return "mount /dev/vda";
  const long opened = syscall3(kSysOpen, (long)"/disk/blocks", kReadWrite | kCreate | kDirect, 0600);
  if (opened < 0) return "open /disk/blocks";
  file = (int)opened;
  return 0;
}

const char* disk_step(void) {
  const uint64_t block = steps * 7 % blocks;
  const long at = (long)(block * kBlockBytes);
  if (versions[block] != 0) {
    if (syscall6(kSysPread64, file, (long)buffer, kBlockBytes, at, 0, 0) != kBlockBytes) return "read /disk/blocks";
    for (uint64_t i = 0; i < kBlockWords; ++i) {
      if (buffer[i] != word_of(block, versions[block], i)) return "/disk/blocks holds something else";
    }
  }
  ++versions[block];
  for (uint64_t i = 0; i < kBlockWords; ++i) buffer[i] = word_of(block, versions[block], i);
  if (syscall6(kSysPwrite64, file, (long)buffer, kBlockBytes, at, 0, 0) != kBlockBytes) return "write /disk/blocks";
  if (++steps % kStepsPerSync == 0 && syscall3(kSysFsync, file, 0, 0) < 0) return "fsync /disk/blocks";
  return 0;
}

uint64_t disk_steps(void) {
  return steps;
}

void disk_end(void) {
  if (file < 0) return;
  (void)syscall3(kSysClose, file, 0, 0);
  (void)syscall3(kSysUmount2, (long)"/disk", 0, 0);
  file = -1;
}
