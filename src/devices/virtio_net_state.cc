// The state of virtio-net, version 1: docs/devices.md has the layout.
#include <fmt/format.h>

#include <algorithm>

#include "devices/state_codec.h"
#include "devices/virtio_net.h"
#include "devices/virtio_net_abi.h"

namespace fvmm::devices {
namespace {

Error bad(std::string_view why) {
  return {Errc::kInvalidArgument, fmt::format("virtio-net state: {}", why)};
}

}  // namespace

DeviceState VirtioNet::save() const {
  const auto lock = turns_.take();
  StateWriter writer;
  for (const std::uint8_t byte : configured_) writer.put(byte);
  writer.put(static_cast<std::uint16_t>(config_ >> (8 * kMacBytes)));
  filter_.save(writer);
  writer.put(static_cast<std::uint32_t>(received_bytes_));
  for (std::size_t i = 0; i < received_bytes_; ++i) writer.put(std::to_integer<std::uint8_t>(received_[i]));
  return {.version = kNetStateVersion, .bytes = writer.take()};
}

Status VirtioNet::load(const DeviceState& state) {
  if (state.version != kNetStateVersion) return bad(fmt::format("version {}, want 1", state.version));
  StateReader reader(state.bytes);
  Mac configured{};
  for (std::uint8_t& byte : configured) byte = reader.get<std::uint8_t>();
  const auto status = reader.get<std::uint16_t>();
  NetFilter filter = FVMM_TRY(NetFilter::load(reader), "virtio-net state");
  std::vector<std::byte> frame(reader.get_count<std::uint32_t>());
  for (std::byte& byte : frame) byte = static_cast<std::byte>(reader.get<std::uint8_t>());
  if (!reader.complete()) return bad("wrong length, or a flag that is neither 0 nor 1");
  if ((status & ~(net::kLinkUp | net::kAnnounce)) != 0) return bad("a status with reserved bits");
  if (!frame.empty() && (frame.size() < kNetHeaderBytes + kEthernetHeaderBytes || frame.size() > kNetFrameBytesMax)) {
    return bad("a waiting frame of an impossible length");
  }
  const auto lock = turns_.take();
  if (configured != configured_) filter.set_own(configured_);  // a clone: its driver does not know yet
  filter_ = std::move(filter);
  show_mac(filter_.own());
  set_status(net::kLinkUp, (status & net::kLinkUp) != 0);
  set_status(net::kAnnounce, (status & net::kAnnounce) != 0);
  received_bytes_ = frame.size();
  std::ranges::copy(frame, received_.begin());
  return {};
}

}  // namespace fvmm::devices
