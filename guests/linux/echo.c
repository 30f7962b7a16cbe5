#include "linux/echo.h"

#include "linux/syscalls.h"

static void serve_one(long connection, unsigned char* bytes) {
  for (;;) {
    const long got = syscall3(kSysRead, connection, (long)bytes, kEchoBytes);
    if (got <= 0) return;
    for (long sent = 0; sent < got;) {
      const long more = syscall3(kSysWrite, connection, (long)(bytes + sent), got - sent);
      if (more <= 0) return;
      sent += more;
    }
  }
}

void echo_serve(long listener, unsigned char* bytes) {
  for (;;) {
    const long connection = syscall3(kSysAccept, listener, 0, 0);
    if (connection < 0) continue;
    serve_one(connection, bytes);
    syscall3(kSysClose, connection, 0, 0);
  }
}
