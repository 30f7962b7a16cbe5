#include "migration/page_receiver.h"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "net/frame.h"

namespace fvmm::migration {

PageReceiver::PageReceiver(net::Stream& stream, memory::GuestMemory& memory, bool fresh_zero)
    : stream_(stream), memory_(memory), fresh_zero_(fresh_zero), written_(memory.layout().pages()) {}

Status PageReceiver::run(const Deadline& deadline) {
  for (;;) {
    std::array<std::byte, net::kFrameHeaderBytes> bytes{};
    FVMM_TRY(stream_.receive(std::span<std::byte>(bytes), deadline));
    const net::FrameHeader header = FVMM_TRY(net::decode(bytes));
    if (header.sequence != counters_.frames) {
      return Error(Errc::kDataLoss,
                   fmt::format("frame {} arrived where {} was due", header.sequence, counters_.frames));
    }
    counters_.bytes += bytes.size();
    if (header.type == net::FrameType::kEnd) return {};
    if (header.type == net::FrameType::kSync) {  // all that came before has been received into guest memory
      FVMM_TRY(stream_.send(bytes, deadline), "answer the sender");
      continue;
    }
    if (header.type != net::FrameType::kPages) {
      return Error(Errc::kDataLoss, fmt::format("frame type {} on a data connection", static_cast<int>(header.type)));
    }
    FVMM_TRY(take_frame(header, deadline));
    ++counters_.frames;
  }
}

Status PageReceiver::take_frame(const net::FrameHeader& header, const Deadline& deadline) {
  table_.resize(std::size_t{header.entries} * net::kTableEntryBytes);
  FVMM_TRY(stream_.receive(std::span<std::byte>(table_), deadline));
  const auto runs = FVMM_TRY(decode_table(table_, memory_.layout().pages(), header.payload_bytes));
  FVMM_TRY(fill(runs, deadline));
  for (const PageRun& run : runs) {
    if (run.encoding == Encoding::kZero) zero(run.range);
    counters_.pages += run.range.count;
  }
  counters_.bytes += table_.size() + header.payload_bytes;
  return {};
}

// One scattered receive straight into guest memory.
Status PageReceiver::fill(std::span<const PageRun> runs, const Deadline& deadline) {
  parts_.clear();
  for (const PageRun& run : runs) {
    if (run.encoding != Encoding::kRaw) continue;
    const auto pages = memory_.pages_for_load(run.range);
    parts_.push_back({pages.data(), pages.size()});
    written_.set_range(run.range);
  }
  return parts_.empty() ? Status{} : stream_.receive(parts_, deadline);
}

void PageReceiver::zero(memory::PageRange range) {
  for (std::uint64_t i = 0; i < range.count; ++i) {
    const memory::PageIndex page = range.first + i;
    if (fresh_zero_ && !written_.test(page)) continue;
    const auto bytes = memory_.pages_for_load({page, 1});
    std::memset(bytes.data(), 0, bytes.size());
    written_.set(page);
  }
}

}  // namespace fvmm::migration
