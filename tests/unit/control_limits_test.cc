// Each limit at its value and one past it; frames that are none; the end of a server.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <future>
#include <mutex>

#include "control/frame.h"
#include "control/frame_reader.h"
#include "control/unix_socket.h"
#include "proto/control.pb.h"
#include "proto/rpc.pb.h"
#include "support/served.h"

namespace fvmm::control {
namespace {

using test::Served;
using test::soon;
using v1::Empty;
using v1::LogChunk;
using v1::RpcRequest;
using v1::RpcResponse;

/// A client that can misbehave: whole control over the bytes.
class RawClient {
 public:
  explicit RawClient(const Served& served) : RawClient(served.socket()) {}
  explicit RawClient(const std::filesystem::path& socket) : fd_(std::move(*connect_unix(socket, soon()))) {}
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send_some(fd_.get(), bytes);
      if (sent < 0 && errno == EAGAIN && wait_for(fd_.get(), POLLOUT, soon())) continue;
      if (sent < 0) return;  // the server has closed
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  /// The next answer; nothing at the end of the stream.
  std::optional<RpcResponse> answer() {
    for (;;) {
      const auto step = reader_.read(fd_.get());
      if (step == FrameReader::Step::kBlocked && wait_for(fd_.get(), POLLIN, soon())) continue;
      if (step != FrameReader::Step::kFrame) return std::nullopt;
      RpcResponse response;
      EXPECT_TRUE(response.ParseFromString(reader_.take().body));
      return response;
    }
  }
  int fd() { return fd_.get(); }

 private:
  UniqueFd fd_;
  FrameReader reader_;
};

std::string frame_of(std::uint64_t call, std::string method, std::string message = "") {
  RpcRequest request;
  request.set_call(call);
  request.set_method(std::move(method));
  request.set_message(std::move(message));
  return encode_frame(request);
}

std::string header_of(std::uint32_t length) {
  return {static_cast<char>(length), static_cast<char>(length >> 8), static_cast<char>(length >> 16),
          static_cast<char>(length >> 24)};
}

void with_echo(Server& server) {
  server.handle("Echo", [](Call&, const std::string& bytes) -> Result<std::string> { return bytes; });
}

void expect_refused_and_closed(RawClient& client, Errc code) {
  const auto error = client.answer();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->call(), kConnectionCall);
  EXPECT_EQ(error->code(), to_wire(code));
  EXPECT_FALSE(client.answer());
}

void expect_alive(const Served& served) {
  LogChunk request;
  request.set_offset(5);
  LogChunk answer;
  const Status status = served.client()->call("Echo", request, answer, soon());
  ASSERT_TRUE(status.ok()) << status.error().message();
  EXPECT_EQ(answer.offset(), 5U);
}

/// A gate that handlers wait at until the test lets them go.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void wait_for(unsigned waiting) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= waiting; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned waiting_ = 0;
  bool open_ = false;
};

TEST(ControlLimits, FrameOfExactlyTheLimitIsServed) {
  std::atomic<std::size_t> got{0};
  Served served([&](Server& server) {
    server.handle("Take", [&](Call&, const std::string& bytes) -> Result<std::string> {
      got = bytes.size();
      return std::string();
    });
  });
  RpcRequest request;
  request.set_call(1);
  request.set_method("Take");
  request.set_message(std::string(kRpcFrameBytesMax - 64, 'x'));
  const std::size_t room = kRpcFrameBytesMax - request.ByteSizeLong();
  request.mutable_message()->append(room, 'x');
  ASSERT_EQ(request.ByteSizeLong(), kRpcFrameBytesMax);
  RawClient client(served);
  client.send(encode_frame(request));
  const auto answer = client.answer();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->code(), 0U);
  EXPECT_EQ(got, request.message().size());
}

TEST(ControlLimits, FrameOnePastTheLimitIsRefusedAndNothingElseSuffers) {
  Served served(with_echo);
  RawClient client(served);
  client.send(header_of(kRpcFrameBytesMax + 1));
  expect_refused_and_closed(client, Errc::kInvalidArgument);
  expect_alive(served);
}

TEST(ControlLimits, GarbageFrameIsRefusedAndNothingElseSuffers) {
  Served served(with_echo);
  for (const std::string& body : {std::string("\xff\xff\xff\xff\xff garbage"), std::string(), std::string(100, '\0')}) {
    RawClient client(served);
    client.send(header_of(static_cast<std::uint32_t>(body.size())) + body);
    expect_refused_and_closed(client, Errc::kInvalidArgument);
  }
  expect_alive(served);
}

TEST(ControlLimits, RequestThatStopsHalfWayIsRefusedAfterItsWait) {
  test::TemporaryDirectory directory;
  Server::Options options;
  options.socket = directory.path() / "s";
  options.frame_wait_max = std::chrono::milliseconds(20);
  auto server = std::move(*Server::open(std::move(options)));
  std::thread thread([&] { server->run(); });
  RawClient client(directory.path() / "s");
  client.send(frame_of(1, "Echo").substr(0, 7));
  expect_refused_and_closed(client, Errc::kDeadlineExceeded);
  server->stop();
  thread.join();
}

TEST(ControlLimits, RequestByteByByteIsServed) {
  Served served(with_echo);
  RawClient client(served);
  for (const char byte : frame_of(9, "Echo", "hello")) client.send({&byte, 1});
  const auto answer = client.answer();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->call(), 9U);
  EXPECT_EQ(answer->message(), "hello");
}

TEST(ControlLimits, ManyRequestsInOnePieceAreAllServed) {
  Served served(with_echo);
  RawClient client(served);
  std::string all;
  for (std::uint64_t call = 1; call <= 40; ++call) all += frame_of(call, "Echo", std::to_string(call));
  client.send(all);
  for (int i = 0; i < 40; ++i) {
    const auto answer = client.answer();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->message(), std::to_string(answer->call()));  // in whatever order
  }
}

TEST(ControlLimits, CallsOnOneConnectionOverlap) {
  Gate gate;
  Served served([&](Server& server) {
    with_echo(server);
    server.handle("Wait", [&](Call&, const std::string&) -> Result<std::string> {
      gate.pass();
      return std::string("waited");
    });
  });
  RawClient client(served);
  client.send(frame_of(1, "Wait") + frame_of(2, "Echo", "first"));
  const auto first = client.answer();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->call(), 2U);
  gate.open();
  const auto second = client.answer();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->call(), 1U);
  EXPECT_EQ(second->message(), "waited");
}

TEST(ControlLimits, CallNumberInUseIsRefused) {
  Gate gate;
  Served served([&](Server& server) {
    server.handle("Wait", [&](Call&, const std::string&) -> Result<std::string> {
      gate.pass();
      return std::string();
    });
  });
  RawClient client(served);
  client.send(frame_of(3, "Wait"));
  gate.wait_for(1);
  client.send(frame_of(3, "Wait"));
  expect_refused_and_closed(client, Errc::kInvalidArgument);
  gate.open();
}

TEST(ControlLimits, CallsUpToTheLimitRunAndOneMoreIsRefused) {
  Gate gate;
  Served served([&](Server& server) {
    server.handle("Wait", [&](Call&, const std::string&) -> Result<std::string> {
      gate.pass();
      return std::string();
    });
  });
  RawClient client(served);
  for (std::uint64_t call = 1; call <= kCallsMax; ++call) client.send(frame_of(call, "Wait"));
  gate.wait_for(kCallsMax);
  client.send(frame_of(kCallsMax + 1, "Wait"));
  const auto refused = client.answer();
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->call(), kCallsMax + 1);
  EXPECT_EQ(refused->code(), to_wire(Errc::kResourceExhausted));
  gate.open();
  for (unsigned i = 0; i < kCallsMax; ++i) {
    const auto answer = client.answer();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->code(), 0U);
  }
  client.send(frame_of(1000, "Wait"));  // all places are free again before the last answer is out
  EXPECT_EQ(client.answer()->code(), 0U);
}

TEST(ControlLimits, ConnectionsUpToTheLimitAreServedAndOneMoreIsTurnedAway) {
  Served served(with_echo);
  std::vector<std::unique_ptr<Client>> clients;
  Empty empty;
  for (unsigned i = 0; i < kConnectionsMax; ++i) {
    clients.push_back(served.client());
    ASSERT_TRUE(clients.back()->call("Echo", empty, empty, soon()).ok());
  }
  const Status status = served.client()->call("Echo", empty, empty, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kResourceExhausted);
  for (const auto& client : clients) EXPECT_TRUE(client->call("Echo", empty, empty, soon()).ok());
}

TEST(ControlLimits, AnswerTooLongForAFrameBecomesAnError) {
  Served served([](Server& server) {
    server.handle("Long", [](Call&, const std::string&) -> Result<std::string> {
      return std::string(kRpcFrameBytesMax, 'x');  // with the other fields of the frame, past the limit
    });
  });
  Empty empty;
  const Status status = served.client()->call("Long", empty, empty, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kResourceExhausted);
}

TEST(ControlLimits, RequestTooLongForAFrameIsNotSent) {
  Served served(with_echo);
  LogChunk request;
  request.set_data(std::string(kRpcFrameBytesMax, 'x'));
  LogChunk answer;
  const auto client = served.client();
  const Status status = client->call("Echo", request, answer, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kInvalidArgument);
  EXPECT_TRUE(client->call("Echo", Empty(), answer, soon()).ok());
}

TEST(ControlLimits, StopCancelsAHandlerUnderWayAndItsAnswerStillArrives) {
  std::promise<void> entered;
  Served served([&](Server& server) {
    server.handle("Hang", [&](Call& call, const std::string&) -> Result<std::string> {
      entered.set_value();
      while (!call.cancelled()) std::this_thread::yield();
      return Error(Errc::kAborted, "stopped half way");
    });
  });
  const auto client = served.client();
  std::thread stopper([&] {
    entered.get_future().wait();
    served.stop();
  });
  Empty empty;
  const Status status = client->call("Hang", empty, empty, soon());
  stopper.join();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kAborted);
  EXPECT_FALSE(std::filesystem::exists(served.socket()));
}

TEST(ControlLimits, HandlerMayStopTheServerAndIsAnswered) {
  Served* self = nullptr;
  Served served([&](Server& server) {
    server.handle("Stop", [&](Call&, const std::string&) -> Result<std::string> {
      self->server().stop();
      return std::string();
    });
  });
  self = &served;
  Empty empty;
  const auto client = served.client();
  const Status status = client->call("Stop", empty, empty, soon());
  EXPECT_TRUE(status.ok()) << status.error().message();
  const Status after = client->call("Stop", empty, empty, soon());
  EXPECT_FALSE(after.ok());
}

TEST(ControlLimits, StopWakesASenderBlockedOnASlowClient) {
  std::promise<void> entered;
  std::promise<Errc> outcome;
  Served served([&](Server& server) {
    server.handle("Flood", [&](Call& call, const std::string&) -> Result<std::string> {
      entered.set_value();
      LogChunk event;
      event.set_data(std::string(256 * 1024, 'x'));
      for (;;) {
        const Status status = call.send(event);
        if (status.ok()) continue;
        outcome.set_value(status.error().code());
        return std::string();
      }
    });
  });
  RawClient client(served);
  client.send(frame_of(1, "Flood"));
  entered.get_future().wait();
  served.stop();
  EXPECT_EQ(outcome.get_future().get(), Errc::kCancelled);
}

TEST(ControlLimits, ServerStoppedBeforeItRunsReturnsAtOnce) {
  test::TemporaryDirectory directory;
  Server::Options options;
  options.socket = directory.path() / "s";
  auto server = std::move(*Server::open(std::move(options)));
  server->stop();
  server->run();
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "s"));
}

}  // namespace
}  // namespace fvmm::control
