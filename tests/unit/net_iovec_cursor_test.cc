#include "net/iovec_cursor.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace fvmm::net {
namespace {

TEST(IovecCursor, EmptyPartsAreSkipped) {
  std::array<std::byte, 8> memory{};
  const std::array<iovec, 4> parts{{{memory.data(), 0}, {memory.data(), 3}, {nullptr, 0}, {memory.data() + 3, 5}}};
  IovecCursor cursor;
  cursor.assign(parts);
  EXPECT_EQ(cursor.total(), 8u);
  EXPECT_EQ(cursor.window().size(), 2u);
}

TEST(IovecCursor, OnlyEmptyPartsAreDoneAtOnce) {
  const iovec nothing{nullptr, 0};
  IovecCursor cursor;
  cursor.assign(std::span(&nothing, 1));
  EXPECT_TRUE(cursor.done());
}

// Every way to split 3 parts of 1, 2 and 3 bytes into two calls resumes at exactly the next byte.
TEST(IovecCursor, ResumesAtTheNextByteWhereverACallStopped) {
  std::array<std::byte, 6> memory{};
  const std::array<iovec, 3> parts{{{memory.data(), 1}, {memory.data() + 1, 2}, {memory.data() + 3, 3}}};
  for (std::size_t first = 0; first < memory.size(); ++first) {
    IovecCursor cursor;
    cursor.assign(parts);
    cursor.advance(first);
    EXPECT_EQ(cursor.moved(), first);
    EXPECT_EQ(cursor.left(), memory.size() - first);
    EXPECT_EQ(cursor.window().front().iov_base, memory.data() + first);
    cursor.advance(memory.size() - first);
    EXPECT_TRUE(cursor.done());
    EXPECT_TRUE(cursor.window().empty());
  }
}

TEST(IovecCursor, WindowHoldsTheMostPartsThatOneCallTakesAndNotOneMore) {
  std::array<std::byte, 1> memory{};
  std::vector<iovec> parts(kIovecsMax, iovec{memory.data(), 1});
  IovecCursor cursor;
  cursor.assign(parts);
  EXPECT_EQ(cursor.window().size(), kIovecsMax);
  parts.push_back(iovec{memory.data(), 1});
  cursor.assign(parts);
  EXPECT_EQ(cursor.window().size(), kIovecsMax);
  cursor.advance(kIovecsMax);
  EXPECT_EQ(cursor.window().size(), 1u);
}

}  // namespace
}  // namespace fvmm::net
