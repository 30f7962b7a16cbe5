#include "devices/virtio_console.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "devices/state_codec.h"
#include "devices/virtio_abi.h"

namespace fvmm::devices {
namespace {

constexpr unsigned kInputQueue = 0;
constexpr unsigned kOutputQueue = 1;
constexpr std::array<std::uint16_t, 2> kQueueSizes{kConsoleQueueSize, kConsoleQueueSize};
constexpr std::uint64_t kFeatureEmergencyWrite = 1ULL << 2;
constexpr std::uint64_t kEmergencyWriteOffset = 8;
constexpr std::size_t kPieceBytes = 4096;  // copied at a time

}  // namespace

std::uint32_t VirtioConsole::type() const {
  return virtio::kTypeConsole;
}

std::uint64_t VirtioConsole::features() const {
  return kFeatureEmergencyWrite;
}

std::span<const std::uint16_t> VirtioConsole::queue_sizes() const {
  return kQueueSizes;
}

// Section 5.3.4: a character without any queue, for a guest that crashes early.
void VirtioConsole::write_config(std::uint64_t offset, std::span<const std::byte> in) {
  if (offset == kEmergencyWriteOffset && !in.empty()) out_.emit(in.first(1));
}

void VirtioConsole::notify(unsigned queue) {
  if (driver_.queues.empty()) return;
  if (queue == kOutputQueue) {
    take_output();
  } else {
    give_input();
  }
}

void VirtioConsole::take_output() {
  Virtqueue& queue = driver_.queues[kOutputQueue];
  std::array<std::byte, kPieceBytes> piece{};
  for (auto left = queue.arm(); left > 0 && queue.pop(chain_); --left) {
    const std::uint64_t bytes = std::min<std::uint64_t>(chain_.readable_bytes(), kConsoleRequestBytesMax);
    for (std::uint64_t at = 0; at < bytes;) {
      const std::size_t got = chain_.read(at, std::span(piece).first(std::min(bytes - at, kPieceBytes)));
      out_.emit(std::span(piece).first(got));
      at += got;
    }
    cut_bytes_ += chain_.readable_bytes() - bytes;
    queue.push(chain_, 0);
  }
  queue.interrupt();
}

// Asks for the next buffer only while input waits for one; otherwise push_input() looks by itself.
void VirtioConsole::give_input() {
  Virtqueue& queue = driver_.queues[kInputQueue];
  if (input_.empty()) return queue.disarm();
  std::vector<std::byte> piece;
  for (auto left = queue.arm(); left > 0 && !input_.empty() && queue.pop(chain_); --left) {
    if (chain_.writable_bytes() == 0) return driver_.signals->fault(GuestFault::kRequest);
    const auto count = std::min<std::uint64_t>(input_.size(), chain_.writable_bytes());
    const auto end = input_.begin() + static_cast<std::ptrdiff_t>(count);
    piece.assign(input_.begin(), end);
    input_.erase(input_.begin(), end);
    queue.push(chain_, static_cast<std::uint32_t>(chain_.write(0, piece)));
  }
  queue.interrupt();
}

std::size_t VirtioConsole::push_input(std::span<const std::byte> bytes) {
  if (quiet_) return 0;
  const std::size_t taken = std::min(bytes.size(), kConsoleQueueBytesMax - input_.size());
  input_.insert(input_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
  if (!driver_.queues.empty()) give_input();
  return taken;
}

Status VirtioConsole::quiesce(const Deadline&) {
  quiet_ = true;  // a request is answered before its notification returns; input waits with the caller
  return {};
}

void VirtioConsole::resume() {
  quiet_ = false;
  if (driver_.queues.empty()) return;
  take_output();
  give_input();
}

DeviceState VirtioConsole::save() const {
  StateWriter writer;
  writer.put(static_cast<std::uint32_t>(input_.size()));
  for (const std::byte byte : input_) writer.put(std::to_integer<std::uint8_t>(byte));
  return {.version = kVirtioConsoleStateVersion, .bytes = writer.take()};
}

Status VirtioConsole::load(const DeviceState& state) {
  const auto bad = [](std::string_view why) {
    return Error(Errc::kInvalidArgument, fmt::format("virtio-console state: {}", why));
  };
  if (state.version != kVirtioConsoleStateVersion) return bad(fmt::format("version {}, want 1", state.version));
  StateReader reader(state.bytes);
  std::deque<std::byte> input;
  for (auto left = reader.get_count<std::uint32_t>(); left > 0; --left) {
    input.push_back(static_cast<std::byte>(reader.get<std::uint8_t>()));
  }
  if (!reader.complete()) return bad("wrong length");
  if (input.size() > kConsoleQueueBytesMax) return bad("more input than may wait");
  input_ = std::move(input);
  return {};
}

}  // namespace fvmm::devices
