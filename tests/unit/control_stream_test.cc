// Server streams: order, slow clients, clients that leave.
#include <gtest/gtest.h>

#include <future>

#include "proto/control.pb.h"
#include "support/served.h"

namespace fvmm::control {
namespace {

using test::Served;
using test::soon;
using v1::LogChunk;
using v1::LogsRequest;

LogChunk chunk(std::uint64_t offset, std::size_t bytes = 1) {
  LogChunk event;
  event.set_offset(offset);
  event.set_data(std::string(bytes, 'x'));
  return event;
}

TEST(ControlStream, EventsArriveInOrderAndTheLastIsMarked) {
  Served served([](Server& server) {
    server.stream<LogsRequest, LogChunk>("Logs", [](Call& call, const LogsRequest& request) -> Result<LogChunk> {
      for (std::uint64_t i = 0; i < request.offset(); ++i) FVMM_TRY(call.send(chunk(i)));
      return chunk(request.offset());
    });
  });
  LogsRequest request;
  request.set_offset(1000);
  std::vector<std::uint64_t> offsets;
  int lasts = 0;
  const auto event = [&](const std::string& bytes, bool last) {
    LogChunk received;
    EXPECT_TRUE(received.ParseFromString(bytes));
    offsets.push_back(received.offset());
    lasts += last ? 1 : 0;
    return true;
  };
  const Status status = served.client()->stream("Logs", request, event, soon());
  ASSERT_TRUE(status.ok()) << status.error().message();
  ASSERT_EQ(offsets.size(), 1001U);
  for (std::size_t i = 0; i < offsets.size(); ++i) EXPECT_EQ(offsets[i], i);
  EXPECT_EQ(lasts, 1);
}

TEST(ControlStream, ErrorAfterEventsArrivesAfterThem) {
  Served served([](Server& server) {
    server.stream<LogsRequest, LogChunk>("Logs", [](Call& call, const LogsRequest&) -> Result<LogChunk> {
      FVMM_TRY(call.send(chunk(1)));
      return Error(Errc::kDataLoss, "the rest is gone");
    });
  });
  int events = 0;
  const Status status = served.client()->stream(
      "Logs", LogsRequest(),
      [&](const std::string&, bool) {
        ++events;
        return true;
      },
      soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kDataLoss);
  EXPECT_EQ(events, 1);
}

TEST(ControlStream, SlowClientBlocksTheSenderInsteadOfFillingMemoryAndLosesNothing) {
  constexpr std::uint64_t kEvents = 64;
  constexpr std::size_t kBytes = 256 * 1024;  // 16 MiB in all: far more than queue and socket hold
  std::atomic<std::uint64_t> sent{0};
  Served served([&](Server& server) {
    server.stream<LogsRequest, LogChunk>("Logs", [&](Call& call, const LogsRequest&) -> Result<LogChunk> {
      for (std::uint64_t i = 0; i < kEvents; ++i) {
        FVMM_TRY(call.send(chunk(i, kBytes)));
        ++sent;
      }
      return chunk(kEvents);
    });
  });
  std::uint64_t received = 0;
  std::uint64_t ahead_max = 0;
  const auto event = [&](const std::string& bytes, bool last) {
    LogChunk next;
    EXPECT_TRUE(next.ParseFromString(bytes));
    EXPECT_EQ(next.offset(), received);
    if (!last) ++received;
    if (received == 1)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // time for a sender that does not block
    const std::uint64_t now = sent;                                // may be counted after it has come
    ahead_max = std::max(ahead_max, now - std::min(now, received));
    return true;
  };
  ASSERT_TRUE(served.client()->stream("Logs", LogsRequest(), event, soon()).ok());
  EXPECT_EQ(received, kEvents);
  EXPECT_LT(ahead_max, kEvents / 2);
}

TEST(ControlStream, ClientThatNeverReadsIsGivenUpAtTheDeadline) {
  std::promise<Errc> outcome;
  Served served([&](Server& server) {
    server.stream<LogsRequest, LogChunk>("Logs", [&](Call& call, const LogsRequest&) -> Result<LogChunk> {
      for (;;) {
        const Status status = call.send(chunk(0, 256 * 1024));
        if (status.ok()) continue;
        outcome.set_value(status.error().code());
        return Error(Errc::kAborted, "gave up");
      }
    });
  });
  const auto client = served.client();
  bool first = true;
  const auto event = [&](const std::string&, bool) {
    if (std::exchange(first, false)) {
      EXPECT_EQ(outcome.get_future().get(), Errc::kDeadlineExceeded);
    }
    return true;
  };
  EXPECT_FALSE(client->stream("Logs", LogsRequest(), event, Deadline::after(std::chrono::milliseconds(200))).ok());
}

TEST(ControlStream, LeavingClientCancelsTheHandler) {
  std::promise<Errc> outcome;
  Served served([&](Server& server) {
    server.stream<LogsRequest, LogChunk>("Logs", [&](Call& call, const LogsRequest&) -> Result<LogChunk> {
      for (std::uint64_t i = 0;; ++i) {
        const Status status = call.send(chunk(i));
        if (status.ok()) continue;
        outcome.set_value(status.error().code());
        EXPECT_TRUE(call.cancelled());
        return chunk(i);
      }
    });
  });
  const auto client = served.client();
  const Status status = client->stream(
      "Logs", LogsRequest(), [](const std::string&, bool) { return false; }, soon());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kCancelled);
  EXPECT_EQ(outcome.get_future().get(), Errc::kCancelled);
  EXPECT_EQ(client
                ->stream(
                    "Logs", LogsRequest(), [](const std::string&, bool) { return true; }, soon())
                .error()
                .code(),
            Errc::kUnavailable);
}

TEST(ControlStream, DisconnectIsSeenByAHandlerThatSendsNothing) {
  std::promise<void> entered;
  std::promise<void> seen;
  Served served([&](Server& server) {
    server.stream<LogsRequest, LogChunk>("Logs", [&](Call& call, const LogsRequest&) -> Result<LogChunk> {
      entered.set_value();
      while (!call.cancelled()) std::this_thread::yield();
      seen.set_value();
      return chunk(0);
    });
  });
  auto client = served.client();
  std::thread leaver([&] {
    entered.get_future().wait();
    client->cancel();
  });
  EXPECT_FALSE(client
                   ->stream(
                       "Logs", LogsRequest(), [](const std::string&, bool) { return true; }, soon())
                   .ok());
  leaver.join();
  seen.get_future().wait();
}

}  // namespace
}  // namespace fvmm::control
