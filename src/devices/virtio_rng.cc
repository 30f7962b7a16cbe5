#include "devices/virtio_rng.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/check.h"
#include "devices/virtio_abi.h"

namespace fvmm::devices {
namespace {

constexpr std::array<std::uint16_t, 1> kQueueSizes{kRngQueueSize};

}  // namespace

void host_entropy(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = ::getrandom(out.data(), out.size(), 0);
    FVMM_CHECK(got > 0 || errno == EINTR, "getrandom() of a booted host");
    if (got > 0) out = out.subspan(static_cast<std::size_t>(got));
  }
}

std::uint32_t VirtioRng::type() const {
  return virtio::kTypeEntropy;
}

std::span<const std::uint16_t> VirtioRng::queue_sizes() const {
  return kQueueSizes;
}

void VirtioRng::notify(unsigned queue) {
  if (queue < driver_.queues.size()) serve(driver_.queues[queue]);
}

// Section 5.4.6: a buffer is device-writable and gets at least one byte. One without room is a request that makes no
// sense.
void VirtioRng::serve(Virtqueue& queue) {
  std::array<std::byte, kRngRequestBytesMax> bytes{};
  for (auto left = queue.arm(); left > 0 && queue.pop(chain_); --left) {
    if (chain_.writable_bytes() == 0) {
      driver_.signals->fault(GuestFault::kRequest);
      break;
    }
    const auto part = std::span(bytes).first(std::min<std::uint64_t>(bytes.size(), chain_.writable_bytes()));
    entropy_(part);
    queue.push(chain_, static_cast<std::uint32_t>(chain_.write(0, part)));
  }
  queue.interrupt();
}

Status VirtioRng::quiesce(const Deadline&) {
  return {};  // a request is answered before its notification returns
}

void VirtioRng::resume() {
  for (Virtqueue& queue : driver_.queues) serve(queue);
}

Status VirtioRng::load(const DeviceState& state) {
  if (state.version == kRngStateVersion && state.bytes.empty()) return {};
  return Error(Errc::kInvalidArgument, fmt::format("virtio-rng state: version {} of {} bytes, want version 1 of none",
                                                   state.version, state.bytes.size()));
}

}  // namespace fvmm::devices
