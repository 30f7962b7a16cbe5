// Registers and bits of the 16550A (PC16550D datasheet, table II). Offsets 0 and 1 are the divisor while LCR bit 7 is
// set.
#pragma once

#include <cstdint>

namespace fvmm::devices::uart {

inline constexpr std::uint64_t kData = 0;             // RBR on read, THR on write
inline constexpr std::uint64_t kInterruptEnable = 1;  // IER
inline constexpr std::uint64_t kInterruptIdent = 2;   // IIR on read, FCR on write
inline constexpr std::uint64_t kLineControl = 3;      // LCR
inline constexpr std::uint64_t kModemControl = 4;     // MCR
inline constexpr std::uint64_t kLineStatus = 5;       // LSR
inline constexpr std::uint64_t kModemStatus = 6;      // MSR
inline constexpr std::uint64_t kScratch = 7;          // SCR

inline constexpr std::uint8_t kIerReceived = 0x01;
inline constexpr std::uint8_t kIerThrEmpty = 0x02;
inline constexpr std::uint8_t kIerLineStatus = 0x04;
inline constexpr std::uint8_t kIerModem = 0x08;
inline constexpr std::uint8_t kIerBits = 0x0f;

inline constexpr std::uint8_t kIirNone = 0x01;
inline constexpr std::uint8_t kIirModem = 0x00;
inline constexpr std::uint8_t kIirThrEmpty = 0x02;
inline constexpr std::uint8_t kIirReceived = 0x04;
inline constexpr std::uint8_t kIirLine = 0x06;
inline constexpr std::uint8_t kIirFifos = 0xc0;

inline constexpr std::uint8_t kFcrEnable = 0x01;
inline constexpr std::uint8_t kFcrClearReceiver = 0x02;
inline constexpr std::uint8_t kFcrKept = 0xc9;  // enable, DMA mode, trigger level; the clear bits reset themselves

inline constexpr std::uint8_t kLcrDivisor = 0x80;

inline constexpr std::uint8_t kMcrDtr = 0x01;
inline constexpr std::uint8_t kMcrRts = 0x02;
inline constexpr std::uint8_t kMcrOut1 = 0x04;
inline constexpr std::uint8_t kMcrOut2 = 0x08;
inline constexpr std::uint8_t kMcrLoopback = 0x10;
inline constexpr std::uint8_t kMcrBits = 0x1f;

inline constexpr std::uint8_t kLsrDataReady = 0x01;
inline constexpr std::uint8_t kLsrOverrun = 0x02;
inline constexpr std::uint8_t kLsrThrEmpty = 0x20;
inline constexpr std::uint8_t kLsrIdle = 0x40;  // THR and shift register both empty

inline constexpr std::uint8_t kMsrDeltaBits = 0x0f;
inline constexpr std::uint8_t kMsrRingEnded = 0x04;  // the delta of RI: set by its trailing edge only
inline constexpr std::uint8_t kMsrCts = 0x10;
inline constexpr std::uint8_t kMsrDsr = 0x20;
inline constexpr std::uint8_t kMsrRing = 0x40;
inline constexpr std::uint8_t kMsrDcd = 0x80;

}  // namespace fvmm::devices::uart
