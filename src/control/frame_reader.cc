#include "control/frame_reader.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "control/server.h"
#include "control/unix_socket.h"

namespace fvmm::control {
namespace {
constexpr std::size_t kGrowBytes = 256 * 1024;
}

/// One read of at most `bytes`; kFrame here means that something arrived.
FrameReader::Step FrameReader::fill(int socket, char* into, std::size_t bytes, std::size_t& got) {
  const Received received = receive_some(socket, {into, bytes}, frame_.descriptors);
  if (received.descriptors_lost || frame_.descriptors.size() > kDescriptorsPerCallMax) {
    frame_.descriptors_lost = true;
    frame_.descriptors.clear();
  }
  if (received.bytes < 0 && received.sys_errno == EAGAIN) return Step::kBlocked;
  if (received.bytes <= 0) return Step::kEnd;
  got += static_cast<std::size_t>(received.bytes);
  return Step::kFrame;
}

FrameReader::Step FrameReader::read(int socket) {
  while (header_got_ < header_.size()) {
    const Step step =
        fill(socket, reinterpret_cast<char*>(header_.data()) + header_got_, header_.size() - header_got_, header_got_);
    if (step != Step::kFrame) return step;
    if (header_got_ == header_.size()) length_ = decode_length(header_);
  }
  if (length_ > kRpcFrameBytesMax) return Step::kTooLong;
  while (body_got_ < length_) {
    if (body_got_ == frame_.body.size()) frame_.body.resize(std::min<std::size_t>(length_, body_got_ + kGrowBytes));
    const Step step = fill(socket, frame_.body.data() + body_got_, frame_.body.size() - body_got_, body_got_);
    if (step != Step::kFrame) return step;
  }
  return Step::kFrame;
}

Incoming FrameReader::take() {
  header_got_ = 0;
  body_got_ = 0;
  return std::exchange(frame_, Incoming{});
}

}  // namespace fvmm::control
