// What every device promises, tried on every device. A new device adds itself to kKinds.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "devices/i8042.h"
#include "devices/serial.h"
#include "support/fake_devices.h"
#include "support/virtio_kinds.h"

namespace fvmm::devices {
namespace {

/// A device with all that it needs, brought into a state worth saving.
struct Specimen {
  testing::FakeIrqLine irq;
  testing::FakeSink sink;
  std::unique_ptr<memory::GuestMemory> memory;  // of a device that has queues
  std::unique_ptr<Device> device;
};

struct Kind {
  const char* name;
  std::uint64_t window_bytes;
  std::function<void(Specimen&)> make;
  std::function<void(Specimen&)> stir;  // leaves the initial state
  bool has_identity = false;            // what a clone does not take over: another's state is loaded without it
};

void write_byte(Device& device, std::uint64_t offset, std::uint8_t value) {
  device.write(offset, std::array{static_cast<std::byte>(value)});
}

/// A virtio device with a driver that has an answer, and an interrupt that waits to be acknowledged.
void stir_virtio(const testing::VirtioKind& kind, Specimen& s) {
  auto& virtio = dynamic_cast<VirtioMmio&>(*s.device);
  virtio.resume();
  testing::VirtioDriver driver(virtio, *s.memory);
  driver.start(0);
  driver.send(kind.queue, 0, {.address = testing::kDriverBuffers, .bytes = 64, .flags = kind.buffer_flags});
  const Deadline deadline = Deadline::after(std::chrono::seconds(30));
  while (!driver.take_used(kind.queue) && !deadline.passed()) std::this_thread::yield();
  ASSERT_TRUE(virtio.quiesce(deadline).ok());
  ASSERT_TRUE(s.irq.level);
}

Kind virtio_kind(const testing::VirtioKind& kind) {
  return {.name = kind.name,
          .window_bytes = kVirtioMmioBytes,
          .make =
              [&kind](Specimen& s) {
                s.memory = testing::small_memory();
                s.device = std::make_unique<VirtioMmio>(
                    "virtio0", VirtioMmio::Surroundings{.memory = *s.memory, .line = s.irq}, kind.make(s.sink));
              },
          .stir = [&kind](Specimen& s) { stir_virtio(kind, s); },
          .has_identity = std::string_view(kind.name) == "net"};
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = [] {
    std::vector<Kind> every{
        {.name = "serial",
         .window_bytes = kUartPorts,
         .make = [](Specimen& s) { s.device = std::make_unique<Serial>("com1", s.irq, s.sink); },
         .stir =
             [](Specimen& s) {
               write_byte(*s.device, 2, 0x01);
               write_byte(*s.device, 4, 0x0b);
               write_byte(*s.device, 1, 0x03);
               EXPECT_EQ(dynamic_cast<Serial&>(*s.device).push_input(testing::bytes_of("0123456789abcdefgh")), 18u);
             }},
        {.name = "i8042",
         .window_bytes = kI8042CommandOffset + 1,
         .make = [](Specimen& s) { s.device = std::make_unique<I8042>([] {}); },
         .stir = [](Specimen& s) { write_byte(*s.device, kI8042CommandOffset, 0xd1); }},
    };
    for (const testing::VirtioKind& kind : testing::virtio_kinds()) every.push_back(virtio_kind(kind));
    return every;
  }();
  return all;
}

class EveryDevice : public ::testing::TestWithParam<Kind> {
 protected:
  EveryDevice() { GetParam().make(specimen); }
  [[nodiscard]] Device& device() const { return *specimen.device; }
  void stir() { GetParam().stir(specimen); }

  /// Loads a state that may be bad: afterwards the device has either exactly it, or exactly what it had. One with an
  /// identity of its own may have put that in its place; then what it has now is a state that stands.
  void expect_all_or_nothing(const DeviceState& state) {
    const DeviceState before = device().save();
    const bool loaded = device().load(state).ok();
    const DeviceState after = device().save();
    if (loaded && GetParam().has_identity && after.bytes != state.bytes) {
      EXPECT_EQ(after.bytes.size(), state.bytes.size());
      EXPECT_TRUE(device().load(after).ok());
      EXPECT_EQ(device().save().bytes, after.bytes);
      return;
    }
    EXPECT_EQ(after.bytes, loaded ? state.bytes : before.bytes);
  }

  Specimen specimen;
};

TEST_P(EveryDevice, SaveLoadSaveGivesEqualBytes) {
  stir();
  const DeviceState saved = device().save();
  Specimen other;
  GetParam().make(other);
  ASSERT_NE(other.device->save().bytes, saved.bytes) << "stir() changes nothing";

  ASSERT_TRUE(other.device->load(saved).ok());

  EXPECT_EQ(other.device->save().version, saved.version);
  EXPECT_EQ(other.device->save().bytes, saved.bytes);
}

TEST_P(EveryDevice, LoadDrivesTheInterruptLineToTheSavedLevel) {
  stir();
  Specimen other;
  GetParam().make(other);
  ASSERT_TRUE(other.device->load(device().save()).ok());
  EXPECT_EQ(other.irq.level, specimen.irq.level);
}

TEST_P(EveryDevice, FailedLoadLeavesStateUntouched) {
  stir();
  const DeviceState before = device().save();
  DeviceState newer = before;
  newer.version = 99;
  DeviceState none = before;
  none.version = 0;
  DeviceState longer = before;
  longer.bytes.push_back(std::byte{0});
  const DeviceState empty{.version = before.version, .bytes = {}};
  for (const DeviceState& bad : {newer, none, longer, empty}) {
    const bool line = specimen.irq.level;
    EXPECT_FALSE(device().load(bad).ok());
    EXPECT_EQ(device().save().bytes, before.bytes);
    EXPECT_EQ(specimen.irq.level, line);
  }
}

TEST_P(EveryDevice, EveryTruncatedStateIsRefused) {
  stir();
  const DeviceState good = device().save();
  for (std::size_t length = 0; length < good.bytes.size(); ++length) {
    DeviceState cut = good;
    cut.bytes.resize(length);
    EXPECT_FALSE(device().load(cut).ok()) << "length " << length;
    EXPECT_EQ(device().save().bytes, good.bytes);
  }
}

TEST_P(EveryDevice, EveryOneByteMutationLoadsWholeOrNotAtAll) {
  stir();
  const DeviceState good = device().save();
  for (std::size_t at = 0; at < good.bytes.size(); ++at) {
    for (unsigned value = 0; value < 256; ++value) {
      DeviceState mutated = good;
      mutated.bytes[at] = static_cast<std::byte>(value);
      ASSERT_TRUE(device().load(good).ok());
      expect_all_or_nothing(mutated);
    }
  }
}

TEST_P(EveryDevice, EveryOffsetAndWidthCanBeReadAndWritten) {
  for (std::uint64_t offset = 0; offset < GetParam().window_bytes + 8; ++offset) {
    for (const std::size_t width : {1, 2, 4, 8}) {
      std::array<std::byte, 8> bytes{};
      bytes.fill(std::byte{0xa5});
      device().write(offset, std::span(bytes).first(width));
      device().read(offset, std::span(bytes).first(width));
    }
  }
  device().write(0, {});
  device().read(0, {});
  expect_all_or_nothing(device().save());
}

INSTANTIATE_TEST_SUITE_P(Devices, EveryDevice, ::testing::ValuesIn(kinds()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace fvmm::devices
