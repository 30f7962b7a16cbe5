// Calls and their answers, between a real client and a real server over a socket.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <future>
#include <stdexcept>

#include "control/frame.h"
#include "proto/control.pb.h"
#include "support/served.h"

namespace fvmm::control {
namespace {

using test::Served;
using test::soon;
using v1::Empty;
using v1::VmInfo;
using v1::VmName;

Result<VmInfo> show(Call&, const VmName& request) {
  VmInfo info;
  info.mutable_config()->set_name(request.name());
  info.set_worker_pid(7);
  return info;
}

TEST(ControlRpc, UnaryCallCarriesRequestAndAnswer) {
  Served served([](Server& server) { server.unary<VmName, VmInfo>("fvmm.v1.Vms/Show", show); });
  VmName request;
  request.set_name("web1");
  VmInfo answer;
  const auto client = served.client();
  const Status status = client->call("fvmm.v1.Vms/Show", request, answer, soon());
  ASSERT_TRUE(status.ok()) << status.error().message();
  EXPECT_EQ(answer.config().name(), "web1");
  EXPECT_EQ(answer.worker_pid(), 7);
  EXPECT_TRUE(client->answered());
}

TEST(ControlRpc, OneConnectionServesManyCalls) {
  Served served([](Server& server) { server.unary<VmName, VmInfo>("fvmm.v1.Vms/Show", show); });
  const auto client = served.client();
  for (int i = 0; i < 200; ++i) {
    VmName request;
    request.set_name(std::to_string(i));
    VmInfo answer;
    ASSERT_TRUE(client->call("fvmm.v1.Vms/Show", request, answer, soon()).ok());
    EXPECT_EQ(answer.config().name(), std::to_string(i));
  }
}

TEST(ControlRpc, EveryErrorCodeArrivesWithItsTextAndIoAsInternal) {
  Served served([](Server& server) {
    server.unary<VmName, VmInfo>("Fail", [](Call&, const VmName& request) -> Result<VmInfo> {
      return Error(static_cast<Errc>(std::stoi(request.name())), "because " + request.name());
    });
  });
  const auto client = served.client();
  for (int code = 1; code <= 16; ++code) {
    VmName request;
    request.set_name(std::to_string(code));
    VmInfo answer;
    const Status status = client->call("Fail", request, answer, soon());
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), code == 16 ? Errc::kInternal : static_cast<Errc>(code));
    EXPECT_EQ(status.error().message(), "because " + std::to_string(code));
    EXPECT_TRUE(client->answered());
  }
}

TEST(ControlRpc, ErrorTextThatIsNotUtf8StillArrives) {
  Served served([](Server& server) {
    server.unary<Empty, Empty>(
        "Fail", [](Call&, const Empty&) -> Result<Empty> { return Error(Errc::kNotFound, "file \xff\xfe!"); });
  });
  Empty empty;
  const Status status = served.client()->call("Fail", empty, empty, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message(),
            "file ?"
            "?!");
}

TEST(ControlRpc, UnknownMethodIsNamed) {
  Served served([](Server&) {});
  Empty empty;
  const Status status = served.client()->call("fvmm.v1.Vms/Teleport", empty, empty, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kUnimplemented);
  EXPECT_NE(status.error().message().find("fvmm.v1.Vms/Teleport"), std::string::npos);
}

TEST(ControlRpc, ExceptionOfAHandlerBecomesInternalAndTheServerGoesOn) {
  Served served([](Server& server) {
    server.unary<VmName, VmInfo>("Show", show);
    server.unary<Empty, Empty>("Throw", [](Call&, const Empty&) -> Result<Empty> { throw std::runtime_error("boom"); });
  });
  Empty empty;
  const auto client = served.client();
  const Status status = client->call("Throw", empty, empty, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kInternal);
  EXPECT_EQ(status.error().message(), "Throw: boom");
  VmInfo info;
  EXPECT_TRUE(client->call("Show", VmName(), info, soon()).ok());
}

TEST(ControlRpc, RequestOfAnotherTypeIsInvalidArgumentAndNamesTheMethod) {
  Served served([](Server& server) { server.unary<VmName, VmInfo>("Show", show); });
  v1::LogChunk odd;  // its bytes in field 1 are no UTF-8, which a name must be
  odd.set_data("\xff");
  VmInfo answer;
  const Status status = served.client()->call("Show", odd, answer, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kInvalidArgument);
  EXPECT_NE(status.error().message().find("Show"), std::string::npos);
}

TEST(ControlRpc, DeadlineTravelsToTheServer) {
  Served served([](Server& server) {
    server.unary<Empty, VmName>("Left", [](Call& call, const Empty&) -> Result<VmName> {
      VmName answer;
      answer.set_name(call.deadline().left() > std::chrono::hours(1) ? "long" : "short");
      return answer;
    });
  });
  const auto client = served.client();
  VmName answer;
  ASSERT_TRUE(client->call("Left", Empty(), answer, Deadline::after(std::chrono::hours(2))).ok());
  EXPECT_EQ(answer.name(), "long");
  ASSERT_TRUE(client->call("Left", Empty(), answer, soon()).ok());
  EXPECT_EQ(answer.name(), "short");
  const auto for_ever = Deadline::after(std::chrono::hours(24 * 365));  // more milliseconds than 32 bits hold
  ASSERT_TRUE(client->call("Left", Empty(), answer, for_ever).ok());
  EXPECT_EQ(answer.name(), "long");
}

TEST(ControlRpc, PassedDeadlineEndsTheCallAndCancelsTheHandlerAndTheConnectionLives) {
  std::promise<void> given_up;
  std::promise<void> cancelled;
  Served served([&](Server& server) {
    server.unary<VmName, VmInfo>("Show", show);
    server.unary<Empty, Empty>("Hang", [&](Call& call, const Empty&) -> Result<Empty> {
      while (!call.cancelled()) std::this_thread::yield();
      given_up.get_future().wait();  // the client's clock decides, however late this thread runs
      cancelled.set_value();
      return Error(Errc::kCancelled, "late");
    });
  });
  Empty empty;
  const auto client = served.client();
  const Status status = client->call("Hang", empty, empty, Deadline::after(std::chrono::milliseconds(30)));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kDeadlineExceeded);
  EXPECT_FALSE(client->answered());
  given_up.set_value();
  cancelled.get_future().wait();
  VmName request;
  request.set_name("after");
  VmInfo info;  // the late answer of Hang is on the wire before this one, and must be skipped
  const Status after = client->call("Show", request, info, soon());
  ASSERT_TRUE(after.ok()) << after.error().message();
  EXPECT_EQ(info.config().name(), "after");
}

TEST(ControlRpc, CallWithoutTimeLeftIsNotSent) {
  std::atomic<int> calls{0};
  Served served([&](Server& server) {
    server.unary<Empty, Empty>("Count", [&](Call&, const Empty&) -> Result<Empty> {
      ++calls;
      return Empty();
    });
  });
  Empty empty;
  const Status status = served.client()->call("Count", empty, empty, Deadline::after(std::chrono::microseconds(0)));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kDeadlineExceeded);
  served.stop();
  EXPECT_EQ(calls, 0);
}

TEST(ControlRpc, CancelFromAnotherThreadEndsTheCallAndAllLaterOnes) {
  std::promise<void> entered;
  Served served([&](Server& server) {
    server.unary<Empty, Empty>("Hang", [&](Call& call, const Empty&) -> Result<Empty> {
      entered.set_value();
      while (!call.cancelled()) std::this_thread::yield();
      return Empty();
    });
  });
  const auto client = served.client();
  std::thread canceller([&] {
    entered.get_future().wait();
    client->cancel();
  });
  Empty empty;
  const Status status = client->call("Hang", empty, empty, soon());
  canceller.join();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kCancelled);
  EXPECT_EQ(client->call("Hang", empty, empty, soon()).error().code(), Errc::kCancelled);
}

TEST(ControlRpc, CredentialsAreThoseOfTheClient) {
  Served served([](Server& server) {
    server.unary<Empty, VmInfo>("Who", [](Call& call, const Empty&) -> Result<VmInfo> {
      VmInfo info;
      info.set_worker_pid(call.credentials().pid);
      info.set_delta_pages(call.credentials().uid);
      return info;
    });
  });
  VmInfo info;
  ASSERT_TRUE(served.client()->call("Who", Empty(), info, soon()).ok());
  EXPECT_EQ(info.worker_pid(), ::getpid());
  EXPECT_EQ(info.delta_pages(), ::getuid());
}

TEST(ControlRpc, StrangerIsTurnedAwayWithTheReason) {
  Served served([](Server& server) { server.unary<VmName, VmInfo>("Show", show); },
                [](const PeerCredentials&) { return false; });
  VmInfo info;
  const Status status = served.client()->call("Show", VmName(), info, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kPermissionDenied);
  EXPECT_NE(status.error().message().find("group"), std::string::npos);
}

}  // namespace
}  // namespace fvmm::control
