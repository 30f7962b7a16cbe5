// A test as one side of the peer protocol: Hellos made by hand, raw sockets, and a listener that answers as told.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/id.h"
#include "base/units.h"
#include "migration/transport.h"
#include "net/channel.h"
#include "net/frame.h"
#include "net/stream.h"
#include "proto/peer.pb.h"

namespace fvmm::test {

inline Deadline peer_wait() {
  return Deadline::after(std::chrono::seconds(30));  // ends a hanging test, times nothing
}

/// What a well-behaved source says first, for a VM of 64 MiB on the zero template. The CPU table is left empty.
inline v1::PeerHello migrate_hello(const std::string& vm) {
  v1::PeerHello hello;
  hello.set_version(migration::kPeerVersion);
  hello.set_purpose(v1::MIGRATE);
  hello.set_session(Id::random().raw());
  hello.set_connections(1);
  hello.mutable_vm()->set_id(Id::random().raw());
  hello.mutable_vm()->set_name(vm);
  hello.mutable_vm()->set_memory_bytes(64 * kMiB);
  hello.mutable_vm()->set_vcpus(1);
  hello.set_mode("precopy");
  hello.set_fencing_token(2);
  hello.set_from("127.0.0.1:9");
  hello.set_timeout_ms(10'000);
  return hello;
}

inline std::unique_ptr<net::Channel> connect_peer(const std::string& listen) {
  auto channel = net::Channel::connect(*net::Endpoint::parse(listen), peer_wait());
  EXPECT_TRUE(channel.ok()) << (channel ? "" : channel.error().message());
  return channel ? std::move(*channel) : nullptr;
}

/// Sends the Hello on a connection of its own and returns the first answer. kUnavailable: closed without one.
inline Result<v1::PeerMessage> ask_peer_raw(const std::string& listen, const v1::PeerHello& hello) {
  const auto channel = connect_peer(listen);
  if (!channel) return Error(Errc::kUnavailable, "not connected");
  FVMM_TRY(net::send_message(*channel, net::FrameType::kHello, hello, peer_wait()));
  v1::PeerMessage answer;
  FVMM_TRY(net::receive_message(*channel, net::FrameType::kControl, answer, peer_wait()));
  return answer;
}

/// The bytes of a Hello frame as they travel.
inline std::string hello_frame(const v1::PeerHello& hello) {
  const std::string body = hello.SerializeAsString();
  std::array<std::byte, net::kFrameHeaderBytes> header{};
  net::encode({.type = net::FrameType::kHello,
               .entries = 0,
               .payload_bytes = static_cast<std::uint32_t>(body.size()),
               .sequence = 0},
              header);
  return std::string(reinterpret_cast<const char*>(header.data()), header.size()) + body;
}

/// Waits until the other side has closed the connection; what it said before. False at the deadline.
inline bool closed_by_peer(int fd, std::string* said = nullptr) {
  timeval limit{.tv_sec = 30, .tv_usec = 0};
  (void)::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  std::array<char, 4096> chunk{};
  for (;;) {
    const ssize_t got = ::recv(fd, chunk.data(), chunk.size(), 0);
    if (got == 0 || (got < 0 && errno == ECONNRESET)) return true;
    if (got < 0 && errno != EINTR) return false;
    if (got > 0 && said != nullptr) said->append(chunk.data(), static_cast<std::size_t>(got));
  }
}

/// A peer that a test makes up: answers every Hello with one message, or as `serve` does. Ends with its scope.
class MadeUpPeer {
 public:
  using Serve = std::function<void(net::Stream& stream, const v1::PeerHello& hello)>;
  explicit MadeUpPeer(Serve serve) : serve_(std::move(serve)) {
    auto listener = net::Listener::open({.host = "127.0.0.1", .port = 0});
    EXPECT_TRUE(listener.ok()) << (listener ? "" : listener.error().message());
    listen_ = listener->bound().text();
    thread_ = std::thread([this, taken = std::move(*listener)]() mutable { accept(taken); });
  }
  ~MadeUpPeer() {
    stopping_ = true;
    thread_.join();
  }
  MadeUpPeer(const MadeUpPeer&) = delete;
  MadeUpPeer& operator=(const MadeUpPeer&) = delete;
  MadeUpPeer(MadeUpPeer&&) = delete;
  MadeUpPeer& operator=(MadeUpPeer&&) = delete;

  [[nodiscard]] const std::string& listen() const { return listen_; }

 private:
  void accept(net::Listener& listener) {
    while (!stopping_) {
      auto socket = listener.accept(Deadline::after(std::chrono::milliseconds(50)));
      if (!socket) continue;
      auto channel = net::Channel::adopt(std::move(*socket));
      v1::PeerHello hello;
      if (!channel || !net::receive_message(**channel, net::FrameType::kHello, hello, peer_wait())) continue;
      serve_(**channel, hello);
    }
  }

  const Serve serve_;
  std::string listen_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace fvmm::test
