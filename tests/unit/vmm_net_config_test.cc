// What a configuration may ask for in networks, and what addresses they get.
#include "vmm/net_config.h"

#include <gtest/gtest.h>

#include "base/mac.h"
#include "vmm/virtio_devices.h"
#include "vmm/virtio_slots.h"

namespace fvmm::vmm {
namespace {

v1::NetConfig tap(const std::string& name) {
  v1::NetConfig net;
  net.set_tap(name);
  return net;
}

v1::VmConfig with(const std::vector<v1::NetConfig>& nets) {
  v1::VmConfig config;
  config.set_name("web");
  config.set_id(std::string("0123456789abcdef"));
  for (const v1::NetConfig& net : nets) *config.add_nets() = net;
  return config;
}

TEST(NetConfig, WhatMakesNoSenseIsRefusedByName) {
  v1::NetConfig relative;
  relative.set_socket("net.sock");
  v1::NetConfig group = tap("a");
  group.set_mac(std::string("\x01\x00\x5e\x00\x00\x01", 6));
  v1::NetConfig cut = tap("a");
  cut.set_mac("abc");
  for (const v1::NetConfig& net : {v1::NetConfig(), tap(""), relative, group, cut}) {
    const Status status = check_virtio(with({tap("good"), net}));
    ASSERT_FALSE(status.ok()) << net.ShortDebugString();
    EXPECT_EQ(status.error().code(), Errc::kInvalidArgument);
    EXPECT_TRUE(status.error().message().starts_with("net1")) << status.error().message();
  }
  EXPECT_FALSE(check_nets(with({tap("a"), tap("a")})).ok());
  EXPECT_TRUE(check_nets(with({tap("a"), tap("b")})).ok());
}

TEST(NetConfig, ThereAreSoManyAndNoMore) {
  v1::VmConfig config;
  for (int i = 0; i < kVmNetsMax; ++i) *config.add_nets() = tap("t" + std::to_string(i));
  EXPECT_TRUE(check_nets(config).ok());
  *config.add_nets() = tap("more");
  EXPECT_FALSE(check_nets(config).ok());
  config = with({tap("a")});
  for (unsigned i = 0; i < kVirtioSlotsMax; ++i) config.add_virtio();
  const std::string many = std::to_string(kVirtioSlotsMax + 1) + " virtio devices";
  EXPECT_NE(check_virtio(config).error().message().find(many), std::string::npos);
}

TEST(NetConfig, AddressesAreLocalDifferAndFollowFromTheVm) {
  v1::NetConfig chosen = tap("c");
  chosen.set_mac(to_bytes(parse_mac("02:11:22:33:44:55").value()));
  v1::VmConfig config = with({tap("a"), tap("b"), chosen});
  give_macs(config);
  v1::VmConfig again = with({tap("a"), tap("b"), chosen});
  give_macs(again);
  EXPECT_EQ(config.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(config.nets(0).mac()[0], 2);
  EXPECT_NE(config.nets(0).mac(), config.nets(1).mac());
  EXPECT_EQ(config.nets(2).mac(), chosen.mac());
  EXPECT_TRUE(check_nets(config).ok());
  v1::VmConfig other = with({tap("a")});
  other.set_id(std::string("fedcba9876543210"));
  give_macs(other);
  EXPECT_NE(other.nets(0).mac(), config.nets(0).mac());
}

TEST(NetConfig, APlaceOnAnotherHostKeepsTheAddress) {
  v1::VmConfig config = with({tap("a"), tap("b")});
  give_macs(config);
  google::protobuf::RepeatedPtrField<v1::NetPlace> places;
  v1::NetPlace& place = *places.Add();
  place.set_id("net1");
  *place.mutable_net() = tap("there");
  const auto there = place_nets(config, places);
  ASSERT_TRUE(there.ok()) << there.error().message();
  EXPECT_EQ(there->nets(0).tap(), "a");
  EXPECT_EQ(there->nets(1).tap(), "there");
  EXPECT_EQ(there->nets(1).mac(), config.nets(1).mac());
  *places.Add() = place;
  EXPECT_FALSE(place_nets(config, places).ok()) << "given twice";
  places.RemoveLast();
  place.mutable_net()->set_mac(config.nets(0).mac());
  EXPECT_FALSE(place_nets(config, places).ok()) << "an address";
  place.mutable_net()->clear_mac();
  place.set_id("net2");
  EXPECT_NE(place_nets(config, places).error().message().find("no network \"net2\""), std::string::npos);
}

TEST(Mac, OnlyAddressesOfStationsAreTaken) {
  EXPECT_EQ(to_string(parse_mac("02:AB:cd:00:00:01").value()), "02:ab:cd:00:00:01");
  for (const char* text : {"", "02:11:22:33:44", "02:11:22:33:44:5", "02-11-22-33-44-55", "0g:11:22:33:44:55",
                           "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:11:22:33:44:55:66", "+2:11:22:33:44:55"}) {
    EXPECT_FALSE(parse_mac(text).ok()) << text;
  }
}

}  // namespace
}  // namespace fvmm::vmm
