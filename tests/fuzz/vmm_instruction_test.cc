// Any bytes as an instruction, any registers: decoded within its length or refused, and never more changed than the
// instruction may.
#include "vmm/instruction.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <vector>

namespace fvmm::vmm {
namespace {

constexpr int kRuns = 1'000'000;

/// Half of the time something that begins like a member of the table, so that the depths are reached.
std::vector<std::uint8_t> some_code(std::mt19937_64& random) {
  static const std::vector<std::vector<std::uint8_t>> kBeginnings = {
      {0x9b},       {0xdb},       {0xdd},       {0xdf},       {0x0f, 0x00},       {0x0f, 0x01},      {0x0f, 0x02},
      {0x0f, 0x03}, {0x0f, 0x77}, {0x0f, 0xae}, {0x0f, 0xb8}, {0x0f, 0x38, 0xf0}, {0x0f, 0x38, 0xf1}};
  static constexpr std::uint8_t kPrefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0xf0, 0x40, 0x48, 0x4f};
  std::vector<std::uint8_t> code;
  while (random() % 2 == 0) code.push_back(kPrefixes[random() % std::size(kPrefixes)]);
  if (random() % 4 != 0) {
    const auto& beginning = kBeginnings[random() % kBeginnings.size()];
    code.insert(code.end(), beginning.begin(), beginning.end());
  }
  const std::size_t tail = random() % 12;
  for (std::size_t i = 0; i < tail; ++i) code.push_back(static_cast<std::uint8_t>(random()));
  return code;
}

TEST(VmmInstructionFuzz, AnyBytesAreRefusedOrStayWithinTheirBounds) {
  const char* const text = std::getenv("FVMM_SEED");  // NOLINT(concurrency-mt-unsafe): no other thread yet
  const std::uint64_t seed = text == nullptr ? 20240607 : std::strtoull(text, nullptr, 0);
  std::printf("FVMM_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  std::set<Opcode> seen;
  for (int run = 0; run < kRuns; ++run) {
    const auto code = some_code(random);
    Execution before;
    for (auto& gpr : before.registers.gpr) gpr = random() >> (random() % 64);
    before.registers.rip = random() >> 17;
    before.registers.rflags = random() & 0x10cd5;
    before.control = {.cr0 = random() & 0xe, .cr4 = random() & 0x200};
    before.floating.status = static_cast<std::uint16_t>(random() & random());
    const auto instruction = decode(code, before.registers);
    if (!instruction) continue;
    ASSERT_GE(instruction->length, 1U);
    ASSERT_LE(instruction->length, std::min(code.size(), kInstructionBytesMax));
    ASSERT_LT(instruction->reg, 16U);
    ASSERT_LT(instruction->rm, 16U);
    ASSERT_TRUE(!instruction->in_memory || instruction->source_bytes != 0);
    // Nothing behind the instruction's own bytes matters.
    const auto alone = decode(std::span(code).first(instruction->length), before.registers);
    ASSERT_TRUE(alone.has_value());
    ASSERT_EQ(alone->length, instruction->length);
    before.source = register_operand(*instruction, before.registers).value_or(random() >> (random() % 64));
    before.descriptor = {.present_in_table = random() % 4 != 0, .low = random()};
    Execution after = before;
    if (!execute(*instruction, after)) {
      ASSERT_EQ(after.registers.gpr, before.registers.gpr);
      ASSERT_EQ(after.registers.rip, before.registers.rip);
      ASSERT_EQ(after.floating, before.floating);
      continue;
    }
    seen.insert(instruction->opcode);
    ASSERT_EQ(after.registers.rip, before.registers.rip + instruction->length);
    ASSERT_EQ((after.registers.rflags ^ before.registers.rflags) & ~std::uint64_t{0x508d5 | 1U << 16}, 0U);
    int changed = 0;
    for (unsigned i = 0; i < 16; ++i) changed += after.registers.gpr[i] != before.registers.gpr[i] ? 1 : 0;
    ASSERT_LE(changed, 1);
    ASSERT_TRUE(!after.stores || instruction->in_memory);
  }
  EXPECT_EQ(seen.size(), 15U) << "every instruction of the table was carried out";
}

}  // namespace
}  // namespace fvmm::vmm
