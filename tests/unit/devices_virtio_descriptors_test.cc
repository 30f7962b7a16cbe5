// Rings and descriptors that a driver must not write, tried on every device: it needs a reset, counts what it was, has
// touched nothing, and works again after the reset. And the largest ones that it may write.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "support/virtio_device_test.h"

namespace fvmm::devices {
namespace {

using namespace virtio;
using testing::Descriptor;
using testing::EveryVirtioDevice;
using testing::kDriverBuffers;
using testing::kDriverMemory;
using testing::VirtioDriver;

constexpr std::uint64_t kTable = 2 * kMiB;  // an indirect table

/// What is wrong, and how the driver of queue `queue` does it; `flags` are those of a good buffer.
struct Mischief {
  const char* name;
  GuestFault fault;
  std::function<void(VirtioDriver& driver, unsigned queue, std::uint16_t flags)> doing;
};

/// One chain that begins with descriptor 0.
void offer(VirtioDriver& driver, unsigned queue) {
  driver.offer(queue, 0);
  driver.notify(queue);
}

/// Chain of one indirect table with these entries.
void offer_table(VirtioDriver& driver, unsigned queue, const std::vector<Descriptor>& entries) {
  for (std::size_t i = 0; i < entries.size(); ++i) driver.put_descriptor(kTable + 16 * i, entries[i]);
  driver.describe(
      queue, 0,
      {.address = kTable, .bytes = static_cast<std::uint32_t>(16 * entries.size()), .flags = kDescriptorIndirect});
  offer(driver, queue);
}

/// `count` buffers, one after the other in a table.
std::vector<Descriptor> row(std::size_t count, const Descriptor& each) {
  std::vector<Descriptor> entries(count, each);
  for (std::size_t i = 0; i + 1 < count; ++i) {
    entries[i].flags |= kDescriptorNext;
    entries[i].next = static_cast<std::uint16_t>(i + 1);
  }
  return entries;
}

/// A chain of one descriptor that is an indirect table at `address` of `bytes`.
auto indirect(std::uint64_t address, std::uint32_t bytes, std::uint16_t more_flags = 0) {
  return [=](VirtioDriver& driver, unsigned queue, std::uint16_t flags) {
    driver.put_descriptor(kTable, {.address = kDriverBuffers, .bytes = 64, .flags = flags});
    driver.describe(
        queue, 0,
        {.address = address, .bytes = bytes, .flags = static_cast<std::uint16_t>(kDescriptorIndirect | more_flags)});
    offer(driver, queue);
  };
}

auto buffer(std::uint64_t address, std::uint32_t bytes) {
  return [=](VirtioDriver& driver, unsigned queue, std::uint16_t flags) {
    driver.describe(queue, 0, {.address = address, .bytes = bytes, .flags = flags});
    offer(driver, queue);
  };
}

std::uint16_t size_of(const VirtioDriver& driver, unsigned queue) {
  return driver.rings(queue).size;
}

const std::vector<Mischief>& mischief() {
  using F = GuestFault;
  static const std::vector<Mischief> all{
      {"a head outside the table", F::kDescriptorIndex,
       [](auto& d, unsigned q, std::uint16_t) {
         d.offer(q, size_of(d, q));
         d.notify(q);
       }},
      {"a next outside the table", F::kDescriptorIndex,
       [](auto& d, unsigned q, std::uint16_t flags) {
         d.describe(q, 0,
                    {.address = kDriverBuffers,
                     .bytes = 4,
                     .flags = static_cast<std::uint16_t>(flags | kDescriptorNext),
                     .next = size_of(d, q)});
         offer(d, q);
       }},
      {"a descriptor that is its own next", F::kChainLength,
       [](auto& d, unsigned q, std::uint16_t flags) {
         d.describe(
             q, 0,
             {.address = kDriverBuffers, .bytes = 4, .flags = static_cast<std::uint16_t>(flags | kDescriptorNext)});
         offer(d, q);
       }},
      {"a loop of all descriptors", F::kChainLength,
       [](auto& d, unsigned q, std::uint16_t flags) {
         for (std::uint16_t i = 0; i < size_of(d, q); ++i) {
           d.describe(q, i,
                      {.address = kDriverBuffers,
                       .bytes = 4,
                       .flags = static_cast<std::uint16_t>(flags | kDescriptorNext),
                       .next = static_cast<std::uint16_t>((i + 1) % size_of(d, q))});
         }
         offer(d, q);
       }},
      {"a loop in an indirect table", F::kChainLength,
       [](auto& d, unsigned q, std::uint16_t flags) {
         auto entries = row(4, {.address = kDriverBuffers, .bytes = 4, .flags = flags});
         entries.back().flags |= kDescriptorNext;
         entries.back().next = 1;
         offer_table(d, q, entries);
       }},
      {"one buffer more than a chain may have", F::kChainLength,
       [](auto& d, unsigned q, std::uint16_t flags) {
         const auto entries = row(kChainBuffersMax, {.address = kDriverBuffers, .bytes = 1, .flags = flags});
         for (std::size_t i = 0; i < entries.size(); ++i) d.put_descriptor(kTable + 16 * i, entries[i]);
         d.describe(q, 0,
                    {.address = kDriverBuffers,
                     .bytes = 1,
                     .flags = static_cast<std::uint16_t>(flags | kDescriptorNext),
                     .next = 1});
         d.describe(q, 1, {.address = kTable, .bytes = 16 * kChainBuffersMax, .flags = kDescriptorIndirect});
         offer(d, q);
       }},
      {"a buffer of no bytes", F::kZeroLength, buffer(kDriverBuffers, 0)},
      {"a buffer in the hole", F::kBufferAddress, buffer(3 * kGiB, 4)},
      {"a buffer where the registers are", F::kBufferAddress, buffer(0xd0000000, 4)},
      {"a buffer over the end of memory", F::kBufferAddress, buffer(kDriverMemory - 4, 8)},
      {"a buffer that wraps around", F::kBufferAddress, buffer(~std::uint64_t{0} - 3, 8)},
      {"a readable buffer behind a writable one", F::kBufferOrder,
       [](auto& d, unsigned q, std::uint16_t) {
         d.describe(q, 0,
                    {.address = kDriverBuffers, .bytes = 4, .flags = kDescriptorWrite | kDescriptorNext, .next = 1});
         d.describe(q, 1, {.address = kDriverBuffers + 64, .bytes = 4});
         offer(d, q);
       }},
      {"4 GiB in one chain", F::kBufferBytes,
       [](auto& d, unsigned q, std::uint16_t flags) {
         offer_table(d, q, row(256, {.address = 0, .bytes = kDriverMemory, .flags = flags}));
       }},
      {"more available than the queue holds", F::kAvailableIndex,
       [](auto& d, unsigned q, std::uint16_t) {
         d.set_available(q, static_cast<std::uint16_t>(size_of(d, q) + 1));
         d.notify(q);
       }},
      {"an available index that goes back", F::kAvailableIndex,
       [](auto& d, unsigned q, std::uint16_t) {
         d.set_available(q, 0xffff);
         d.notify(q);
       }},
      {"an indirect table with a next", F::kIndirectTable, indirect(kTable, 16, kDescriptorNext)},
      {"an empty indirect table", F::kIndirectTable, indirect(kTable, 0)},
      {"an indirect table of a half entry", F::kIndirectTable, indirect(kTable, 24)},
      {"an indirect table of too many entries", F::kIndirectTable, indirect(kTable, 16 * (kChainBuffersMax + 1))},
      {"an indirect table over the end of memory", F::kIndirectTable, indirect(kDriverMemory - 16, 32)},
      {"an indirect table in an indirect table", F::kIndirectTable,
       [](auto& d, unsigned q, std::uint16_t) {
         offer_table(d, q, {{.address = kTable, .bytes = 16, .flags = kDescriptorIndirect}});
       }},
      {"a next outside the indirect table", F::kDescriptorIndex,
       [](auto& d, unsigned q, std::uint16_t flags) {
         offer_table(d, q,
                     {{.address = kDriverBuffers,
                       .bytes = 4,
                       .flags = static_cast<std::uint16_t>(flags | kDescriptorNext),
                       .next = 1}});
       }},
  };
  return all;
}

TEST_P(EveryVirtioDevice, MischiefNeedsAResetAndTouchesNothing) {
  std::array<std::uint64_t, kGuestFaults> expected{};
  for (const Mischief& each : mischief()) {
    SCOPED_TRACE(each.name);
    driver.start(kFeatureIndirect | kFeatureEventIdx);
    const std::string canary(256, 'c');
    driver.put_text(kDriverBuffers, canary);
    each.doing(driver, GetParam().queue, GetParam().buffer_flags);
    expect_needs_reset();
    EXPECT_EQ(device().signals().faults(each.fault), ++expected.at(static_cast<std::size_t>(each.fault)));
    EXPECT_EQ(driver.read(kInterruptStatus), kInterruptConfig);
    EXPECT_TRUE(specimen->line.level);
    EXPECT_EQ(driver.used_index(GetParam().queue), 0U);
    EXPECT_EQ(driver.text(kDriverBuffers, canary.size()), canary);
    EXPECT_EQ(specimen->sink.text, "");
    driver.set_available(GetParam().queue, 0);
    driver.send(GetParam().queue, 1, request_at(1));  // a good one now changes nothing
    settle();
    EXPECT_EQ(driver.used_index(GetParam().queue), 0U);
    specimen->sink.text.clear();
  }
  driver.put_text(kDriverBuffers, std::string(256, '\0'));  // no device has to make sense of the canary
  driver.start(0);
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, AnIndirectTableMustHaveBeenNegotiated) {
  driver.start(0);
  indirect(kTable, 16)(driver, GetParam().queue, GetParam().buffer_flags);
  expect_needs_reset();
  EXPECT_EQ(device().signals().faults(GuestFault::kIndirectTable), 1U);
}

TEST_P(EveryVirtioDevice, AChainOfAllDescriptorsIsTaken) {
  driver.start(0);
  const unsigned queue = GetParam().queue;
  const auto entries =
      row(size_of(driver, queue), {.address = kDriverBuffers, .bytes = 4, .flags = GetParam().buffer_flags});
  for (std::uint32_t i = 0; i < entries.size(); ++i) driver.describe(queue, i, entries[i]);
  offer(driver, queue);
  const auto used = answer();
  ASSERT_TRUE(used.has_value());
  EXPECT_EQ(used->bytes, GetParam().buffer_flags != 0 ? 4U * size_of(driver, queue) : 0U);
}

TEST_P(EveryVirtioDevice, AnIndirectTableOfTheLargestSizeIsTaken) {
  driver.start(kFeatureIndirect);
  offer_table(driver, GetParam().queue,
              row(kChainBuffersMax, {.address = kDriverBuffers, .bytes = 2, .flags = GetParam().buffer_flags}));
  const auto used = answer();
  ASSERT_TRUE(used.has_value());
  EXPECT_EQ(used->bytes, GetParam().buffer_flags != 0 ? 2U * kChainBuffersMax : 0U);
}

// Section 2.7.5.3.1: direct descriptors, then one indirect one; its WRITE flag means nothing.
TEST_P(EveryVirtioDevice, ADirectBufferBeforeAnIndirectTableIsTaken) {
  driver.start(kFeatureIndirect);
  const unsigned queue = GetParam().queue;
  const std::uint16_t flags = GetParam().buffer_flags;
  driver.put_descriptor(kTable, {.address = kDriverBuffers + 64, .bytes = 32, .flags = flags});
  driver.describe(queue, 0,
                  {.address = kDriverBuffers,
                   .bytes = 32,
                   .flags = static_cast<std::uint16_t>(flags | kDescriptorNext),
                   .next = 1});
  driver.describe(queue, 1, {.address = kTable, .bytes = 16, .flags = kDescriptorIndirect | kDescriptorWrite});
  offer(driver, queue);
  const auto used = answer();
  ASSERT_TRUE(used.has_value());
  EXPECT_EQ(used->bytes, flags != 0 ? 64U : 0U);
}

TEST_P(EveryVirtioDevice, AFullQueueIsServedByOneNotification) {
  driver.start(kFeatureEventIdx);
  const unsigned queue = GetParam().queue;
  for (std::uint16_t i = 0; i < size_of(driver, queue); ++i) {
    driver.describe(queue, i, request_at(i));
    driver.offer(queue, i);
  }
  driver.notify(queue);
  for (std::uint16_t i = 0; i < size_of(driver, queue); ++i) {
    const auto used = answer();
    ASSERT_TRUE(used.has_value()) << i;
    EXPECT_EQ(used->head, i);
  }
}

INSTANTIATE_TEST_SUITE_P(Virtio, EveryVirtioDevice, ::testing::ValuesIn(testing::virtio_kinds()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace fvmm::devices
