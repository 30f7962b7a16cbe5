// The network of a Linux guest of our tests: an address on eth0, and a TCP server that sends back what it gets.
#pragma once

#include <stdint.h>

/// 10.77.0.HOST/24 on eth0, and the interface up. What went wrong, or 0.
const char* net_start(uint64_t host);
/// Serves one TCP connection after the other on port 7, for ever. On a thread of its own.
void net_serve(uint64_t unused);
/// Takes the driver off eth0 and puts it back, so that it reads the device's MAC address again, which is another in a
/// clone; then as net_start(). What went wrong, or 0.
const char* net_start_again(uint64_t host);
