#include "linux/vsock.h"

#include "linux/echo.h"
#include "linux/syscalls.h"

enum {
  kVsock = 40,  // AF_VSOCK
  kStream = 1,  // SOCK_STREAM
};
static const uint32_t kAnyAddress = 0xffffffff;  // VMADDR_CID_ANY

struct address {  // sockaddr_vm
  uint16_t family;
  uint16_t reserved;
  uint32_t port;
  uint32_t cid;
  uint8_t zero[4];
};

static unsigned char bytes[kEchoBytes];

void vsock_serve(uint64_t port) {
  const long listener = syscall3(kSysSocket, kVsock, kStream, 0);
  const struct address everywhere = {.family = kVsock, .port = (uint32_t)port, .cid = kAnyAddress};
  if (syscall3(kSysBind, listener, (long)&everywhere, sizeof everywhere) < 0) return;
  if (syscall3(kSysListen, listener, 4, 0) < 0) return;
  echo_serve(listener, bytes);
}
