// TAP devices and a bridge for tests, in a network namespace of the calling thread's process: nothing of the host's
// network is seen or changed, and all of it goes with the process. Needs the right to make one (root).
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/unique_fd.h"

namespace fvmm::testing {

inline ifreq request_for(const std::string& name) {
  FVMM_CHECK(name.size() < IFNAMSIZ, "a device's name");
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), name.size());
  return request;
}

inline bool control_net(unsigned long what, void* argument) {
  const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return ::ioctl(any.get(), what, argument) == 0;
}

inline void set_up(const std::string& name) {
  ifreq request = request_for(name);
  request.ifr_flags = IFF_UP;
  ASSERT_TRUE(control_net(SIOCSIFFLAGS, &request)) << name << ": " << std::strerror(errno);
}

/// Why there can be no network of our own here; empty: we are in it now, as is every process started from here on.
inline std::string enter_own_network() {
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) return "no /dev/net/tun";
  if (::unshare(CLONE_NEWNET) != 0) return std::string("no network namespace: ") + std::strerror(errno);
  set_up("lo");
  return {};
}

/// As `ip tuntap add NAME mode tap; ip link set NAME up`.
inline void make_tap(const std::string& name, uid_t owner = 0) {
  const UniqueFd tun(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request = request_for(name);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  ASSERT_EQ(::ioctl(tun.get(), TUNSETIFF, &request), 0) << name << ": " << std::strerror(errno);
  if (owner != 0) {
    ASSERT_EQ(::ioctl(tun.get(), TUNSETOWNER, owner), 0);
  }
  ASSERT_EQ(::ioctl(tun.get(), TUNSETPERSIST, 1), 0);
  set_up(name);
}

inline void make_bridge(const std::string& name) {
  std::string copy = name;
  ASSERT_TRUE(control_net(SIOCBRADDBR, copy.data())) << name << ": " << std::strerror(errno);
  set_up(name);
}

inline void join_bridge(const std::string& bridge, const std::string& port) {
  ifreq request = request_for(bridge);
  request.ifr_ifindex = static_cast<int>(::if_nametoindex(port.c_str()));
  ASSERT_TRUE(control_net(SIOCBRADDIF, &request)) << port << ": " << std::strerror(errno);
}

/// "10.0.0.1" with a netmask of 24 bits.
inline void set_address(const std::string& name, const std::string& address) {
  ifreq request = request_for(name);
  auto& in = *reinterpret_cast<sockaddr_in*>(&request.ifr_addr);
  in.sin_family = AF_INET;
  ASSERT_EQ(::inet_pton(AF_INET, address.c_str(), &in.sin_addr), 1);
  ASSERT_TRUE(control_net(SIOCSIFADDR, &request)) << std::strerror(errno);
  in.sin_addr.s_addr = htonl(0xffffff00);
  ASSERT_TRUE(control_net(SIOCSIFNETMASK, &request)) << std::strerror(errno);
}

/// Skips the test with the reason where there can be no network of our own.
#define FVMM_NEEDS_OWN_NETWORK()                                  \
  do {                                                            \
    const std::string why = ::fvmm::testing::enter_own_network(); \
    if (!why.empty()) GTEST_SKIP() << "needs root: " << why;      \
  } while (false)

}  // namespace fvmm::testing
