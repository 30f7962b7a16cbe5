#include "control/frame.h"

#include <gtest/gtest.h>

#include "control/server.h"
#include "proto/rpc.pb.h"

namespace fvmm::control {
namespace {

TEST(ControlFrame, LengthIsLittleEndian) {
  EXPECT_EQ(decode_length({0x78, 0x56, 0x34, 0x12}), 0x12345678U);
  EXPECT_EQ(decode_length({0xFF, 0xFF, 0xFF, 0xFF}), 0xFFFFFFFFU);
}

TEST(ControlFrame, RequestHasTheseBytes) {  // golden: version 1 of the protocol
  v1::RpcRequest request;
  request.set_call(1);
  request.set_method("a/B");
  request.set_deadline_ms(300);
  request.set_message("xy");
  const std::string golden(
      "\x0e\x00\x00\x00\x08\x01\x12\x03"
      "a/B\x18\xac\x02\x22\x02xy",
      18);
  EXPECT_EQ(encode_frame(request), golden);
}

TEST(ControlFrame, ErrorHasTheseBytes) {
  const std::string golden("\x0a\x00\x00\x00\x08\x02\x10\x05\x1a\x02no\x28\x01", 14);
  EXPECT_EQ(encode_error(2, Error(Errc::kNotFound, "no")), golden);
}

TEST(ControlFrame, ErrorTextIsCutAtItsLimit) {
  for (const std::size_t bytes : {kErrorTextBytesMax, kErrorTextBytesMax + 1}) {
    v1::RpcResponse response;
    const std::string frame = encode_error(1, Error(Errc::kInternal, std::string(bytes, 'e')));
    ASSERT_TRUE(response.ParseFromString(frame.substr(kFrameHeaderBytes)));
    EXPECT_EQ(response.error().size(), kErrorTextBytesMax);
  }
}

TEST(ControlFrame, UnknownCodeFromTheWireIsUnknown) {
  EXPECT_EQ(from_wire(5, "x").code(), Errc::kNotFound);
  EXPECT_EQ(from_wire(15, "x").code(), Errc::kDataLoss);
  EXPECT_EQ(from_wire(16, "x").code(), Errc::kUnknown);
  EXPECT_EQ(from_wire(0xFFFFFFFF, "x").code(), Errc::kUnknown);
  EXPECT_EQ(to_wire(Errc::kIo), 13U);
}

TEST(ControlFrame, OnlyBytesThatAreNotUtf8AreReplaced) {
  EXPECT_EQ(to_utf8("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\xa7"), "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\xa7");
  EXPECT_EQ(to_utf8("\xc3"), "?");
  EXPECT_EQ(to_utf8("\xc0\xaf"), "??");            // overlong
  EXPECT_EQ(to_utf8("\xed\xa0\x80"), "???");       // surrogate
  EXPECT_EQ(to_utf8("\xf4\x90\x80\x80"), "????");  // past U+10FFFF
  EXPECT_EQ(to_utf8("\xe2\x82"), "??");
}

}  // namespace
}  // namespace fvmm::control
