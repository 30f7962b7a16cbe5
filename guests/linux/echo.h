// Servers of a Linux guest of our tests: each sends back what it gets.
#pragma once

#include <stdint.h>

enum { kEchoBytes = 16384 };  // at once

/// Serves one connection of a listening socket after the other, for ever. @param bytes  kEchoBytes of its own
void echo_serve(long listener, unsigned char* bytes);
