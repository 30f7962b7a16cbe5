// A file on /dev/vda (ext2), written past the page cache and read back for ever by the first process.
#pragma once

#include <stdint.h>

/// Mounts /dev/vda at /disk and makes /disk/blocks. Null, or what went wrong.
const char* disk_start(uint64_t blocks);
/// One block: what was written there last is read and compared, then it is written anew; every eighth step is synced.
/// Null, or what went wrong.
const char* disk_step(void);
uint64_t disk_steps(void);
/// Everything on the disk, and unmounted.
void disk_end(void);
