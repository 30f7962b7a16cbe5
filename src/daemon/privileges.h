// What a worker gives up at its start: capabilities, the way to new ones, and descriptors that are not its own.
#pragma once

#include "base/result.h"

namespace fvmm::daemon {

/// For a worker's first thread, before there is a second one: capabilities belong to threads. What it needs of root it
/// takes as limits: real-time priority 1 (base/realtime.h) and locked memory for bounce buffers. Where this process may
/// not raise such a limit it keeps CAP_SYS_NICE or CAP_IPC_LOCK instead, if it has it; all other capabilities go, for
/// good (no_new_privs), and so does every descriptor above `last_fd`. The user stays the same, so files are opened as
/// their owner would. Errors: kIo with what the kernel refused.
Status drop_privileges(int last_fd);

}  // namespace fvmm::daemon
