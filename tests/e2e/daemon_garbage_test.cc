// Bytes that are no protocol, on the peer port and on the control socket: the daemon lets go of them and answers on.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <random>

#include "control/client.h"
#include "control/frame.h"
#include "control/server.h"
#include "proto/control.pb.h"
#include "proto/rpc.pb.h"
#include "support/daemons.h"
#include "support/peer_talk.h"

namespace fvmm::test {
namespace {

class GarbageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    host_ = &cluster_.add("A");
    ASSERT_TRUE(boot_workload(*host_, "web"));
    daemon_ = host_->daemon_pid();
  }
  Host& host() { return *host_; }
  [[nodiscard]] UniqueFd control() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    host_->socket().copy(address.sun_path, sizeof(address.sun_path) - 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  static void send(int fd, std::string_view bytes) {
    (void)::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);  // it may have been closed on us, which is fine
  }
  /// The same fvmmd answers on both doors, and the guest has noticed nothing.
  void expect_well() {
    EXPECT_EQ(host().daemon_pid(), daemon_);
    EXPECT_EQ(host().ctl({"vm", "list"}).code, 0);
    v1::PeerHello question = migrate_hello("none");
    question.set_purpose(v1::QUERY_SESSION);
    const auto answer = ask_peer_raw(host().listen(), question);
    EXPECT_TRUE(answer.ok()) << answer.error().message();
    EXPECT_TRUE(host().verified_after_now("web"));
  }

 private:
  Cluster cluster_;
  Host* host_ = nullptr;
  pid_t daemon_ = 0;
};

/// Half random bytes, half a real frame with some bytes changed; the same each time.
std::string garbage(std::mt19937& random, const std::string& real) {
  std::string bytes = real;
  if (random() % 2 == 0) {
    for (unsigned i = 0; i < 1 + random() % 8; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
  } else {
    bytes.resize(1 + random() % 200);
    for (char& byte : bytes) byte = static_cast<char>(random());
  }
  return bytes;
}

TEST_F(GarbageTest, PeerPortLetsGoOfGarbage) {
  std::mt19937 random(1);
  v1::PeerHello push = migrate_hello("none");
  push.set_purpose(v1::QUERY_SESSION);
  const std::string real = hello_frame(push);
  for (int i = 0; i < 100; ++i) {
    const auto peer = connect_peer(host().listen());
    ASSERT_TRUE(peer);
    send(peer->fd(), garbage(random, real));
    ::shutdown(peer->fd(), SHUT_WR);
    EXPECT_TRUE(closed_by_peer(peer->fd()));
  }
  expect_well();
}

TEST_F(GarbageTest, PeerPortReadsNothingOfAFrameThatIsTooLongOrOfAnotherKind) {
  for (const auto& [type, bytes] :
       std::vector<std::pair<net::FrameType, std::uint32_t>>{{net::FrameType::kHello, net::kHelloBytesMax + 1},
                                                             {net::FrameType::kHello, 0xFFFFFFFF},
                                                             {net::FrameType::kControl, 16},
                                                             {net::FrameType::kPages, net::kPagePayloadBytesMax},
                                                             {net::FrameType::kEnd, 0},
                                                             {static_cast<net::FrameType>(77), 1}}) {
    std::array<std::byte, net::kFrameHeaderBytes> header{};
    net::encode({.type = type, .entries = 0, .payload_bytes = bytes, .sequence = 0}, header);
    const auto peer = connect_peer(host().listen());
    ASSERT_TRUE(peer);
    send(peer->fd(), {reinterpret_cast<const char*>(header.data()), header.size()});
    EXPECT_TRUE(closed_by_peer(peer->fd())) << "without waiting for " << bytes << " bytes";
  }
  expect_well();
}

TEST_F(GarbageTest, PeerPortSurvivesAHelloCutAtAnyByte) {
  const std::string whole = hello_frame(migrate_hello("ghost"));
  for (std::size_t cut = 0; cut < whole.size(); cut += 3) {
    const auto peer = connect_peer(host().listen());
    ASSERT_TRUE(peer);
    send(peer->fd(), std::string_view(whole).substr(0, cut));
  }
  EXPECT_EQ(host().state("ghost"), "");
  expect_well();
}

TEST_F(GarbageTest, ControlSocketLetsGoOfGarbage) {
  std::mt19937 random(2);
  v1::RpcRequest request;
  request.set_call(7);
  request.set_method("fvmm.v1.Vms/List");
  const std::string real = control::encode_frame(request);
  for (int i = 0; i < 100; ++i) {
    const UniqueFd client = control();
    send(client.get(), garbage(random, real));
    ::shutdown(client.get(), SHUT_WR);
    EXPECT_TRUE(closed_by_peer(client.get()));
  }
  expect_well();
}

TEST_F(GarbageTest, ControlSocketRefusesAFrameThatIsTooLong) {
  const UniqueFd client = control();
  const std::uint32_t length = control::kRpcFrameBytesMax + 1;
  send(client.get(), {reinterpret_cast<const char*>(&length), sizeof(length)});
  std::string said;
  EXPECT_TRUE(closed_by_peer(client.get(), &said));
  v1::RpcResponse response;
  ASSERT_GT(said.size(), control::kFrameHeaderBytes);
  ASSERT_TRUE(response.ParseFromString(said.substr(control::kFrameHeaderBytes)));
  EXPECT_NE(response.code(), 0U);
  EXPECT_NE(response.error().find(std::to_string(control::kRpcFrameBytesMax)), std::string::npos) << response.error();
  expect_well();
}

TEST_F(GarbageTest, ControlSocketSurvivesARequestCutAtAnyByteAndUnknownMethods) {
  v1::RpcRequest request;
  request.set_call(1);
  request.set_method("fvmm.v1.Vms/Stop");
  v1::VmName name;
  name.set_name("web");
  request.set_message(name.SerializeAsString());
  const std::string whole = control::encode_frame(request);
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    const UniqueFd client = control();
    send(client.get(), std::string_view(whole).substr(0, cut));
  }
  EXPECT_EQ(host().state("web"), "running") << "half a command is none";
  for (const auto* method : {"", "fvmm.v1.Vms/Explode", "fvmm.v1.Worker/Stop"}) {
    auto client = control::Client::connect(host().socket(), peer_wait());
    ASSERT_TRUE(client.ok());
    v1::Empty nothing;
    const Status answer = (*client)->call(method, name, nothing, peer_wait());
    ASSERT_FALSE(answer.ok());
    EXPECT_EQ(answer.error().code(), Errc::kUnimplemented) << answer.error().message();
  }
  expect_well();
}

}  // namespace
}  // namespace fvmm::test
