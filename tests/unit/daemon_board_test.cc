// What a worker shows: whatever a command writes at its end, a VM that was fenced stays the one that moved.
#include "daemon/worker_board.h"

#include <gtest/gtest.h>

namespace fvmm::daemon {
namespace {

TEST(WorkerBoard, LastChangeStandsUntilTheVmHasMovedForGood) {
  WorkerBoard board;
  board.set_state(v1::VM_RUNNING, "");
  board.set_state(v1::VM_MIGRATING, "round 1");
  EXPECT_EQ(board.get().state(), v1::VM_MIGRATING);
  board.end_as_moved("127.0.0.1:7001", "recovered there");
  board.set_state(v1::VM_PAUSED, "the command failed");
  board.change([](v1::WorkerInfo& info) {
    info.set_moved_to("elsewhere");
    info.set_start_ms(5);
  });
  const v1::WorkerInfo shown = board.get();
  EXPECT_EQ(shown.state(), v1::VM_MOVED);
  EXPECT_EQ(shown.moved_to(), "127.0.0.1:7001");
  EXPECT_EQ(shown.detail(), "recovered there");
  EXPECT_EQ(shown.start_ms(), 5) << "the rest still changes";
}

TEST(WorkerBoard, EndWakesWhoWatches) {
  WorkerBoard board;
  std::uint64_t seen = 0;
  (void)board.wait(seen, Deadline::after(std::chrono::seconds(10)));
  const std::uint64_t before = seen;
  board.end_as_moved("127.0.0.1:7001", "");
  EXPECT_EQ(board.wait(seen, Deadline::after(std::chrono::seconds(10))).state(), v1::VM_MOVED);
  EXPECT_NE(seen, before);
}

}  // namespace
}  // namespace fvmm::daemon
