// What people write behind --vsock.
#include "cli/vsock_option.h"

#include <gtest/gtest.h>

namespace fvmm::cli {
namespace {

TEST(VsockOption, APathAnAddressOrNothing) {
  const auto nothing = parse_vsock("");
  ASSERT_TRUE(nothing.ok());
  EXPECT_EQ(nothing->path(), "");
  EXPECT_EQ(nothing->cid(), 0U);
  const auto both = parse_vsock("path=/run/web.vsock,cid=52");
  ASSERT_TRUE(both.ok()) << both.error().message();
  EXPECT_EQ(both->path(), "/run/web.vsock");
  EXPECT_EQ(both->cid(), 52U);
  EXPECT_TRUE(parse_vsock("path=web.vsock")->path().starts_with('/')) << "as every path";
  EXPECT_EQ(parse_vsock("cid=4294967294")->cid(), 4294967294U);
}

TEST(VsockOption, WhatIsWrongIsNamed) {
  for (const char* text : {"web", "path=", "cid=", "cid=2", "cid=4294967295", "cid=4294967296", "cid=5x", "port=1",
                           "cid=5,", "path=/a,what"}) {
    const auto vsock = parse_vsock(text);
    ASSERT_FALSE(vsock.ok()) << text;
    EXPECT_EQ(vsock.error().code(), Errc::kInvalidArgument);
    EXPECT_NE(vsock.error().message().find("--vsock"), std::string::npos);
  }
}

TEST(VsockOption, ARowOfVmShow) {
  v1::VsockInfo info;
  info.set_path("/run/v");
  info.set_cid(3);
  EXPECT_EQ(vsock_text(info), "/run/v, cid 3, 0 connections");
  info.set_connections(1);
  info.set_opened(2);
  info.set_refused(4);
  info.set_sent_bytes(2048);
  EXPECT_EQ(vsock_text(info), "/run/v, cid 3, 1 connections (2 opened, 4 refused), received 0 B, sent 2 KiB");
}

}  // namespace
}  // namespace fvmm::cli
