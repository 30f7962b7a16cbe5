// Endpoints, the listener, and connecting.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <string>

#include "net/channel.h"

namespace fvmm::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline soon() {
  return Deadline::after(seconds(20));
}

TEST(Endpoint, ParsesAndPrintsTheSame) {
  for (const std::string text : {"127.0.0.1:7000", "[::1]:7000", "host-1.example:1", "localhost:65535", "0.0.0.0:0"}) {
    const auto endpoint = Endpoint::parse(text);
    ASSERT_TRUE(endpoint.ok()) << text;
    EXPECT_EQ(endpoint->text(), text);
  }
  EXPECT_EQ(Endpoint::parse("[::1]:7000")->host, "::1");
  EXPECT_EQ(Endpoint::parse("[::1]:7000")->port, 7000);
}

TEST(Endpoint, RefusesAndNamesWhatItCannotRead) {
  for (const std::string text : {"", ":", "host", "host:", ":7000", "host:65536", "host:-1", "host:7x", "host: 7",
                                 "::1:7000", "[::1]", "[::1]7000", "[]:7000", "[host]:7000", "ho st:1", "a/b:1"}) {
    const auto endpoint = Endpoint::parse(text);
    ASSERT_FALSE(endpoint.ok()) << text;
    EXPECT_EQ(endpoint.error().code(), Errc::kInvalidArgument);
    EXPECT_NE(endpoint.error().message().find("\"" + text + "\""), std::string::npos) << endpoint.error().message();
  }
}

TEST(Endpoint, HostMayHaveTheLengthOfADnsNameAndNotOneMore) {
  EXPECT_TRUE(Endpoint::parse(std::string(253, 'a') + ":1").ok());
  EXPECT_FALSE(Endpoint::parse(std::string(254, 'a') + ":1").ok());
}

TEST(Endpoint, KnowsWhatIsLoopback) {
  for (const char* host : {"127.0.0.1", "127.255.255.255", "::1", "localhost"}) {
    EXPECT_TRUE((Endpoint{.host = host, .port = 1}.loopback())) << host;
  }
  for (const char* host :
       {"126.255.255.255", "128.0.0.0", "0.0.0.0", "::", "::2", "localhost.example", "127.0.0.1.x"}) {
    EXPECT_FALSE((Endpoint{.host = host, .port = 1}.loopback())) << host;
  }
}

TEST(Listener, RefusesOtherAddressesAndSaysWhatWillAllowThem) {
  for (const char* host : {"0.0.0.0", "192.0.2.1", "::", "example.org"}) {
    const auto listener = Listener::open({.host = host, .port = 0});
    ASSERT_FALSE(listener.ok()) << host;
    EXPECT_EQ(listener.error().code(), Errc::kInvalidArgument);
    EXPECT_NE(listener.error().message().find(host), std::string::npos);
    EXPECT_NE(listener.error().message().find("mutual TLS"), std::string::npos);
  }
}

TEST(Listener, ReportsThePortThatZeroBecame) {
  for (const char* host : {"127.0.0.1", "localhost", "127.1.2.3"}) {
    const auto listener = Listener::open({.host = host, .port = 0});
    ASSERT_TRUE(listener.ok()) << host;
    EXPECT_NE(listener->bound().port, 0);
    EXPECT_TRUE(listener->bound().loopback());
  }
}

TEST(Listener, ATakenPortNamesTheEndpoint) {
  const auto first = Listener::open({.host = "127.0.0.1", .port = 0});
  const auto second = Listener::open(first->bound());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(second.error().message(),
            "listen " + first->bound().text() + ": Address already in use; is another fvmmd running?");
}

TEST(Listener, AcceptEndsAtItsDeadline) {
  auto listener = Listener::open({.host = "127.0.0.1", .port = 0});
  EXPECT_EQ(listener->accept(Deadline::after(milliseconds(5))).error().code(), Errc::kDeadlineExceeded);
}

TEST(Listener, AcceptsOverIpv6WhereThereIsAny) {
  auto listener = Listener::open({.host = "::1", .port = 0});
  if (!listener.ok()) GTEST_SKIP() << listener.error().message();
  auto client = Channel::connect(listener->bound(), soon());
  ASSERT_TRUE(client.ok()) << client.error().message();
  EXPECT_TRUE(listener->accept(soon()).ok());
}

TEST(Connect, FindsLocalhost) {
  auto listener = Listener::open({.host = "127.0.0.1", .port = 0});
  auto client = Channel::connect({.host = "localhost", .port = listener->bound().port}, soon());
  EXPECT_TRUE(client.ok());
}

TEST(Connect, ARefusalNamesTheEndpointAndAsksForTheDaemon) {
  Endpoint at;
  {
    const auto listener = Listener::open({.host = "127.0.0.1", .port = 0});
    at = listener->bound();
  }
  const auto client = Channel::connect(at, soon());
  ASSERT_FALSE(client.ok());
  EXPECT_EQ(client.error().code(), Errc::kUnavailable);
  EXPECT_EQ(client.error().message(), "connect " + at.text() + ": Connection refused; is fvmmd listening there?");
}

TEST(Connect, AFullBacklogEndsAtTheDeadline) {
  const UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(server.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(server.get(), 0), 0);
  socklen_t bytes = sizeof address;
  ASSERT_EQ(::getsockname(server.get(), reinterpret_cast<sockaddr*>(&address), &bytes), 0);
  const Endpoint to{.host = "127.0.0.1", .port = ntohs(address.sin_port)};
  const auto first = Channel::connect(to, soon());  // fills the backlog of 0 + 1
  ASSERT_TRUE(first.ok());
  const auto second = Channel::connect(to, Deadline::after(milliseconds(20)));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code(), Errc::kDeadlineExceeded);
  EXPECT_NE(second.error().message().find("connect " + to.text()), std::string::npos);
}

TEST(Connect, ANameWithoutAddressIsAnErrorThatNamesIt) {
  const auto client = Channel::connect({.host = "no-such-host.invalid", .port = 1}, Deadline::after(seconds(5)));
  ASSERT_FALSE(client.ok());
  EXPECT_NE(client.error().message().find("connect no-such-host.invalid:1"), std::string::npos);
}

}  // namespace
}  // namespace fvmm::net
