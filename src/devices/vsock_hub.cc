#include "devices/vsock_hub.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "base/check.h"

namespace fvmm::devices {
namespace {

// Ports of programs that connect: above those that services are known by.
constexpr std::uint32_t kPortFirst = 1U << 30;
constexpr std::uint32_t kPorts = 1U << 30;

}  // namespace

VsockHub::VsockHub(VsockHubSetup setup)
    : guest_cid_(setup.guest_cid),
      host_(std::move(setup.host)),
      clock_(setup.clock),
      next_port_(setup.first_port % kPorts) {}

// ---- the guest's side

void VsockHub::receive(const VsockHeader& header, std::span<const std::byte> data) {
  if (header.src_cid != guest_cid_) {
    ++counters_.strays;  // there is nobody to answer
    return;
  }
  if (header.dst_cid != kVsockHostCid || header.type != kVsockStream) return owe_reset(header);
  const auto found = connections_.find({.host = header.dst_port, .guest = header.src_port});
  if (found == connections_.end()) {
    return header.op == VsockOp::kRequest ? take_request(header) : owe_reset(header);
  }
  VsockConnection& connection = found->second.connection;
  const bool asking = connection.asking();
  if (header.op == VsockOp::kRw) counters_.sent_bytes += data.size();
  connection.receive(header, data, clock_.now());
  if (asking && !connection.asking() && connection.end() == VsockConnection::End::kNo) ++counters_.opened;
  settle(found);
}

void VsockHub::take_request(const VsockHeader& request) {
  const bool room = connections_.size() + callers_.size() < kVsockConnectionsMax;
  auto program = room ? host_->connect(request.dst_port) : Error(Errc::kResourceExhausted, "no room");
  if (!program) {
    ++counters_.refused;
    return owe_reset(request);
  }
  ++counters_.opened;
  const VsockPorts ports{.host = request.dst_port, .guest = request.src_port};
  auto made = VsockConnection::from_guest(ports, std::move(*program), request);
  settle(connections_.emplace(ports, Entry{.connection = std::move(made)}).first);
}

// Never an answer to a RST: two sides would go on for ever.
void VsockHub::owe_reset(const VsockHeader& packet) {
  if (packet.op == VsockOp::kRst) return;
  resets_.push_back({.src_cid = packet.dst_cid,
                     .dst_cid = guest_cid_,
                     .src_port = packet.dst_port,
                     .dst_port = packet.src_port,
                     .op = VsockOp::kRst});
}

// After something has happened to a connection: it goes, or it may have something to say.
VsockHub::Entries::iterator VsockHub::settle(Entries::iterator at) {
  auto& [ports, entry] = *at;
  const auto end = entry.connection.end();
  if (end == VsockConnection::End::kNo) {
    if (!entry.queued && entry.connection.has_packet()) {
      entry.queued = true;
      ready_.push_back(ports);
    }
    return std::next(at);
  }
  if (entry.queued) std::erase(ready_, ports);
  if (entry.connection.asking()) ++counters_.refused;
  if (end == VsockConnection::End::kReset) {
    owe_reset({.dst_cid = kVsockHostCid, .src_port = ports.guest, .dst_port = ports.host});
  }
  return connections_.erase(at);
}

std::optional<VsockHeader> VsockHub::next(std::span<std::byte> room) {
  if (!resets_.empty()) {
    const VsockHeader reset = resets_.front();
    resets_.pop_front();
    return reset;
  }
  while (!ready_.empty()) {
    const auto found = connections_.find(ready_.front());
    ready_.pop_front();
    if (found == connections_.end()) continue;  // it went meanwhile
    found->second.queued = false;
    auto header = found->second.connection.next(room, clock_.now());
    settle(found);
    if (!header) continue;
    header->src_cid = kVsockHostCid;
    header->dst_cid = guest_cid_;
    counters_.received_bytes += header->len;
    return header;
  }
  return std::nullopt;
}

void VsockHub::forget_guest() {
  connections_.clear();
  ready_.clear();
  resets_.clear();
}

// ---- the programs' side

void VsockHub::remember_deadline(std::optional<SteadyTime> deadline) {
  if (deadline && (!deadline_ || *deadline < *deadline_)) deadline_ = deadline;
}

void VsockHub::watch(std::vector<pollfd>& fds) {
  deadline_ = accept_again_;
  fds.push_back({.fd = accept_again_ ? -1 : host_->fd(), .events = POLLIN, .revents = 0});
  callers_.watch(fds);
  remember_deadline(callers_.deadline());
  for (const auto& [ports, entry] : connections_) {
    fds.push_back(entry.connection.watch());
    remember_deadline(entry.connection.deadline());
  }
}

void VsockHub::look(std::span<const pollfd> fds, bool guest_there) {
  FVMM_CHECK(fds.size() == 1 + callers_.size() + connections_.size(), "what was watched is looked at");
  const SteadyTime now = clock_.now();
  auto seen = fds.subspan(1 + callers_.size()).begin();
  for (auto at = connections_.begin(); at != connections_.end(); ++seen) {
    VsockConnection& connection = at->second.connection;
    if (seen->revents != 0) connection.look(seen->revents, now);
    connection.expire(now);
    at = settle(at);
  }
  auto calls = callers_.look(fds.subspan(1, callers_.size()), now);
  for (VsockCall& call : calls) {
    if (guest_there) {
      place_call(std::move(call), now);
    } else {
      ++counters_.refused;
    }
  }
  if (accept_again_ && now >= *accept_again_) accept_again_.reset();
  if (fds.front().revents != 0) accept(now);
}

// Who is one too many is turned away at once: waiting would tell it nothing.
void VsockHub::accept(SteadyTime now) {
  for (std::size_t i = 0; i < kVsockConnectionsMax; ++i) {
    auto program = host_->accept();
    if (!program) accept_again_ = now + kVsockAcceptRetry;
    if (!program || !*program) return;
    if (connections_.size() + callers_.size() < kVsockConnectionsMax) {
      callers_.add(std::move(*program), now);
    } else {
      ++counters_.refused;
    }
  }
}

void VsockHub::place_call(VsockCall call, SteadyTime now) {
  VsockPorts ports{.host = 0, .guest = call.port};
  do {
    ports.host = kPortFirst + next_port_++ % kPorts;
  } while (connections_.contains(ports));  // which are fewer than there are ports
  auto made = VsockConnection::to_guest(ports, std::move(call.socket), now);
  settle(connections_.emplace(ports, Entry{.connection = std::move(made)}).first);
}

int VsockHub::wait_ms() const {
  if (!deadline_) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline_ - clock_.now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, INT_MAX));
}

void VsockHub::postpone(std::chrono::nanoseconds by) {
  callers_.postpone(by);
  for (auto& [ports, entry] : connections_) entry.connection.postpone(by);
}

void VsockHub::close() {
  forget_guest();
  callers_.clear();
  host_->close();
}

VsockCounters VsockHub::counters() const {
  VsockCounters counters = counters_;
  counters.connections = connections_.size();
  return counters;
}

}  // namespace fvmm::devices
