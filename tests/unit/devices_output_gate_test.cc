// The output gate: order, epochs, limits.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "devices/output_gate.h"
#include "support/fake_devices.h"

namespace fvmm::devices {
namespace {

using testing::bytes_of;

TEST(OutputGate, OpenItPassesEverythingThroughAtOnce) {
  OutputGate gate;
  testing::FakeSink sink;
  EXPECT_TRUE(gate.pass(sink, bytes_of("one")));
  int delivered = 0;
  EXPECT_TRUE(gate.pass(1, [&] { ++delivered; }));
  EXPECT_EQ(sink.text, "one");
  EXPECT_EQ(delivered, 1);
}

TEST(OutputGate, OpenItHasNoLimit) {
  OutputGate gate(1, 1);
  testing::FakeSink sink;
  EXPECT_TRUE(gate.pass(sink, bytes_of("two bytes and more")));
  EXPECT_EQ(sink.text, "two bytes and more");
}

TEST(OutputGate, HeldOutputLeavesByEpochAndInOrder) {
  OutputGate gate;
  testing::FakeSink sink;
  gate.hold(1);
  EXPECT_TRUE(gate.pass(sink, bytes_of("a")));
  EXPECT_TRUE(gate.pass(1, [&] { sink.text += "b"; }));
  gate.hold(2);
  EXPECT_TRUE(gate.pass(sink, bytes_of("c")));
  EXPECT_EQ(sink.text, "");
  EXPECT_EQ(gate.counts().held_items, 3U);
  EXPECT_EQ(gate.counts().held_bytes, 3U);
  EXPECT_EQ(gate.release(0), 0U);
  EXPECT_EQ(gate.release(1), 2U);
  EXPECT_EQ(sink.text, "ab");
  EXPECT_EQ(gate.release(2), 1U);
  EXPECT_EQ(sink.text, "abc");
  EXPECT_EQ(gate.counts().held_bytes, 0U);
}

TEST(OutputGate, HeldBytesAreACopy) {
  OutputGate gate;
  testing::FakeSink sink;
  gate.hold(1);
  std::string text = "kept";
  EXPECT_TRUE(gate.pass(sink, bytes_of(text)));
  text = "gone";
  gate.open();
  EXPECT_EQ(sink.text, "kept");
}

TEST(OutputGate, DroppedEpochsNeverHappened) {
  OutputGate gate;
  testing::FakeSink sink;
  gate.hold(1);
  EXPECT_TRUE(gate.pass(sink, bytes_of("safe")));
  gate.hold(2);
  EXPECT_TRUE(gate.pass(sink, bytes_of("lost")));
  EXPECT_EQ(gate.drop(1), 1U);
  gate.open();
  EXPECT_EQ(sink.text, "safe");
  EXPECT_EQ(gate.counts().dropped, 1U);
  EXPECT_EQ(gate.counts().held_bytes, 0U);
}

TEST(OutputGate, OpeningDeliversWhatIsHeldBeforeWhatFollows) {
  OutputGate gate;
  testing::FakeSink sink;
  gate.hold(7);
  EXPECT_TRUE(gate.pass(sink, bytes_of("first ")));
  gate.open();
  EXPECT_TRUE(gate.pass(sink, bytes_of("second")));
  EXPECT_EQ(sink.text, "first second");
}

TEST(OutputGate, AFullGateKeepsNothingOfWhatItRefuses) {
  OutputGate gate(4, 2);
  testing::FakeSink sink;
  gate.hold(1);
  EXPECT_TRUE(gate.pass(sink, bytes_of("1234")));
  EXPECT_FALSE(gate.pass(sink, bytes_of("5")));
  EXPECT_EQ(gate.release(1), 1U);
  EXPECT_TRUE(gate.pass(sink, bytes_of("6")));
  EXPECT_TRUE(gate.pass(sink, bytes_of("7")));
  EXPECT_FALSE(gate.pass(sink, {})) << "two pieces is the limit, even of no bytes";
  EXPECT_EQ(gate.counts().refused, 2U);
  gate.open();
  EXPECT_EQ(sink.text, "123467");
}

TEST(OutputGate, ASinkBehindAFullGateDropsAndCounts) {
  OutputGate gate(3, 10);
  testing::FakeSink sink;
  GatedSink gated(gate, sink);
  gated.emit(bytes_of("now "));
  gate.hold(1);
  gated.emit(bytes_of("abc"));
  gated.emit(bytes_of("defg"));
  EXPECT_EQ(gated.dropped_bytes(), 4U);
  gate.open();
  EXPECT_EQ(sink.text, "now abc");
}

// Writers, each with its own counter, against a gate that is held and released all the time: each writer's pieces
// arrive whole and in its order.
TEST(OutputGate, OrderHoldsForEveryWriterWhateverTheGateDoes) {
  constexpr int kWriters = 3;
  constexpr int kPieces = 2000;
  OutputGate gate;
  std::vector<int> next(kWriters, 0);  // under the gate's lock while held; one writer each while open
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      for (int i = 0; i < kPieces; ++i) {
        ASSERT_TRUE(gate.pass(1, [&next, w, i] { EXPECT_EQ(next[w]++, i); }));
      }
    });
  }
  for (OutputGate::Epoch epoch = 1; epoch < 200; ++epoch) {
    gate.hold(epoch);
    gate.release(epoch - 1);
    if (epoch % 7 == 0) gate.open();
  }
  gate.open();
  for (std::thread& writer : writers) writer.join();
  for (const int count : next) EXPECT_EQ(count, kPieces);
}

}  // namespace
}  // namespace fvmm::devices
