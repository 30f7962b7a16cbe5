// What a device is connected to, as tests see it: an interrupt line, an output sink, a register file with a state.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/device.h"

namespace fvmm::testing {

struct FakeIrqLine : devices::IrqLine {
  void set(bool value) override {
    level = value;
    ++calls;
  }
  bool level = false;
  int calls = 0;
};

struct FakeSink : devices::OutputSink {
  void emit(std::span<const std::byte> bytes) override {
    text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  std::string text;
};

/// Sixteen bytes that keep what is written; loads only version 1, and refuses a first byte of 0xee.
struct FakeDevice : devices::Device {
  explicit FakeDevice(std::string name) : name_(std::move(name)) {}
  [[nodiscard]] std::string_view id() const override { return name_; }
  void read(std::uint64_t offset, std::span<std::byte> out) override {
    last_offset = offset;
    for (std::byte& byte : out) byte = bytes.at(offset++ % bytes.size());
  }
  void write(std::uint64_t offset, std::span<const std::byte> in) override {
    last_offset = offset;
    ++writes;
    for (const std::byte byte : in) bytes.at(offset++ % bytes.size()) = byte;
  }
  [[nodiscard]] devices::DeviceState save() const override { return {.version = 1, .bytes = bytes}; }
  Status load(const devices::DeviceState& state) override {
    if (state.version != 1 || state.bytes.size() != bytes.size() || state.bytes[0] == std::byte{0xee}) {
      return Error(Errc::kInvalidArgument, "not a fake device's state");
    }
    bytes = state.bytes;
    return {};
  }

  std::vector<std::byte> bytes = std::vector<std::byte>(16);
  std::uint64_t last_offset = 0;
  int writes = 0;

 private:
  std::string name_;
};

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace fvmm::testing
