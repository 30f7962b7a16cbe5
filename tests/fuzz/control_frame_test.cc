// Seeded garbage against a live server: it refuses, never falls, and serves the next good client.
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <cstdlib>
#include <random>

#include "control/frame.h"
#include "control/unix_socket.h"
#include "proto/control.pb.h"
#include "proto/rpc.pb.h"
#include "support/served.h"

namespace fvmm::control {
namespace {

using test::Served;
using test::soon;

constexpr std::chrono::seconds kFuzzFor{5};

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}
  std::uint64_t below(std::uint64_t limit) {
    return std::uniform_int_distribution<std::uint64_t>(0, limit - 1)(random_);
  }

  std::string bytes(std::size_t count) {
    std::string out(count, '\0');
    for (char& byte : out) byte = static_cast<char>(below(256));
    return out;
  }
  std::string frame() {
    v1::RpcRequest request;
    request.set_call(below(4));
    constexpr const char* kMethods[] = {"Echo", "Stream", "Ech", "", "fvmm.v1.Vms/Show"};
    request.set_method(kMethods[below(5)]);
    request.set_deadline_ms(static_cast<std::uint32_t>(below(50)));
    request.set_message(bytes(below(300)));
    std::string frame = encode_frame(request);
    switch (below(6)) {
      case 0:
        break;  // good
      case 1:
        frame.resize(below(frame.size() + 1));
        break;  // cut
      case 2:
        frame[below(frame.size())] ^= static_cast<char>(1 << below(8));
        break;  // one bit
      case 3:
        frame[below(kFrameHeaderBytes)] = static_cast<char>(below(256));
        break;  // another length
      case 4:
        frame.insert(below(frame.size()), bytes(1 + below(8)));
        break;
      default:
        frame = bytes(below(64));
        break;
    }
    return frame;
  }

 private:
  std::mt19937_64 random_;
};

TEST(ControlFrameFuzz, GarbageNeverHarmsTheNextClient) {
  const char* given = std::getenv("FVMM_FUZZ_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  SCOPED_TRACE("FVMM_FUZZ_SEED=" + std::to_string(seed));
  RecordProperty("seed", std::to_string(seed));
  Served served([](Server& server) {
    server.handle("Echo", [](Call&, const std::string& bytes) -> Result<std::string> { return bytes; });
    server.handle("Stream", [](Call& call, const std::string&) -> Result<std::string> {
      v1::LogChunk event;
      event.set_data(std::string(1000, 'x'));
      for (int i = 0; i < 20; ++i) FVMM_TRY(call.send(event));
      return std::string();
    });
  });
  const google::protobuf::LogSilencer quiet;  // it reports every string that is not UTF-8
  Mutator mutator(seed);
  const UniqueFd passed(::memfd_create("fuzz", MFD_CLOEXEC));
  const std::vector<int> descriptors(kDescriptorsPerCallMax, passed.get());
  const Deadline end = Deadline::after(kFuzzFor);
  std::uint64_t connections = 0;
  while (!end.passed()) {
    const auto socket = connect_unix(served.socket(), soon());
    ASSERT_TRUE(socket.ok()) << socket.error().message();
    ++connections;
    for (std::uint64_t frames = 1 + mutator.below(8); frames > 0; --frames) {
      const std::size_t fds = mutator.below(4) == 0 ? mutator.below(kDescriptorsPerCallMax + 1) : 0;
      const std::string frame = mutator.frame();
      if (frame.empty()) continue;
      (void)send_some(socket->get(), frame, std::span(descriptors).first(fds));
    }
    if (mutator.below(2) == 0) wait_for(socket->get(), POLLIN, Deadline::after(std::chrono::milliseconds(2)));
    if (connections % 64 != 0) continue;
    v1::LogChunk request;
    request.set_offset(connections);
    v1::LogChunk answer;
    const Status good = served.client()->call("Echo", request, answer, soon());
    ASSERT_TRUE(good.ok() || good.error().code() == Errc::kResourceExhausted) << good.error().message();
  }
  served.stop();
  EXPECT_GT(connections, 0U);
}

TEST(ControlFrameFuzz, GoodClientIsServedAfterEveryCutOfAFrame) {
  Served served([](Server& server) {
    server.handle("Echo", [](Call&, const std::string& bytes) -> Result<std::string> { return bytes; });
  });
  v1::RpcRequest request;
  request.set_call(1);
  request.set_method("Echo");
  request.set_message("hello");
  const std::string frame = encode_frame(request);
  for (std::size_t cut = 0; cut < frame.size(); ++cut) {
    {
      const UniqueFd socket = std::move(*connect_unix(served.socket(), soon()));
      if (cut > 0) {
        ASSERT_EQ(send_some(socket.get(), std::string_view(frame).substr(0, cut)), static_cast<ssize_t>(cut));
      }
    }
    v1::LogChunk sent;
    sent.set_offset(cut);
    v1::LogChunk answer;
    ASSERT_TRUE(served.client()->call("Echo", sent, answer, soon()).ok());
    EXPECT_EQ(answer.offset(), cut);
  }
}

}  // namespace
}  // namespace fvmm::control
