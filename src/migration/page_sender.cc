#include "migration/page_sender.h"

#include "net/frame.h"

namespace fvmm::migration {

PageSender::PageSender(net::Stream& stream, const std::byte* base, Pacer* pacer)
    : stream_(stream), base_(base), pacer_(pacer) {
  for (Frame& frame : frames_) clear(frame);
}

void PageSender::clear(Frame& frame) {
  frame.table.clear();
  frame.parts.assign(2, iovec{});
  frame.entries = 0;
  frame.payload_bytes = 0;
}

Status PageSender::send(std::span<const memory::PageRange> ranges, const Deadline& deadline) {
  for (const memory::PageRange& range : ranges) {
    for (memory::PageIndex page = range.first; page < range.first + range.count; ++page) {
      FVMM_TRY(add(page, base_ + page * kPageBytes, deadline));
    }
  }
  return flush(deadline);
}

Status PageSender::flush(const Deadline& deadline) {
  FVMM_TRY(ship(deadline));
  return stream_.finish_send(deadline);
}

// Appends to the growing entry, or closes it and opens another; ships the frame first when it is full.
Status PageSender::add(memory::PageIndex page, const std::byte* bytes, const Deadline& deadline) {
  const Encoding encoding = is_zero_page(bytes) ? Encoding::kZero : Encoding::kRaw;
  if (!has_room(page, encoding)) FVMM_TRY(ship(deadline));
  if (extends(page, encoding)) {
    ++run_.range.count;
  } else {
    close_run();
    run_ = {{page, 1}, encoding};
  }
  ++counters_.pages;
  if (encoding == Encoding::kZero) {
    ++counters_.zero_pages;
  } else {
    add_payload(bytes);
  }
  return {};
}

bool PageSender::extends(memory::PageIndex page, Encoding encoding) const {
  return run_.range.count != 0 && run_.encoding == encoding && run_.range.first + run_.range.count == page &&
         run_.range.count < kRunPagesMax;
}

bool PageSender::has_room(memory::PageIndex page, Encoding encoding) const {
  const Frame& frame = frames_[current_];
  if (encoding == Encoding::kRaw && frame.payload_bytes + kPageBytes > net::kPagePayloadBytesMax) return false;
  return extends(page, encoding) || frame.entries + 2 <= net::kTableEntriesMax;  // the growing entry, and a new one
}

void PageSender::add_payload(const std::byte* page) {
  Frame& frame = frames_[current_];
  frame.payload_bytes += static_cast<std::uint32_t>(kPageBytes);
  iovec& last = frame.parts.back();
  if (frame.parts.size() > 2 && static_cast<const std::byte*>(last.iov_base) + last.iov_len == page) {
    last.iov_len += kPageBytes;
  } else {
    frame.parts.push_back({const_cast<std::byte*>(page), kPageBytes});  // NOLINT: iovec is not const-correct
  }
}

void PageSender::close_run() {
  if (run_.range.count == 0) return;
  Frame& frame = frames_[current_];
  const std::size_t at = frame.table.size();
  frame.table.resize(at + net::kTableEntryBytes);
  encode_run(run_, std::span<std::byte, net::kTableEntryBytes>(frame.table.data() + at, net::kTableEntryBytes));
  ++frame.entries;
  run_ = {};
}

Status PageSender::ship(const Deadline& deadline) {
  if (run_.range.count == 0) return {};
  close_run();
  Frame& frame = frames_[current_];
  net::encode({.type = net::FrameType::kPages,
               .entries = frame.entries,
               .payload_bytes = frame.payload_bytes,
               .sequence = counters_.frames},
              frame.header);
  frame.parts[0] = {frame.header.data(), frame.header.size()};
  frame.parts[1] = {frame.table.data(), frame.table.size()};
  const std::size_t bytes = frame.header.size() + frame.table.size() + frame.payload_bytes;
  if (pacer_ != nullptr) FVMM_TRY(pacer_->pass(bytes, deadline));
  ++counters_.frames;
  counters_.bytes += bytes;
  FVMM_TRY(stream_.start_send(frame.parts, deadline));
  current_ ^= 1U;  // the stream has finished the other frame before it started this one
  clear(frames_[current_]);
  return {};
}

Status PageSender::ask_sync(const Deadline& deadline) {
  std::array<std::byte, net::kFrameHeaderBytes> header{};
  net::encode({.type = net::FrameType::kSync, .entries = 0, .payload_bytes = 0, .sequence = counters_.frames}, header);
  counters_.bytes += header.size();
  return stream_.send(header, deadline);
}

Status PageSender::synced(const Deadline& deadline) {
  std::array<std::byte, net::kFrameHeaderBytes> bytes{};
  FVMM_TRY(stream_.receive(std::span<std::byte>(bytes), deadline), "waiting for the receiver");
  const net::FrameHeader header = FVMM_TRY(net::decode(bytes));
  if (header.type == net::FrameType::kSync && header.sequence == counters_.frames) return {};
  return Error(Errc::kDataLoss, "the receiver answered another question");
}

Status PageSender::send_end(const Deadline& deadline) {
  std::array<std::byte, net::kFrameHeaderBytes> header{};
  net::encode({.type = net::FrameType::kEnd, .entries = 0, .payload_bytes = 0, .sequence = counters_.frames}, header);
  counters_.bytes += header.size();
  return stream_.send(header, deadline);
}

}  // namespace fvmm::migration
