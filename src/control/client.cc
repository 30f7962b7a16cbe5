#include "control/client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include "control/frame_reader.h"
#include "control/server.h"
#include "control/unix_socket.h"
#include "proto/rpc.pb.h"

namespace fvmm::control {
namespace {

using fvmm::v1::RpcRequest;
using fvmm::v1::RpcResponse;

/// What is left, as a request carries it: at least 1, because 0 means the server's default.
std::uint32_t to_deadline_ms(const Deadline& deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.left()).count();
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(left, 1, std::numeric_limits<std::uint32_t>::max()));
}

class ClientOverSocket final : public Client {
 public:
  explicit ClientOverSocket(UniqueFd socket) : socket_(std::move(socket)) {}

  Status call(std::string_view method, const google::protobuf::MessageLite& request,
              google::protobuf::MessageLite& response, const Deadline& deadline,
              std::span<const int> descriptors) override {
    FVMM_TRY(begin(method, request, deadline, descriptors));
    for (;;) {
      const RpcResponse answer = FVMM_TRY(next(method, deadline));
      if (!answer.end()) continue;  // a stream called as a unary method: only its result counts
      if (!response.ParseFromString(answer.message()))
        return spoilt(fmt::format("{}: the answer is not its message", method));
      return {};
    }
  }

  Status stream(std::string_view method, const google::protobuf::MessageLite& request,
                const std::function<bool(const std::string&, bool)>& event, const Deadline& deadline,
                std::span<const int> descriptors) override {
    FVMM_TRY(begin(method, request, deadline, descriptors));
    for (;;) {
      const RpcResponse answer = FVMM_TRY(next(method, deadline));
      const bool wanted = event(answer.message(), answer.end());
      if (answer.end()) return {};
      if (wanted) continue;
      broken_ = true;
      ::shutdown(socket_.get(), SHUT_RDWR);
      return Error(Errc::kCancelled, fmt::format("{}: cancelled by the caller", method));
    }
  }

  [[nodiscard]] bool answered() const override { return answered_; }

  void cancel() override {
    cancelled_ = true;
    ::shutdown(socket_.get(), SHUT_RDWR);  // wakes poll; the descriptor itself stays ours until the end
  }

 private:
  Status begin(std::string_view method, const google::protobuf::MessageLite& request, const Deadline& deadline,
               std::span<const int> descriptors);
  Status send(std::string_view frame, const Deadline& deadline, std::span<const int> descriptors);
  Result<RpcResponse> next(std::string_view method, const Deadline& deadline);
  Result<Incoming> next_frame(const Deadline& deadline);
  Error lost(std::string_view what);
  Error spoilt(std::string what) {
    broken_ = true;
    return Error(Errc::kInternal, std::move(what));
  }

  const UniqueFd socket_;
  FrameReader reader_;
  std::uint64_t call_ = 0;  // the last one begun
  bool broken_ = false;     // the connection cannot be used any more
  bool answered_ = false;
  std::atomic<bool> cancelled_{false};
};

Status ClientOverSocket::begin(std::string_view method, const google::protobuf::MessageLite& request,
                               const Deadline& deadline, std::span<const int> descriptors) {
  answered_ = false;
  if (cancelled_) return Error(Errc::kCancelled, fmt::format("{}: cancelled", method));
  if (broken_) return Error(Errc::kUnavailable, fmt::format("{}: the connection is closed", method));
  if (descriptors.size() > kDescriptorsPerCallMax) {
    return Error(Errc::kInvalidArgument, fmt::format("{}: {} descriptors, at most {} go with a call", method,
                                                     descriptors.size(), kDescriptorsPerCallMax));
  }
  if (deadline.passed()) return Error(Errc::kDeadlineExceeded, fmt::format("{}: no time is left", method));
  RpcRequest frame;
  frame.set_call(++call_);
  frame.set_method(std::string(method));
  frame.set_deadline_ms(to_deadline_ms(deadline));
  request.SerializePartialToString(frame.mutable_message());
  if (frame.ByteSizeLong() > kRpcFrameBytesMax) {
    return Error(Errc::kInvalidArgument, fmt::format("{}: the request has {} bytes, at most {} fit", method,
                                                     frame.ByteSizeLong(), kRpcFrameBytesMax));
  }
  FVMM_TRY(send(encode_frame(frame), deadline, descriptors), method);
  return {};
}

Status ClientOverSocket::send(std::string_view frame, const Deadline& deadline, std::span<const int> descriptors) {
  while (!frame.empty()) {
    const ssize_t sent = send_some(socket_.get(), frame, descriptors);
    if (sent > 0) {
      frame.remove_prefix(static_cast<std::size_t>(sent));
      descriptors = {};  // they went with the first byte
    } else if (errno == EAGAIN) {
      if (wait_for(socket_.get(), POLLOUT, deadline)) continue;
      broken_ = true;  // half a request is out
      return Error(Errc::kDeadlineExceeded, "the server does not read");
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return {};  // the server may have said why before it closed: next() reads that first
    } else {
      broken_ = true;
      return Error(Errc::kIo, "sendmsg", errno);
    }
  }
  return {};
}

/// The next answer to the call under way; answers to calls given up earlier are skipped.
Result<RpcResponse> ClientOverSocket::next(std::string_view method, const Deadline& deadline) {
  for (;;) {
    const Incoming frame = FVMM_TRY(next_frame(deadline), method);
    RpcResponse answer;
    if (!answer.ParseFromString(frame.body)) return spoilt("the server sent a frame that is no RpcResponse");
    if (answer.call() != kConnectionCall && answer.call() < call_) continue;
    if (answer.call() > call_)
      return spoilt(fmt::format("the server answered call {}, which does not exist", answer.call()));
    answered_ = true;
    if (answer.call() == kConnectionCall) {
      broken_ = true;
      return from_wire(answer.code(), answer.error());
    }
    if (answer.code() != 0) return from_wire(answer.code(), answer.error());
    answered_ = answer.end();
    return answer;
  }
}

Result<Incoming> ClientOverSocket::next_frame(const Deadline& deadline) {
  for (;;) {
    switch (reader_.read(socket_.get())) {
      case FrameReader::Step::kFrame:
        return reader_.take();
      case FrameReader::Step::kTooLong:
        return spoilt(fmt::format("the server sent a frame of {} bytes", reader_.length()));
      case FrameReader::Step::kEnd:
        return lost("the server closed the connection; the outcome is not known");
      case FrameReader::Step::kBlocked:
        if (cancelled_) return lost("");
        if (!wait_for(socket_.get(), POLLIN, deadline)) return Error(Errc::kDeadlineExceeded, "no answer in time");
        break;
    }
  }
}

Error ClientOverSocket::lost(std::string_view what) {
  broken_ = true;
  if (cancelled_) return Error(Errc::kCancelled, "cancelled by the caller");
  return Error(Errc::kUnavailable, std::string(what));
}

}  // namespace

Result<std::unique_ptr<Client>> Client::connect(const std::filesystem::path& socket, const Deadline& deadline) {
  return adopt(FVMM_TRY(connect_unix(socket, deadline)));
}

Result<std::unique_ptr<Client>> Client::adopt(UniqueFd connected) {
  const int flags = ::fcntl(connected.get(), F_GETFL);
  if (flags < 0) return Error(Errc::kInvalidArgument, "adopting a control connection", errno);
  return std::unique_ptr<Client>(std::make_unique<ClientOverSocket>(std::move(connected)));
}

}  // namespace fvmm::control
