#include "vmm/net_config.h"

#include <fmt/format.h>

#include <set>
#include <string>
#include <utility>

#include "base/mac.h"
#include "devices/net_stream.h"
#include "devices/net_tap.h"

namespace fvmm::vmm {

std::string net_name(int index) {
  return fmt::format("net{}", index);
}

std::string net_place(const v1::NetConfig& net) {
  switch (net.backend_case()) {
    case v1::NetConfig::kTap:
      return "tap=" + net.tap();
    case v1::NetConfig::kSocket:
      return "unix=" + net.socket();
    case v1::NetConfig::BACKEND_NOT_SET:
      break;
  }
  return "nothing that this build knows";
}

Status check_nets(const v1::VmConfig& config) {
  const auto bad = [](int index, const std::string& why) {
    return Error(Errc::kInvalidArgument, net_name(index) + ": " + why);
  };
  if (config.nets_size() > kVmNetsMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("{} networks; a VM has at most {}", config.nets_size(), kVmNetsMax));
  }
  std::set<std::string> places;
  std::set<std::string> macs;
  for (int i = 0; i < config.nets_size(); ++i) {
    const v1::NetConfig& net = config.nets(i);
    if (net.backend_case() == v1::NetConfig::BACKEND_NOT_SET) return bad(i, "connected to " + net_place(net));
    if (net.has_tap() && net.tap().empty()) return bad(i, "tap= needs the name of a TAP device");
    if (net.has_socket() && !net.socket().starts_with('/')) {
      return bad(i, fmt::format("the socket \"{}\" must be an absolute path on this host", net.socket()));
    }
    if (net.has_tap() && !places.insert(net.tap()).second) return bad(i, "tap " + net.tap() + " is given twice");
    if (net.mac().empty()) continue;
    const Mac mac = FVMM_TRY(mac_from_bytes(net.mac()), net_name(i));
    if (!macs.insert(net.mac()).second) return bad(i, "address " + to_string(mac) + " is given twice");
  }
  return {};
}

// 02: locally administered, of one station. 40 bits of a random id: two VMs of one network do not meet by chance.
void give_macs(v1::VmConfig& config) {
  for (int i = 0; i < config.nets_size(); ++i) {
    v1::NetConfig& net = *config.mutable_nets(i);
    if (!net.mac().empty()) continue;
    std::string mac = config.id().substr(0, kMacBytes);
    mac.resize(kMacBytes);
    mac[0] = 2;
    mac[kMacBytes - 1] = static_cast<char>(mac[kMacBytes - 1] + i);
    net.set_mac(mac);
  }
}

Result<v1::VmConfig> place_nets(v1::VmConfig config, const google::protobuf::RepeatedPtrField<v1::NetPlace>& places) {
  std::set<std::string> placed;
  for (const v1::NetPlace& place : places) {
    int index = 0;
    while (index < config.nets_size() && net_name(index) != place.id()) ++index;
    if (index == config.nets_size()) {
      return Error(Errc::kInvalidArgument, fmt::format("VM {} has no network \"{}\"; there are {}, named from net0 on",
                                                       config.name(), place.id(), config.nets_size()));
    }
    v1::NetConfig moved = place.net();
    if (!moved.mac().empty()) {
      return Error(Errc::kInvalidArgument, place.id() + ": its address goes with the VM, it cannot be given here");
    }
    if (!placed.insert(place.id()).second) return Error(Errc::kInvalidArgument, place.id() + " is given twice");
    moved.set_mac(config.nets(index).mac());
    *config.mutable_nets(index) = std::move(moved);
  }
  FVMM_TRY(check_nets(config));
  return config;
}

Result<std::vector<UniqueFd>> open_nets(const v1::VmConfig& config) {
  std::vector<UniqueFd> descriptors;
  for (int i = 0; i < config.nets_size(); ++i) {
    const v1::NetConfig& net = config.nets(i);
    auto opened = net.has_tap() ? devices::open_tap(net.tap()) : devices::open_net_stream(net.socket());
    descriptors.push_back(FVMM_TRY(std::move(opened), net_name(i)));
  }
  return descriptors;
}

Result<std::vector<std::unique_ptr<devices::VirtioNet>>> make_nets(const v1::VmConfig& config,
                                                                   std::vector<UniqueFd> descriptors,
                                                                   devices::OutputGate& gate) {
  if (descriptors.size() != static_cast<std::size_t>(config.nets_size())) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("{} networks and {} descriptors for them", config.nets_size(), descriptors.size()));
  }
  std::vector<std::unique_ptr<devices::VirtioNet>> nets;
  for (int i = 0; i < config.nets_size(); ++i) {
    const v1::NetConfig& net = config.nets(i);
    UniqueFd fd = std::move(descriptors[static_cast<std::size_t>(i)]);
    std::unique_ptr<devices::NetBackend> backend;
    if (net.has_tap()) {
      backend = FVMM_TRY(devices::TapBackend::adopt(std::move(fd)), net_name(i));
    } else {
      backend = std::make_unique<devices::StreamBackend>(std::move(fd));
    }
    const Mac mac = FVMM_TRY(mac_from_bytes(net.mac()), net_name(i));
    nets.push_back(std::make_unique<devices::VirtioNet>(
        devices::VirtioNetSetup{.backend = std::move(backend), .gate = gate, .mac = mac}));
  }
  return nets;
}

}  // namespace fvmm::vmm
