#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/frame.h"

namespace fvmm::control {

/// A whole frame, with the descriptors that came with it.
struct Incoming {
  std::string body;
  std::vector<UniqueFd> descriptors;
  bool descriptors_lost = false;  // more than kDescriptorsPerCallMax: they were closed, the request must be refused
};

/// Cuts a socket's bytes into frames. Reads exactly to the end of a header or a frame, never past it, so descriptors
/// that arrive belong to this frame for certain. Memory grows as bytes really arrive. Owner: one thread.
class FrameReader {
 public:
  enum class Step {
    kFrame,    // take() it
    kBlocked,  // the socket has no more for now
    kEnd,      // the other side is gone
    kTooLong,  // past kRpcFrameBytesMax: length() says by how much; nothing can be read after it
  };
  /// Reads until a frame is whole or the socket has no more. Never blocks.
  Step read(int socket);
  [[nodiscard]] Incoming take();
  /// A frame has begun and is not whole.
  [[nodiscard]] bool underway() const { return header_got_ > 0; }
  [[nodiscard]] std::uint32_t length() const { return length_; }

 private:
  Step fill(int socket, char* into, std::size_t bytes, std::size_t& got);

  FrameHeader header_{};
  std::size_t header_got_ = 0;
  std::uint32_t length_ = 0;
  std::size_t body_got_ = 0;
  Incoming frame_;
};

}  // namespace fvmm::control
