#include "devices/net_tap.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace fvmm::devices {
namespace {

constexpr unsigned kDiscardedMax = 1024;  // frames; a TAP device keeps 500 by default (txqueuelen)
constexpr short kFlags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

Error cannot_attach(const std::string& name, int error) {
  switch (error) {
    case EBUSY:
      return {Errc::kAlreadyExists,
              fmt::format("tap {} is in use by another process (another VM?): give each VM a tap of its own", name)};
    case EPERM:
    case EACCES:
      return {Errc::kPermissionDenied,
              fmt::format(
                  "no permission for tap {}: run fvmmd as root, or let its user open /dev/net/tun and make the device "
                  "with \"ip tuntap add dev {} mode tap user USER\"",
                  name, name)};
    case EINVAL:
      return {Errc::kInvalidArgument,
              fmt::format("{} is no TAP device with a single queue: make one with \"ip tuntap add dev NAME mode tap\"",
                          name)};
    default:
      return {Errc::kIo, fmt::format("attach to tap {}", name), error};
  }
}

/// The flags of a network device; nothing when it does not exist.
std::optional<short> flags_of(ifreq request) {
  const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!any || ::ioctl(any.get(), SIOCGIFFLAGS, &request) != 0) return std::nullopt;
  return request.ifr_flags;
}

}  // namespace

Result<UniqueFd> open_tap(const std::string& name) {
  if (name.empty() || name.size() >= IFNAMSIZ || name.find_first_of("/%: \t\n") != std::string::npos) {
    return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is no name of a network device", name.substr(0, 32)));
  }
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), name.size());
  // Attaching to a name that is not there would make a device, which would vanish with us.
  const auto flags = flags_of(request);
  if (!flags) {
    return Error(Errc::kNotFound,
                 fmt::format("tap {0} does not exist: \"ip tuntap add dev {0} mode tap && ip link set {0} up\"", name));
  }
  UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd) {
    if (errno == EACCES || errno == EPERM) return cannot_attach(name, errno);
    return Error(Errc::kNotFound, fmt::format("tap {}: /dev/net/tun cannot be opened (\"modprobe tun\"?)", name),
                 errno);
  }
  unsigned known = 0;
  if (::ioctl(fd.get(), TUNGETFEATURES, &known) != 0 || (known & IFF_VNET_HDR) == 0) {
    return Error(Errc::kFailedPrecondition, fmt::format("tap {}: this kernel's TAP has no virtio header", name));
  }
  request.ifr_flags = kFlags;
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) return cannot_attach(name, errno);
  int header = kNetHeaderBytes;
  if (::ioctl(fd.get(), TUNSETVNETHDRSZ, &header) != 0) {
    return Error(Errc::kFailedPrecondition, fmt::format("tap {}: no virtio header of 12 bytes", name), errno);
  }
  if ((*flags & IFF_UP) == 0) {
    spdlog::warn("tap {0} is down, and loses every frame until \"ip link set {0} up\"", name);
  }
  return fd;
}

Result<std::unique_ptr<NetBackend>> TapBackend::adopt(UniqueFd fd) {
  ifreq request{};
  int header = 0;
  const bool tap = ::ioctl(fd.get(), TUNGETIFF, &request) == 0 && (request.ifr_flags & kFlags) == kFlags &&
                   ::ioctl(fd.get(), TUNGETVNETHDRSZ, &header) == 0 && header == kNetHeaderBytes;
  if (!tap) return Error(Errc::kFailedPrecondition, "the descriptor of a tap is none, or has no virtio header");
  return std::unique_ptr<NetBackend>(new TapBackend(std::move(fd)));
}

Status TapBackend::set_offloads(const NetOffloads& offloads) {
  if (fd() < 0) return {};
  unsigned long flags = 0;
  if (offloads.checksum) flags |= TUN_F_CSUM;
  if (offloads.checksum && offloads.tso4) flags |= TUN_F_TSO4;
  if (offloads.checksum && offloads.tso6) flags |= TUN_F_TSO6;
  if (::ioctl(fd_.get(), TUNSETOFFLOAD, flags) != 0) return Error(Errc::kIo, "TUNSETOFFLOAD", errno);
  return {};
}

std::optional<std::size_t> TapBackend::receive(std::span<std::byte> out) {
  if (fd() < 0) return std::nullopt;
  const ssize_t got = ::read(fd_.get(), out.data(), out.size());
  if (got >= 0) return static_cast<std::size_t>(got);
  if (errno != EAGAIN && errno != EINTR) {
    spdlog::error("a network's tap is gone: {}", std::strerror(errno));
    gone_ = true;
  }
  return std::nullopt;
}

void TapBackend::discard_waiting() {
  std::array<std::byte, 64> begin{};  // the rest of each frame is cut off
  for (unsigned i = 0; i < kDiscardedMax && receive(begin); ++i) continue;
}

// A TAP device takes a frame or loses it, as a wire does; it never has half of one.
void TapBackend::emit(std::span<const std::byte> frame) {
  const std::lock_guard lock(mutex_);
  if (!fd_ || ::write(fd_.get(), frame.data(), frame.size()) != static_cast<ssize_t>(frame.size())) count_dropped();
}

void TapBackend::close() {
  const std::lock_guard lock(mutex_);
  gone_ = true;
  fd_.reset();
}

}  // namespace fvmm::devices
