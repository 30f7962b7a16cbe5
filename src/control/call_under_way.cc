#include "control/call_under_way.h"

#include <fmt/format.h>

#include <exception>

#include "base/check.h"

namespace fvmm::control {

CallUnderWay::CallUnderWay(std::shared_ptr<Connection> connection, fvmm::v1::RpcRequest&& request,
                           std::vector<UniqueFd>&& descriptors, const std::atomic<bool>& stopping)
    : connection_(std::move(connection)),
      request_(std::move(request)),
      descriptors_(std::move(descriptors)),
      deadline_(Deadline::after(
          std::chrono::milliseconds(request_.deadline_ms() == 0 ? kDefaultDeadlineMs : request_.deadline_ms()))),
      stopping_(stopping) {}

Status CallUnderWay::send(const google::protobuf::MessageLite& message) {
  if (stopping_) return Error(Errc::kCancelled, "the server is stopping");
  FVMM_TRY(connection_->wait_for_room(deadline_, stopping_));
  fvmm::v1::RpcResponse event;
  event.set_call(request_.call());
  FVMM_CHECK(message.AppendPartialToString(event.mutable_message()), "serializing an event");
  if (event.ByteSizeLong() > kRpcFrameBytesMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("an event of {} bytes; at most {} fit a frame", event.ByteSizeLong(), kRpcFrameBytesMax));
  }
  connection_->push(encode_frame(event));
  if (connection_->gone()) return Error(Errc::kCancelled, "the client is gone");
  return {};
}

void CallUnderWay::serve(const Handler& handler, const std::function<void()>& release) {
  Result<std::string> result = run(handler);
  descriptors_.clear();
  const Status room = connection_->wait_for_room(deadline_, stopping_);
  const bool too_slow = !room.ok() && room.error().code() == Errc::kDeadlineExceeded;
  release();
  connection_->end_call(request_.call());
  if (too_slow) return connection_->abandon();
  connection_->push(result.ok() ? encode_answer(request_.call(), std::move(*result))
                                : encode_error(request_.call(), result.error()));
}

Result<std::string> CallUnderWay::run(const Handler& handler) {
  try {
    return handler(*this, request_.message());
  } catch (const std::exception& exception) {  // of a library below: bad_alloc, filesystem_error
    return Error(Errc::kInternal, fmt::format("{}: {}", request_.method(), exception.what()));
  }
}

}  // namespace fvmm::control
