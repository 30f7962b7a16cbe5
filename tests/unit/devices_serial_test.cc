#include "devices/serial.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <string>

#include "support/fake_devices.h"

namespace fvmm::devices {
namespace {

using testing::bytes_of;
using testing::FakeIrqLine;
using testing::FakeSink;

// Register offsets and bits as Linux's include/uapi/linux/serial_reg.h names them.
enum Register : std::uint64_t {
  RX = 0,
  TX = 0,
  DLL = 0,
  IER = 1,
  DLM = 1,
  IIR = 2,
  FCR = 2,
  LCR = 3,
  MCR = 4,
  LSR = 5
};
enum MoreRegisters : std::uint64_t { MSR = 6, SCR = 7 };
constexpr std::uint8_t kDtrRtsOut2 = 0x0b;

struct Uart : ::testing::Test {
  std::uint8_t in(std::uint64_t offset) {
    std::array<std::byte, 1> out{};
    serial.read(offset, out);
    return std::to_integer<std::uint8_t>(out[0]);
  }
  void out(std::uint64_t offset, std::uint8_t value) {
    const std::array bytes{static_cast<std::byte>(value)};
    serial.write(offset, bytes);
  }
  std::string read_all() {
    std::string text;
    while ((in(LSR)&0x01) != 0) text += static_cast<char>(in(RX));
    return text;
  }

  FakeIrqLine irq;
  FakeSink sink;
  Serial serial{"com1", irq, sink};
};

TEST_F(Uart, TransmittedBytesReachTheSinkInOrder) {
  for (const char c : std::string("hello\n")) out(TX, static_cast<std::uint8_t>(c));
  EXPECT_EQ(sink.text, "hello\n");
  EXPECT_EQ(in(LSR), 0x60);  // THR and shift register empty, nothing received
}

TEST_F(Uart, ScratchRegisterKeepsEveryValue) {
  for (unsigned value = 0; value < 256; ++value) {
    out(SCR, static_cast<std::uint8_t>(value));
    EXPECT_EQ(in(SCR), value);
  }
}

// 8250_port.c autoconfig(): IER must read back 0 and then 0x0f, with no bit beyond.
TEST_F(Uart, InterruptEnableHasFourBits) {
  out(IER, 0);
  EXPECT_EQ(in(IER), 0);
  out(IER, 0xff);
  EXPECT_EQ(in(IER), 0x0f);
}

// autoconfig(): MCR = LOOP | OUT2 | RTS must show as DCD and CTS.
TEST_F(Uart, LoopbackWiresModemOutputsToModemInputs) {
  out(MCR, 0x10 | 0x0a);
  EXPECT_EQ(in(MSR)&0xf0, 0x90);
  out(MCR, 0x10 | 0x05);
  EXPECT_EQ(in(MSR)&0xf0, 0x60);
  out(MCR, 0x00);
  EXPECT_EQ(in(MSR)&0xf0, 0xb0);
}

// autoconfig(): IIR bits 7..6 after FCR = ENABLE_FIFO tell the 16550A; bit 5 would mean a 16750.
TEST_F(Uart, FifoShowsInInterruptIdentification) {
  EXPECT_EQ(in(IIR), 0x01);
  out(FCR, 0x01);
  EXPECT_EQ(in(IIR), 0xc1);
  out(FCR, 0x21);
  EXPECT_EQ(in(IIR), 0xc1);
  out(FCR, 0x00);
  EXPECT_EQ(in(IIR), 0x01);
}

TEST_F(Uart, DivisorLatchHidesDataAndInterruptEnable) {
  out(IER, 0x05);
  out(LCR, 0x83);
  out(DLL, 0x34);
  out(DLM, 0x12);
  EXPECT_EQ(in(DLL), 0x34);
  EXPECT_EQ(in(DLM), 0x12);
  out(LCR, 0x03);
  EXPECT_EQ(in(IER), 0x05);
  EXPECT_EQ(in(LCR), 0x03);
  EXPECT_EQ(sink.text, "");
}

// serial8250_do_startup(): enabling THRI twice must raise the interrupt twice.
TEST_F(Uart, EnablingTransmitterInterruptRaisesItEachTime) {
  out(MCR, kDtrRtsOut2);
  for (int round = 0; round < 2; ++round) {
    out(IER, 0x02);
    EXPECT_TRUE(irq.level);
    EXPECT_EQ(in(IIR), 0x02);
    EXPECT_FALSE(irq.level);  // reading IIR took it back
    EXPECT_EQ(in(IIR), 0x01);
    out(IER, 0x00);
  }
}

TEST_F(Uart, TransmittedByteRaisesTheTransmitterInterruptAgain) {
  out(MCR, kDtrRtsOut2);
  out(IER, 0x02);
  EXPECT_EQ(in(IIR), 0x02);
  out(TX, 'x');
  EXPECT_TRUE(irq.level);
  EXPECT_EQ(in(IIR), 0x02);
}

TEST_F(Uart, InterruptIsGatedByOut2) {
  out(IER, 0x02);
  EXPECT_FALSE(irq.level);
  out(MCR, 0x08);
  EXPECT_TRUE(irq.level);
  out(MCR, 0x00);
  EXPECT_FALSE(irq.level);
}

TEST_F(Uart, ReceivedDataHoldsTheInterruptUntilItIsRead) {
  out(MCR, kDtrRtsOut2);
  out(FCR, 0xc1);  // trigger level 14: a single byte is still reported
  out(IER, 0x01);
  EXPECT_EQ(serial.push_input(bytes_of("ab")), 2u);
  EXPECT_TRUE(irq.level);
  EXPECT_EQ(in(IIR), 0xc4);
  EXPECT_EQ(in(RX), 'a');
  EXPECT_TRUE(irq.level);
  EXPECT_EQ(in(RX), 'b');
  EXPECT_FALSE(irq.level);
  EXPECT_EQ(in(IIR), 0xc1);
  EXPECT_EQ(in(RX), 0);
}

TEST_F(Uart, InterruptsAreReportedByPriority) {
  out(MCR, 0x18);  // loopback: DCD follows OUT2
  out(TX, 'a');
  out(TX, 'b');  // no FIFO: the second byte is an overrun
  out(MCR, 0x10);
  out(IER, 0x0f);
  EXPECT_EQ(in(IIR), 0x06);
  EXPECT_EQ(in(LSR), 0x63);
  EXPECT_EQ(in(IIR), 0x04);
  EXPECT_EQ(in(RX), 'a');
  EXPECT_EQ(in(IIR), 0x02);
  EXPECT_EQ(in(IIR), 0x00);
  in(MSR);
  EXPECT_EQ(in(IIR), 0x01);
}

TEST_F(Uart, ModemDeltasAreClearedByReadingAndRingOnlyShowsItsEnd) {
  out(MCR, 0x10);
  in(MSR);
  out(MCR, 0x1f);
  EXPECT_EQ(in(MSR), 0xf0 | 0x0b);  // CTS, DSR, DCD changed; RI only began
  EXPECT_EQ(in(MSR), 0xf0);
  out(MCR, 0x1b);
  EXPECT_EQ(in(MSR), 0xb0 | 0x04);
}

TEST_F(Uart, LoopbackReturnsTransmittedBytesAndKeepsThemInside) {
  out(FCR, 0x01);
  out(MCR, 0x10);
  for (unsigned i = 0; i <= kUartFifoBytes; ++i) out(TX, static_cast<std::uint8_t>('a' + i));
  EXPECT_EQ(in(LSR), 0x63);  // the seventeenth byte was an overrun
  EXPECT_EQ(read_all(), "abcdefghijklmnop");
  EXPECT_EQ(sink.text, "");
}

TEST_F(Uart, HostInputWaitsWhileInLoopbackAndArrivesAfterwards) {
  out(MCR, 0x10);
  EXPECT_EQ(serial.push_input(bytes_of("abc")), 3u);
  EXPECT_EQ(in(LSR)&0x01, 0);
  out(MCR, 0x00);
  EXPECT_EQ(read_all(), "abc");
}

TEST_F(Uart, InputBeyondTheFifoWaitsInTheQueueAndNothingIsLost) {
  out(FCR, 0x01);
  std::string text(1000, '\0');
  std::iota(text.begin(), text.end(), '\0');
  EXPECT_EQ(serial.push_input(bytes_of(text)), text.size());
  EXPECT_EQ(read_all(), text);
}

TEST_F(Uart, TakesInputUpToItsLimitAndNotOneByteMore) {
  out(FCR, 0x01);
  const std::string text(kUartFifoBytes + kSerialQueueBytesMax + 1, 'x');
  EXPECT_EQ(serial.push_input(bytes_of(text)), text.size() - 1);
  EXPECT_EQ(serial.push_input(bytes_of("y")), 0u);
  in(RX);
  EXPECT_EQ(serial.push_input(bytes_of("yz")), 1u);
  EXPECT_EQ(read_all(), std::string(text.size() - 2, 'x') + "y");
}

TEST_F(Uart, ClearingTheFifoDropsWhatArrivedButNotWhatStillWaits) {
  out(FCR, 0x01);
  EXPECT_EQ(serial.push_input(bytes_of("0123456789abcdefXYZ")), 19u);
  out(FCR, 0x03);
  EXPECT_EQ(read_all(), "XYZ");
}

TEST_F(Uart, SwitchingTheFifoClearsIt) {
  EXPECT_EQ(serial.push_input(bytes_of("a")), 1u);
  out(FCR, 0x01);
  EXPECT_EQ(in(LSR)&0x01, 0);
}

TEST_F(Uart, AWideAccessIsSplitIntoBytes) {
  const std::array word{std::byte{'A'}, std::byte{0x0f}};
  serial.write(TX, word);
  EXPECT_EQ(sink.text, "A");
  EXPECT_EQ(in(IER), 0x0f);
}

TEST_F(Uart, StatusRegistersIgnoreWrites) {
  const std::uint8_t lsr = in(LSR);
  const std::uint8_t msr = in(MSR);
  out(LSR, 0xff);
  out(MSR, 0xff);
  EXPECT_EQ(in(LSR), lsr);
  EXPECT_EQ(in(MSR), msr);
}

TEST_F(Uart, AStateMovesWholeToAnotherUart) {
  out(FCR, 0xc1);
  out(MCR, kDtrRtsOut2);
  out(IER, 0x05);
  out(SCR, 0x77);
  EXPECT_EQ(serial.push_input(bytes_of("the quick brown fox jumps")), 25u);
  FakeIrqLine other_irq;
  FakeSink other_sink;
  Serial other("com1", other_irq, other_sink);

  ASSERT_TRUE(other.load(serial.save()).ok());

  EXPECT_TRUE(other_irq.level);
  EXPECT_EQ(other.save().bytes, serial.save().bytes);
  std::string text;
  std::array<std::byte, 1> byte{};
  for (int i = 0; i < 25; ++i) {
    other.read(RX, byte);
    text += static_cast<char>(byte[0]);
  }
  EXPECT_EQ(text, "the quick brown fox jumps");
  EXPECT_FALSE(other_irq.level);
}

// The layout of docs/devices.md, byte for byte: a change of it needs a new version.
TEST_F(Uart, StateVersion1IsTheseBytes) {
  out(LCR, 0x80);
  out(DLL, 0x34);
  out(DLM, 0x12);
  out(LCR, 0x03);
  out(FCR, 0x41);
  out(MCR, kDtrRtsOut2);
  out(IER, 0x03);
  out(SCR, 0x99);
  EXPECT_EQ(serial.push_input(bytes_of("0123456789abcdefgh")), 18u);
  const std::string golden(
      "\x34\x12\x03\x41\x03\x0b\x99\x00\x00\x01\x01"
      "\x10"
      "0123456789abcdef"
      "\x02\x00\x00\x00"
      "gh",
      34);
  const DeviceState state = serial.save();
  EXPECT_EQ(state.version, 1u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(state.bytes.data()), state.bytes.size()), golden);
}

TEST_F(Uart, RefusesAStateWithAnUnknownVersion) {
  DeviceState state = serial.save();
  state.version = kSerialStateVersion + 1;
  const Status loaded = serial.load(state);
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace fvmm::devices
