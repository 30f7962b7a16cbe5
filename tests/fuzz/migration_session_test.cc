// Mutated page tables, and destinations that are fed garbage, from a seed: never a crash, never a guest that runs
// without COMMIT. FVMM_FUZZ_SEED and FVMM_FUZZ_ROUNDS choose another run.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <random>
#include <thread>

#include "migration/page_sender.h"
#include "migration/page_table.h"
#include "support/fake_machine.h"
#include "support/fake_peer.h"

namespace fvmm::testing {
namespace {

using Random = std::mt19937_64;

#ifdef FVMM_SANITIZED
constexpr std::uint64_t kSlower = 5;
#else
constexpr std::uint64_t kSlower = 1;
#endif

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): one thread
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

Deadline soon() {
  return Deadline::after(std::chrono::seconds(20));
}

void mutate(std::span<std::byte> bytes, Random& random) {
  if (bytes.empty()) return;
  for (std::uint64_t i = 1 + random() % 4; i > 0; --i) {
    std::byte& byte = bytes[random() % bytes.size()];
    switch (random() % 4) {
      case 0:
        byte ^= static_cast<std::byte>(1U << (random() % 8));
        break;
      case 1:
        byte = std::byte{0xff};
        break;
      case 2:
        byte = std::byte{0};
        break;
      default:
        byte = static_cast<std::byte>(random());
    }
  }
}

TEST(FuzzPageTable, WhateverIsAcceptedLiesInsideTheGuest) {
  Random random(from_environment("FVMM_FUZZ_SEED", 11));
  const std::uint64_t rounds = from_environment("FVMM_FUZZ_ROUNDS", 200'000 / kSlower);
  std::uint64_t accepted = 0;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    std::vector<std::byte> table(random() % 8 * net::kTableEntryBytes);
    std::uint32_t payload = 0;
    for (std::size_t at = 0; at < table.size(); at += net::kTableEntryBytes) {
      const migration::PageRun run{{random() % kFakePages, 1 + random() % 16},
                                   random() % 2 == 0 ? migration::Encoding::kRaw : migration::Encoding::kZero};
      if (run.encoding == migration::Encoding::kRaw)
        payload += static_cast<std::uint32_t>(run.range.count * kPageBytes);
      migration::encode_run(run, std::span<std::byte, net::kTableEntryBytes>(table.data() + at, net::kTableEntryBytes));
    }
    if (random() % 4 != 0) mutate(table, random);
    const auto runs = migration::decode_table(table, kFakePages, payload);
    if (!runs) {
      ASSERT_EQ(runs.error().code(), Errc::kDataLoss);
      continue;
    }
    ++accepted;
    std::uint64_t raw = 0;
    for (const migration::PageRun& run : *runs) {
      ASSERT_GT(run.range.count, 0U);
      ASSERT_LE(run.range.first + run.range.count, kFakePages);
      if (run.encoding == migration::Encoding::kRaw) raw += run.range.count * kPageBytes;
    }
    ASSERT_EQ(raw, payload);
  }
  EXPECT_GT(accepted, rounds / 10);
}

/// Bytes as a well-behaved source sends them, except COMMIT.
struct Conversation {
  std::vector<std::byte> control;  // STATE, and whatever else the fuzzer likes
  std::vector<std::byte> data;
};

std::vector<std::byte> bytes_of(net::PipeStream& stream, std::uint64_t count) {
  std::vector<std::byte> bytes(count);
  EXPECT_TRUE(stream.receive(std::span<std::byte>(bytes), soon()).ok());
  return bytes;
}

Conversation conversation(FakeMachine& machine) {
  Conversation out;
  auto [from, to] = net::PipeStream::make({}, {}, 4 * kMiB);
  migration::PageSender sender(*from, machine.memory().host_base());
  const std::vector<memory::PageRange> ranges = {{0, 40}, {100, 3}, {kFakePages - 2, 2}};
  EXPECT_TRUE(sender.send(ranges, soon()).ok());
  EXPECT_TRUE(sender.send_end(soon()).ok());
  out.data = bytes_of(*to, from->sent_bytes());
  auto [control_from, control_to] = net::PipeStream::make();
  v1::PeerMessage state;
  state.set_kind(v1::PEER_STATE);
  *state.mutable_state() = *machine.save_state();
  state.add_frames_sent(sender.counters().frames);
  EXPECT_TRUE(net::send_message(*control_from, net::FrameType::kControl, state, soon()).ok());
  out.control = bytes_of(*control_to, control_from->sent_bytes());
  return out;
}

/// One destination whose source sends these bytes and goes away.
void feed(const v1::PeerHello& hello, const Conversation& bytes, const std::shared_ptr<Runners>& runners) {
  auto [control, control_end] = net::PipeStream::make({}, {}, 4 * kMiB);
  auto [data, data_end] = net::PipeStream::make({}, {}, 4 * kMiB);
  FakeJournal journal(std::make_shared<FakeDisk>());
  migration::DestinationSession::Environment environment;
  environment.make_guest = [&](const v1::PeerHello& greeting) -> Result<std::unique_ptr<migration::Guest>> {
    return guest_around(greeting.vm(), {}, std::make_unique<FakeMachine>(0, runners));
  };
  environment.journal = &journal;
  environment.waits.connections = std::chrono::milliseconds(1);
  migration::DestinationSession session(hello, std::move(control_end), std::move(environment));
  (void)session.add_connection({0, std::move(data_end)});
  ASSERT_TRUE(control->send(bytes.control, soon()).ok());
  ASSERT_TRUE(data->send(bytes.data, soon()).ok());
  std::thread closing([control = std::move(control), data = std::move(data)]() mutable {
    std::byte answer{};  // reads what is said until the end, so that nothing ends early because nobody listens
    while (control->receive(std::span(&answer, 1), Deadline::after(std::chrono::milliseconds(2))).ok()) continue;
    data.reset();
    control.reset();
  });
  const auto guest = session.run();
  closing.join();
  EXPECT_FALSE(guest.ok()) << "nobody said COMMIT";
  EXPECT_EQ(runners->most(), 0);
  EXPECT_NE(session.answer().outcome(), "started");
}

v1::PeerHello good_hello() {
  v1::PeerHello hello;
  hello.set_version(migration::kPeerVersion);
  hello.set_purpose(v1::MIGRATE);
  hello.set_session(Id::random().raw());
  hello.set_connections(1);
  hello.set_timeout_ms(10'000);
  *hello.mutable_vm() = fake_config();
  return hello;
}

TEST(FuzzDestination, NothingButCommitEverRunsTheGuest) {
  spdlog::default_logger_raw()->set_level(spdlog::level::off);
  Random random(from_environment("FVMM_FUZZ_SEED", 12));
  const std::uint64_t rounds = from_environment("FVMM_FUZZ_ROUNDS", 350 / kSlower);
  FakeMachine machine(5, std::make_shared<Runners>());
  for (int i = 0; i < 10; ++i) machine.step();
  const Conversation good = conversation(machine);
  const auto runners = std::make_shared<Runners>();
  for (std::uint64_t round = 0; round < rounds; ++round) {
    Conversation bytes = good;
    if (random() % 2 == 0) mutate(bytes.control, random);
    if (random() % 2 == 0) mutate(bytes.data, random);
    if (random() % 3 == 0) mutate(std::span(bytes.data).first(std::min<std::size_t>(bytes.data.size(), 200)), random);
    if (random() % 8 == 0) bytes.data.resize(random() % bytes.data.size());
    if (random() % 8 == 0) bytes.control.resize(random() % bytes.control.size());
    v1::PeerHello hello = good_hello();
    if (random() % 16 == 0) hello.set_connections(static_cast<std::uint32_t>(random() % 20));
    if (random() % 16 == 0) hello.set_session(std::string(random() % 20, 's'));
    for (std::uint64_t i = random() % 8; i > 0; --i) hello.add_expected(random() % 3 == 0 ? random() : random() % 5000);
    ASSERT_NO_FATAL_FAILURE(feed(hello, bytes, runners)) << "round " << round;
  }
}

TEST(FuzzDestination, GarbageOnBothConnectionsIsRefused) {
  spdlog::default_logger_raw()->set_level(spdlog::level::off);
  Random random(from_environment("FVMM_FUZZ_SEED", 13));
  const std::uint64_t rounds = from_environment("FVMM_FUZZ_ROUNDS", 200 / kSlower);
  const auto runners = std::make_shared<Runners>();
  for (std::uint64_t round = 0; round < rounds; ++round) {
    Conversation bytes;
    bytes.control.resize(random() % 500);
    bytes.data.resize(random() % 5000);
    for (std::byte& byte : bytes.control) byte = static_cast<std::byte>(random());
    for (std::byte& byte : bytes.data) byte = static_cast<std::byte>(random());
    ASSERT_NO_FATAL_FAILURE(feed(good_hello(), bytes, runners)) << "round " << round;
  }
}

}  // namespace
}  // namespace fvmm::testing
