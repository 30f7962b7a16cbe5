#include "migration/template_push.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/scope_exit.h"
#include "migration/page_sender.h"
#include "migration/page_table.h"
#include "migration/transport.h"
#include "net/frame.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kProgressPages = 16 * 1024;  // an event every 64 MiB

Result<v1::PeerMessage> hear(net::Stream& stream, const Deadline& deadline) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(stream, net::FrameType::kControl, message, deadline));
  if (message.kind() == v1::PEER_REJECTED) {
    const bool known = message.code() >= 1 && message.code() <= static_cast<std::uint32_t>(Errc::kIo);
    return Error(known ? static_cast<Errc>(message.code()) : Errc::kUnknown, "peer: " + message.reason());
  }
  return message;
}

// The file's data extents are its non-zero pages; holes are not even read.
Result<std::vector<memory::PageRange>> data_ranges(int file, std::uint64_t bytes) {
  std::vector<memory::PageRange> ranges;
  for (off_t at = 0; at < static_cast<off_t>(bytes);) {
    const off_t data = ::lseek(file, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return Error(Errc::kIo, "lseek SEEK_DATA in the template", errno);
    const off_t hole = ::lseek(file, data, SEEK_HOLE);
    if (hole < 0) return Error(Errc::kIo, "lseek SEEK_HOLE in the template", errno);
    const std::uint64_t first = static_cast<std::uint64_t>(data) / kPageBytes;
    const std::uint64_t end = (static_cast<std::uint64_t>(hole) + kPageBytes - 1) / kPageBytes;
    ranges.push_back({first, std::min(end, bytes / kPageBytes) - first});
    at = hole;
  }
  return ranges;
}

Status send_image(const memory::OpenTemplate& source, PageSender& sender, const Deadline& deadline,
                  const std::function<bool(const PushProgress&)>& progress) {
  const std::uint64_t total = source.info().pages * kPageBytes;
  for (const memory::PageRange& range : FVMM_TRY(data_ranges(source.memory_file(), source.info().memory_bytes))) {
    for (std::uint64_t done = 0; done < range.count; done += kProgressPages) {
      const memory::PageRange part{range.first + done, std::min(kProgressPages, range.count - done)};
      FVMM_TRY(sender.send(std::span(&part, 1), deadline));
      if (progress && !progress({sender.counters().bytes, total})) return Error(Errc::kCancelled, "push cancelled");
    }
  }
  return sender.send_end(deadline);
}

v1::PeerHello push_hello(const memory::TemplateInfo& info) {
  v1::PeerHello hello;
  hello.set_version(kPeerVersion);
  hello.set_purpose(v1::PUSH_TEMPLATE);
  hello.set_session(Id::random().raw());
  *hello.mutable_vm() = info.config;
  v1::TemplateRef* ref = hello.mutable_template_();
  ref->set_id(info.id.raw());
  ref->set_name(info.name);
  ref->set_generation(info.generation);
  ref->set_digest(info.digest.raw());
  ref->set_memory_bytes(info.memory_bytes);
  return hello;
}

}  // namespace

Result<PushStats> push_template(const memory::OpenTemplate& source, const net::Endpoint& to, const Deadline& deadline,
                                const std::function<bool(const PushProgress&)>& progress) {
  const auto stream = FVMM_TRY(net::Channel::connect(to, deadline));
  return push_template(source, *stream, deadline, progress);
}

Result<PushStats> push_template(const memory::OpenTemplate& source, net::Stream& stream, const Deadline& deadline,
                                const std::function<bool(const PushProgress&)>& progress) {
  const auto began = std::chrono::steady_clock::now();
  const memory::TemplateInfo& info = source.info();
  FVMM_TRY(net::send_message(stream, net::FrameType::kHello, push_hello(info), deadline), "push " + info.name);
  PushStats stats;
  const v1::PeerMessage first = FVMM_TRY(hear(stream, deadline), "push " + info.name);
  stats.already_there = first.kind() == v1::PEER_PUSH_HAVE;
  if (!stats.already_there && first.kind() != v1::PEER_PUSH_READY) {
    return Error(Errc::kDataLoss, "push: the peer neither has the template nor is ready for it");
  }
  if (!stats.already_there) {
    void* const image = ::mmap(nullptr, info.memory_bytes, PROT_READ, MAP_SHARED, source.memory_file(), 0);
    if (image == MAP_FAILED) return Error(Errc::kIo, "map the template " + info.name, errno);
    const ScopeExit unmap([&] { ::munmap(image, info.memory_bytes); });
    (void)::madvise(image, info.memory_bytes, MADV_SEQUENTIAL);
    PageSender sender(stream, static_cast<const std::byte*>(image));
    FVMM_TRY(send_image(source, sender, deadline, progress), "push " + info.name);
    v1::PeerMessage end;
    end.set_kind(v1::PEER_PUSH_END);
    *end.mutable_state() = FVMM_TRY(source.machine_state());
    FVMM_TRY(net::send_message(stream, net::FrameType::kControl, end, deadline), "push " + info.name);
    const v1::PeerMessage sealed = FVMM_TRY(hear(stream, deadline), "push " + info.name);
    if (sealed.kind() != v1::PEER_PUSH_SEALED)
      return Error(Errc::kDataLoss, "push: the peer did not say that it sealed");
    stats.bytes_sent = sender.counters().bytes;
  }
  stats.duration_ms = to_ms(std::chrono::steady_clock::now() - began);
  return stats;
}

}  // namespace fvmm::migration
