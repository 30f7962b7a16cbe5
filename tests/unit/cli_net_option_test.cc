// What people write behind --net.
#include "cli/net_option.h"

#include <gtest/gtest.h>

namespace fvmm::cli {
namespace {

TEST(NetOption, ATapASocketAnAddress) {
  const auto tap = parse_net("tap=web1,mac=02:11:22:33:44:55,queues=1");
  ASSERT_TRUE(tap.ok()) << tap.error().message();
  EXPECT_EQ(tap->tap(), "web1");
  EXPECT_EQ(tap->mac(), std::string("\x02\x11\x22\x33\x44\x55"));
  EXPECT_EQ(parse_net("unix=/run/net.sock")->socket(), "/run/net.sock");
  EXPECT_TRUE(parse_net("unix=net.sock")->socket().starts_with('/')) << "as every path";
}

TEST(NetOption, WhatIsWrongIsNamed) {
  for (const char* text : {"", "web1", "tap=", "mac=02:11:22:33:44:55", "tap=a,unix=/b", "tap=a,mac=01:00:5e:00:00:01",
                           "tap=a,speed=1", "tap=a,"}) {
    const auto net = parse_net(text);
    ASSERT_FALSE(net.ok()) << text;
    EXPECT_EQ(net.error().code(), Errc::kInvalidArgument);
  }
  EXPECT_NE(parse_net("tap=a,queues=2").error().message().find("multiqueue is not offered"), std::string::npos);
}

TEST(NetOption, APlaceNamesItsNetwork) {
  const auto place = parse_net_place("net1:tap=there");
  ASSERT_TRUE(place.ok()) << place.error().message();
  EXPECT_EQ(place->id(), "net1");
  EXPECT_EQ(place->net().tap(), "there");
  for (const char* text : {"tap=there", ":tap=there", "net0:"}) EXPECT_FALSE(parse_net_place(text).ok()) << text;
}

TEST(NetOption, ARowOfVmShow) {
  v1::NetConfig net;
  net.set_tap("web1");
  net.set_mac(std::string("\x02\x11\x22\x33\x44\x55"));
  EXPECT_EQ(net_text(net, nullptr), "tap=web1, mac 02:11:22:33:44:55");
  v1::NetInfo live;
  live.set_mac(net.mac());
  live.set_link_up(true);
  live.set_received_frames(3);
  live.set_send_dropped(1);
  EXPECT_EQ(net_text(net, &live),
            "tap=web1, mac 02:11:22:33:44:55, link up, received 3 frames (0 B), sent 0 (0 B), dropped 1");
}

}  // namespace
}  // namespace fvmm::cli
