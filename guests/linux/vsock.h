// A server of a Linux guest of our tests that programs of the host reach over vsock.
#pragma once

#include <stdint.h>

/// Serves one connection after the other on this port, for ever. On a thread of its own.
void vsock_serve(uint64_t port);
