#include "linux/net.h"

#include "linux/echo.h"
#include "linux/syscalls.h"

enum {
  kInet = 2,      // AF_INET
  kStream = 1,    // SOCK_STREAM
  kDatagram = 2,  // SOCK_DGRAM
  kGetFlags = 0x8913,
  kSetFlags = 0x8914,
  kSetAddress = 0x8916,
  kSetNetmask = 0x891c,
  kInterfaceUp = 1,
  kSocketLevel = 1,
  kReuseAddress = 2,
  kEchoPort = 7,
  kPathBytes = 128,
  kWriteOnly = 1,
};

struct address {  // sockaddr_in
  uint16_t family;
  uint16_t port;  // big endian
  uint8_t host[4];
  uint8_t zero[8];
};

struct request {  // ifreq
  char name[16];
  union {
    struct address address;
    short flags;
    char room[24];
  } value;
};

static unsigned char bytes[kEchoBytes];

static struct request request_for_eth0(void) {
  struct request request = {.name = "eth0"};
  return request;
}

static const char* configure(uint8_t host) {
  const long any = syscall3(kSysSocket, kInet, kDatagram, 0);
  if (any < 0) return "no sockets";
  struct request request = request_for_eth0();
  request.value.address = (struct address){.family = kInet, .host = {10, 77, 0, host}};
  const char* wrong = 0;
  if (syscall3(kSysIoctl, any, kSetAddress, (long)&request) < 0) wrong = "no eth0, or no address for it";
  request.value.address = (struct address){.family = kInet, .host = {255, 255, 255, 0}};
  if (!wrong && syscall3(kSysIoctl, any, kSetNetmask, (long)&request) < 0) wrong = "no netmask for eth0";
  request = request_for_eth0();
  if (!wrong && syscall3(kSysIoctl, any, kGetFlags, (long)&request) < 0) wrong = "no flags of eth0";
  request.value.flags |= kInterfaceUp;
  if (!wrong && syscall3(kSysIoctl, any, kSetFlags, (long)&request) < 0) wrong = "eth0 does not come up";
  syscall3(kSysClose, any, 0, 0);
  return wrong;
}

const char* net_start(uint64_t host) {
  return configure((uint8_t)host);
}

void net_serve(uint64_t unused) {
  (void)unused;
  const long listener = syscall3(kSysSocket, kInet, kStream, 0);
  const int yes = 1;
  syscall6(kSysSetsockopt, listener, kSocketLevel, kReuseAddress, (long)&yes, sizeof yes, 0);
  const struct address everywhere = {.family = kInet, .port = kEchoPort << 8};
  if (syscall3(kSysBind, listener, (long)&everywhere, sizeof everywhere) < 0) return;
  if (syscall3(kSysListen, listener, 4, 0) < 0) return;
  echo_serve(listener, bytes);
}

static const char* write_file(const char* path, const char* text, long count) {
  const long fd = syscall3(kSysOpen, (long)path, kWriteOnly, 0);
  if (fd < 0) return path;
  const long wrote = syscall3(kSysWrite, fd, (long)text, count);
  syscall3(kSysClose, fd, 0, 0);
  return wrote == count ? 0 : path;
}

const char* net_start_again(uint64_t host) {
  syscall3(kSysMkdir, (long)"/sys", 0755, 0);
  syscall6(kSysMount, (long)"sysfs", (long)"/sys", (long)"sysfs", 0, 0, 0);  // perhaps it is there
  char path[kPathBytes];
  const long length = syscall3(kSysReadlink, (long)"/sys/class/net/eth0/device", (long)path, sizeof path);
  if (length <= 0) return "no device of eth0 in /sys";
  long name = length;  // the last word of "../../../virtio0"
  while (name > 0 && path[name - 1] != '/') --name;
  const char* wrong = write_file("/sys/bus/virtio/drivers/virtio_net/unbind", path + name, length - name);
  if (!wrong) wrong = write_file("/sys/bus/virtio/drivers/virtio_net/bind", path + name, length - name);
  return wrong ? wrong : configure((uint8_t)host);
}
