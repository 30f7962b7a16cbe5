#include <gtest/gtest.h>

#include <fstream>

#include "daemon/replicas.h"
#include "net/pipe_stream.h"
#include "support/stored_template.h"

namespace fvmm::daemon {
namespace {

v1::PeerHello hello_of(char id) {
  v1::PeerHello hello;
  hello.mutable_vm()->set_id(std::string(16, id));
  hello.mutable_vm()->set_name("web1");
  hello.set_from("source:7000");
  return hello;
}

TEST(ReplicaRecords, RecoveryFencesOlderTokensAlsoAfterARestart) {
  const testing::TempDir dir;
  const v1::PeerHello hello = hello_of('v');
  const Id vm = *Id::from_bytes(hello.vm().id());
  {
    Replicas replicas = *Replicas::open(dir.path() / "replicas", kGiB);
    auto [ours, theirs] = net::PipeStream::make({}, {});
    const auto session = replicas.begin(hello, *ours);
    ASSERT_TRUE(session) << session.error().message();
    int ran = 0;
    EXPECT_TRUE(replicas.unless_recovered(vm, 1, [&] { ++ran; }));
    const auto token = replicas.recover(
        vm, [] { return 1; }, Deadline::after(std::chrono::seconds(20)));
    ASSERT_TRUE(token) << token.error().message();
    EXPECT_EQ(*token, 2U);
    EXPECT_FALSE(replicas.unless_recovered(vm, 1, [&] { ++ran; }));
    EXPECT_EQ(ran, 1);
  }
  Replicas again = *Replicas::open(dir.path() / "replicas", kGiB);
  EXPECT_EQ(again.find(vm)->fencing_token(), 2U);
  EXPECT_FALSE(again.unless_recovered(vm, 2, [] {}));
  EXPECT_TRUE(again.unless_recovered(vm, 3, [] {})) << "a source that has the right since";
}

// A host that lost power between a record's temporary file and its rename.
TEST(ReplicaRecords, WhatAnUnfinishedWriteLeftIsRemoved) {
  const testing::TempDir dir;
  const auto directory = dir.path() / "replicas";
  ASSERT_TRUE(Replicas::open(directory, kGiB));
  std::ofstream(directory / (std::string(32, '7') + ".pb.tmp-1-1")) << "half";
  ASSERT_TRUE(Replicas::open(directory, kGiB));
  EXPECT_TRUE(std::filesystem::is_empty(directory));
}

TEST(ReplicaRecords, UnreadableRecordStopsTheDaemonRatherThanForgettingARecovery) {
  const testing::TempDir dir;
  const auto directory = dir.path() / "replicas";
  ASSERT_TRUE(Replicas::open(directory, kGiB));
  std::ofstream(directory / (std::string(32, '7') + ".pb")) << "\x0f";
  EXPECT_EQ(Replicas::open(directory, kGiB).error().code(), Errc::kDataLoss);
}

}  // namespace
}  // namespace fvmm::daemon
