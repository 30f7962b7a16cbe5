// receive_template: page frames into a TemplateWriter, hashing and writing on a thread of their own while the next
// frame arrives.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <array>
#include <cstring>
#include <thread>
#include <vector>

#include "base/mailbox.h"
#include "migration/page_table.h"
#include "migration/refusal.h"
#include "migration/template_push.h"
#include "net/frame.h"

namespace fvmm::migration {
namespace {

constexpr std::size_t kFramesQueued = 4;

struct Chunk {
  std::vector<PageRun> runs;
  std::vector<std::byte> payload;
};

/// Adds chunks to the writer in order, on its own thread. Owner: receive_template.
class Absorber {
 public:
  Absorber(memory::TemplateWriter& writer, bool delta) : writer_(writer), delta_(delta), thread_([this] { run(); }) {}
  ~Absorber() {
    full_.close();
    if (thread_.joinable()) thread_.join();
  }
  Absorber(const Absorber&) = delete;
  Absorber& operator=(const Absorber&) = delete;
  Absorber(Absorber&&) = delete;
  Absorber& operator=(Absorber&&) = delete;

  /// An empty chunk, reused where possible; waits while all are in use.
  Result<Chunk> borrow(const Deadline& deadline) {
    if (made_ < kFramesQueued) {
      ++made_;
      return Chunk{};
    }
    std::optional<Chunk> chunk = empty_.receive(deadline);
    if (!chunk) return Error(Errc::kDeadlineExceeded, "the disk is too slow for the template");
    return std::move(*chunk);
  }
  Status give(Chunk&& chunk) {
    if (!full_.try_send(std::move(chunk))) return Error(Errc::kInternal, "more chunks than were made");
    return {};
  }
  /// After the last chunk: what became of all of them.
  Status finish() {
    full_.close();
    thread_.join();
    return std::move(status_);
  }

 private:
  void run() {
    while (std::optional<Chunk> chunk = full_.receive()) {
      if (status_) status_ = add(*chunk);  // after an error the rest is drained, so that the receiver never hangs
      (void)empty_.try_send(std::move(*chunk));
    }
  }
  Status add(const Chunk& chunk) {
    std::size_t at = 0;
    for (const PageRun& run : chunk.runs) {
      if (run.encoding == Encoding::kZero) {  // of a base they are holes; of a delta pages that became zero
        if (delta_) FVMM_TRY(add_zeros(run.range));
        continue;
      }
      const std::size_t bytes = run.range.count * kPageBytes;
      FVMM_TRY(writer_.add_pages(run.range.first, std::span(chunk.payload).subspan(at, bytes)));
      at += bytes;
    }
    return {};
  }

  Status add_zeros(memory::PageRange range) {
    static constexpr std::array<std::byte, kPageBytes> kZeros{};
    for (std::uint64_t i = 0; i < range.count; ++i) FVMM_TRY(writer_.add_pages(range.first + i, kZeros));
    return {};
  }

  memory::TemplateWriter& writer_;
  const bool delta_;
  Mailbox<Chunk> full_{kFramesQueued};
  Mailbox<Chunk> empty_{kFramesQueued};
  std::size_t made_ = 0;
  Status status_;  // the thread's, until it is joined
  std::thread thread_;
};

Status receive_pages(net::Stream& stream, std::uint64_t pages, Absorber& absorber, const Deadline& deadline) {
  std::vector<std::byte> table;
  for (std::uint64_t due = 0;; ++due) {
    std::array<std::byte, net::kFrameHeaderBytes> bytes{};
    FVMM_TRY(stream.receive(std::span<std::byte>(bytes), deadline));
    const net::FrameHeader header = FVMM_TRY(net::decode(bytes));
    if (header.sequence != due)
      return Error(Errc::kDataLoss, fmt::format("frame {} where {} was due", header.sequence, due));
    if (header.type == net::FrameType::kEnd) return {};
    if (header.type != net::FrameType::kPages) return Error(Errc::kDataLoss, "a frame that is neither pages nor end");
    table.resize(std::size_t{header.entries} * net::kTableEntryBytes);
    FVMM_TRY(stream.receive(std::span<std::byte>(table), deadline));
    Chunk chunk = FVMM_TRY(absorber.borrow(deadline));
    chunk.runs = FVMM_TRY(decode_table(table, pages, header.payload_bytes));
    chunk.payload.resize(header.payload_bytes);
    FVMM_TRY(stream.receive(std::span<std::byte>(chunk.payload), deadline));
    FVMM_TRY(absorber.give(std::move(chunk)));
  }
}

Status say(net::Stream& stream, v1::PeerKind kind, const Deadline& deadline) {
  v1::PeerMessage message;
  message.set_kind(kind);
  return net::send_message(stream, net::FrameType::kControl, message, deadline);
}

Result<memory::TemplateWriter> begin(const v1::PeerHello& hello, const Id& id, memory::TemplateStore& store) {
  const v1::TemplateRef& ref = hello.template_();
  if (hello.form() == "delta") {
    return store.begin_delta({.parent = "",
                              .parent_digest = FVMM_TRY(Id::from_bytes(hello.parent().digest()), "parent digest"),
                              .id = id,
                              .name = ref.name(),
                              .generation = ref.generation(),
                              .config = hello.vm()});
  }
  memory::TemplateStore::NewTemplate wanted{.id = id,
                                            .name = ref.name(),
                                            .generation = ref.generation(),
                                            .memory_bytes = ref.memory_bytes(),
                                            .config = hello.vm()};
  if (hello.form() == "folded") {
    wanted.folded = {.parent_digest = FVMM_TRY(Id::from_bytes(hello.parent().digest()), "parent digest"),
                     .parent_id = FVMM_TRY(Id::from_bytes(hello.parent().id()), "parent id"),
                     .parent_name = hello.parent().name()};
  } else if (!hello.form().empty()) {
    return Error(Errc::kInvalidArgument, fmt::format("a template in the form \"{}\"", hello.form()));
  }
  return store.begin(wanted);
}

Status add_hashes(const std::string& bytes, memory::TemplateWriter& writer) {
  if (bytes.size() % sizeof(memory::HashEntry) != 0) return Error(Errc::kDataLoss, "hashes that end within an entry");
  std::vector<memory::HashEntry> entries(bytes.size() / sizeof(memory::HashEntry));
  std::memcpy(entries.data(), bytes.data(), bytes.size());
  return writer.add_delta_hashes(entries);
}

Status receive(net::Stream& stream, const v1::PeerHello& hello, memory::TemplateStore& store,
               const Deadline& deadline) {
  const v1::TemplateRef& ref = hello.template_();
  const Id id = FVMM_TRY(Id::from_bytes(ref.id()), "template id");
  const memory::Digest digest = FVMM_TRY(Id::from_bytes(ref.digest()), "template digest");
  const auto known = store.find(id, digest);
  if (known) return say(stream, v1::PEER_PUSH_HAVE, deadline);
  if (known.error().code() != Errc::kNotFound) return Error(known.error());
  FVMM_TRY(memory::Layout::of(ref.memory_bytes()), "template memory");
  memory::TemplateWriter writer = FVMM_TRY(begin(hello, id, store));
  FVMM_TRY(say(stream, v1::PEER_PUSH_READY, deadline));
  {
    Absorber absorber(writer, hello.form() == "delta");
    const Status received = receive_pages(stream, ref.memory_bytes() / kPageBytes, absorber, deadline);
    FVMM_TRY(absorber.finish(), "store the template");  // a full disk is the better reason, where there are two
    FVMM_TRY(Status(received), "receive the template");
  }
  v1::PeerMessage end;
  for (;;) {
    FVMM_TRY(net::receive_message(stream, net::FrameType::kControl, end, deadline));
    if (end.kind() != v1::PEER_PUSH_HASHES) break;
    FVMM_TRY(add_hashes(end.hashes(), writer), "hashes");
  }
  if (end.kind() != v1::PEER_PUSH_END) return Error(Errc::kDataLoss, "the template's end is missing");
  FVMM_TRY(writer.set_machine_state(end.state()));
  const memory::TemplateInfo info = FVMM_TRY(writer.seal(&digest));
  spdlog::info("template {} received: {} pages, digest {}", info.name, info.pages, info.digest.hex());
  return say(stream, v1::PEER_PUSH_SEALED, deadline);
}

}  // namespace

Status receive_template(net::Stream& stream, const v1::PeerHello& hello, memory::TemplateStore& store,
                        const Deadline& deadline) {
  Status status = receive(stream, hello, store, deadline);
  if (!status) {
    (void)net::send_message(stream, net::FrameType::kControl, to_message(v1::PEER_REJECTED, status.error()),
                            Deadline::after(std::chrono::seconds(1)));
  }
  return status;
}

}  // namespace fvmm::migration
