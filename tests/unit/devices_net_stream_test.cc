// Frames over a unix stream socket: lengths, pieces, a peer that is slow, wrong or gone.
#include "devices/net_stream.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "support/fake_wire.h"
#include "support/temp_dir.h"

namespace fvmm::devices {
namespace {

using testing::Frame;
using testing::frame_to;

class NetStream : public ::testing::Test {
 protected:
  NetStream() {
    int ends[2];
    FVMM_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
    backend = std::make_unique<StreamBackend>(UniqueFd(ends[0]));
    peer.reset(ends[1]);
  }
  void peer_sends(std::span<const std::byte> bytes) const {
    ASSERT_EQ(::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  /// As it travels: length, then data.
  static Frame wired(const Frame& frame) {
    const std::size_t bytes = frame.size() - kNetHeaderBytes;
    Frame out{static_cast<std::byte>(bytes >> 24), static_cast<std::byte>(bytes >> 16),
              static_cast<std::byte>(bytes >> 8), static_cast<std::byte>(bytes)};
    out.insert(out.end(), frame.begin() + kNetHeaderBytes, frame.end());
    return out;
  }
  Frame peer_gets(std::size_t bytes) const {
    Frame got(bytes);
    const ssize_t count = ::recv(peer.get(), got.data(), got.size(), 0);
    got.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
    return got;
  }
  std::optional<Frame> receive() {
    Frame frame(kNetFrameBytesMax, std::byte{0xa5});
    const auto bytes = backend->receive(frame);
    if (!bytes) return std::nullopt;
    frame.resize(*bytes);
    return frame;
  }

  std::unique_ptr<StreamBackend> backend;
  UniqueFd peer;
};

TEST_F(NetStream, SendsALengthInBigEndianAndTheFrameWithoutItsHeader) {
  const Frame frame = frame_to({2, 0, 0, 0, 0, 1}, 300);
  backend->emit(frame);
  EXPECT_EQ(peer_gets(1000), wired(frame));
  EXPECT_FALSE(backend->backlogged());
}

TEST_F(NetStream, ReceivesFramesHoweverTheyAreCut) {
  const std::vector<Frame> frames{frame_to({2, 0, 0, 0, 0, 1}, 60, 1), frame_to({2, 0, 0, 0, 0, 1}, 1, 2),
                                  frame_to({2, 0, 0, 0, 0, 1}, 1514, 3)};
  Frame all;
  for (const Frame& frame : frames) {
    const Frame bytes = wired(frame);
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  for (const std::size_t piece : {std::size_t{1}, std::size_t{3}, std::size_t{64}, std::size_t{67}, all.size()}) {
    std::vector<Frame> got;
    for (std::size_t at = 0; at < all.size(); at += piece) {
      peer_sends(std::span(all).subspan(at, std::min(piece, all.size() - at)));
      while (auto frame = receive()) got.push_back(*frame);
    }
    EXPECT_EQ(got, frames) << piece;
  }
}

TEST_F(NetStream, WhatTheGuestHasNoBufferForStaysWithTheSender) {
  const Frame bytes = wired(frame_to({2, 0, 0, 0, 0, 1}, 1000));
  for (int i = 0; i < 3; ++i) peer_sends(bytes);
  EXPECT_TRUE(receive().has_value());
  Frame rest(4000);
  const ssize_t left = ::recv(backend->fd(), rest.data(), rest.size(), MSG_PEEK);
  EXPECT_EQ(left, 2 * static_cast<ssize_t>(bytes.size()) - 4) << "only the next frame's length has been read";
}

TEST_F(NetStream, TheLargestFrameComesAndALargerOneEndsTheConnection) {
  const int room = 1 << 20;
  ASSERT_EQ(::setsockopt(peer.get(), SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
  const Frame largest = frame_to({2, 0, 0, 0, 0, 1}, kNetDataBytesMax);
  peer_sends(wired(largest));
  EXPECT_EQ(receive(), largest);
  peer_sends(std::array{std::byte{0}, std::byte{1}, std::byte{0}, std::byte{0x13}});  // 65,555
  EXPECT_EQ(receive(), std::nullopt);
  EXPECT_EQ(backend->fd(), -1);
}

TEST_F(NetStream, APeerThatDoesNotReadFillsTheBacklogAndLosesNothing) {
  unsigned sent = 0;
  while (!backend->backlogged()) backend->emit(frame_to({2, 0, 0, 0, 0, 1}, 1514, sent++));
  for (unsigned i = 0; i < 10; ++i) backend->emit(frame_to({2, 0, 0, 0, 0, 1}, 1514, sent++));
  Frame stream;
  Frame expected;
  for (unsigned i = 0; i < sent; ++i) {
    const Frame bytes = wired(frame_to({2, 0, 0, 0, 0, 1}, 1514, i));
    expected.insert(expected.end(), bytes.begin(), bytes.end());
  }
  while (stream.size() < expected.size()) {
    const Frame more = peer_gets(100'000);
    stream.insert(stream.end(), more.begin(), more.end());
    backend->flush();
    if (more.empty() && !backend->backlogged()) break;
  }
  EXPECT_EQ(stream, expected);
  EXPECT_EQ(backend->dropped(), 0U);
}

TEST_F(NetStream, APeerThatHasGoneIsNoted) {
  peer.reset();
  EXPECT_EQ(receive(), std::nullopt);
  EXPECT_EQ(backend->fd(), -1);
  backend->emit(frame_to({2, 0, 0, 0, 0, 1}, 100));
  EXPECT_EQ(backend->dropped(), 1U);
}

TEST(NetStreamOpen, ErrorsNameTheSocketAndTheFix) {
  const testing::TempDir directory;
  const std::string path = (directory.path() / "peer.sock").string();
  const auto missing = open_net_stream(path);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), Errc::kNotFound);
  EXPECT_NE(missing.error().message().find(path), std::string::npos);

  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd bound(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(bound.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(open_net_stream(path).error().code(), Errc::kUnavailable);
  ASSERT_EQ(::listen(bound.get(), 1), 0);
  EXPECT_TRUE(open_net_stream(path).ok());

  EXPECT_EQ(open_net_stream("/" + std::string(sizeof address.sun_path, 'x')).error().code(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace fvmm::devices
