// TAP devices as backends, in a network namespace of the test's own.
#include "devices/net_tap.h"

#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "support/fake_wire.h"
#include "support/tap_network.h"

namespace fvmm::devices {
namespace {

using testing::Frame;
using testing::frame_to;

constexpr std::array<std::uint8_t, 6> kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

class NetTap : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_OWN_NETWORK();
    testing::make_tap("fvmm0");
  }
  /// Sees and sends what passes the host's side of the device.
  static UniqueFd host_side() {
    UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_ALL)));
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = static_cast<int>(::if_nametoindex("fvmm0"));
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    return socket;
  }
  static bool readable(int fd) {
    pollfd wanted{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&wanted, 1, 30'000) == 1;
  }
  static Errc code_of(const Result<UniqueFd>& opened) {
    EXPECT_FALSE(opened.ok());
    return opened.ok() ? Errc::kUnknown : opened.error().code();
  }
  /// An experimental EtherType, which no protocol of the host takes for its own.
  static Frame experimental(std::size_t bytes) {
    Frame frame = frame_to(kBroadcast, bytes);
    frame[kNetHeaderBytes + 6] = std::byte{2};
    frame[kNetHeaderBytes + 12] = std::byte{0x88};
    frame[kNetHeaderBytes + 13] = std::byte{0xb5};
    return frame;
  }
};

TEST_F(NetTap, FramesPassBothWays) {
  auto backend = TapBackend::adopt(open_tap("fvmm0").value()).value();
  ASSERT_TRUE(backend->set_offloads({.checksum = true, .tso4 = true, .tso6 = true}).ok());
  backend->discard_waiting();
  const UniqueFd host = host_side();
  const Frame frame = experimental(200);
  backend->emit(frame);
  EXPECT_EQ(backend->dropped(), 0U);
  Frame got(4096);
  for (;;) {  // the kernel itself may say something on a new device
    ASSERT_TRUE(readable(host.get()));
    const ssize_t bytes = ::recv(host.get(), got.data(), got.size(), 0);
    if (bytes != 200) continue;
    EXPECT_TRUE(std::equal(frame.begin() + kNetHeaderBytes, frame.end(), got.begin()));
    break;
  }
  ASSERT_EQ(::send(host.get(), frame.data() + kNetHeaderBytes, 200, 0), 200);
  for (;;) {
    ASSERT_TRUE(readable(backend->fd()));
    const auto bytes = backend->receive(got);
    ASSERT_TRUE(bytes.has_value());
    if (*bytes != frame.size()) continue;
    EXPECT_TRUE(std::equal(frame.begin() + kNetHeaderBytes, frame.end(), got.begin() + kNetHeaderBytes));
    break;
  }
}

TEST_F(NetTap, WhatWaitedIsForgottenAndARemovedDeviceIsGone) {
  auto backend = TapBackend::adopt(open_tap("fvmm0").value()).value();
  const UniqueFd host = host_side();
  const Frame frame = experimental(100);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(::send(host.get(), frame.data() + kNetHeaderBytes, 100, 0), 100);
  backend->discard_waiting();
  Frame got(4096);
  while (const auto bytes = backend->receive(got)) EXPECT_NE(*bytes, frame.size());  // the kernel may say something
  EXPECT_GE(backend->fd(), 0);
  backend->close();
  EXPECT_EQ(backend->fd(), -1);
  backend->emit(frame);
  EXPECT_EQ(backend->dropped(), 1U);
  EXPECT_TRUE(open_tap("fvmm0").ok()) << "it is free again";
}

TEST_F(NetTap, ErrorsNameTheDeviceAndTheFix) {
  const auto missing = open_tap("nosuch0");
  EXPECT_EQ(code_of(missing), Errc::kNotFound);
  EXPECT_NE(missing.error().message().find("ip tuntap add dev nosuch0"), std::string::npos);
  EXPECT_EQ(::if_nametoindex("nosuch0"), 0U) << "nothing is made";

  const UniqueFd taken = open_tap("fvmm0").value();
  const auto busy = open_tap("fvmm0");
  EXPECT_EQ(code_of(busy), Errc::kAlreadyExists);
  EXPECT_NE(busy.error().message().find("fvmm0 is in use"), std::string::npos) << busy.error().message();

  EXPECT_EQ(code_of(open_tap("lo")), Errc::kInvalidArgument);
  for (const char* name : {"", "a/b", "fvmm%d", "a-name-that-is-too-long"}) {
    EXPECT_EQ(code_of(open_tap(name)), Errc::kInvalidArgument) << name;
  }
  EXPECT_EQ(TapBackend::adopt(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))).error().code(),
            Errc::kFailedPrecondition);
}

TEST_F(NetTap, AnotherUserNeedsADeviceOfItsOwn) {
  constexpr uid_t kSomebody = 65533;
  constexpr uid_t kSomebodyElse = 65534;
  testing::make_tap("fvmm1", kSomebody);
  ASSERT_EQ(::seteuid(kSomebodyElse), 0);
  const auto forbidden = open_tap("fvmm1");
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_EQ(code_of(forbidden), Errc::kPermissionDenied);
  EXPECT_NE(forbidden.error().message().find("user USER"), std::string::npos) << forbidden.error().message();
}

}  // namespace
}  // namespace fvmm::devices
