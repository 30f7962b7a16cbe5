// gRPC-style protobuf calls over a Unix socket: the calling side, used by fvmmctl towards fvmmd and by fvmmd towards
// workers.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace google::protobuf {
class MessageLite;
}

namespace fvmm::control {

/// One connection, one call at a time. Owner: one thread, but cancel().
class Client {
 public:
  /// kUnavailable names the socket and the fix ("is fvmmd running?").
  static Result<std::unique_ptr<Client>> connect(const std::filesystem::path& socket, const Deadline& deadline);
  static Result<std::unique_ptr<Client>> adopt(UniqueFd connected);
  virtual ~Client() = default;

  /// Unary call. Descriptors, if any, travel with the request as SCM_RIGHTS. The server's error comes back with its
  /// code. kUnavailable: the connection broke; nothing is known about the call's effect.
  virtual Status call(std::string_view method, const google::protobuf::MessageLite& request,
                      google::protobuf::MessageLite& response, const Deadline& deadline,
                      std::span<const int> descriptors = {}) = 0;
  /// Server stream: `event` gets each message's bytes, the last one too (second argument true). Returning false cancels
  /// (the connection is closed).
  virtual Status stream(std::string_view method, const google::protobuf::MessageLite& request,
                        const std::function<bool(const std::string& message, bool last)>& event,
                        const Deadline& deadline, std::span<const int> descriptors = {}) = 0;
  /// Whether the last call's outcome, good or bad, came from the server. When false after an error, the call may or may
  /// not have had its effect.
  [[nodiscard]] virtual bool answered() const = 0;
  /// Breaks the connection: the call under way and all later ones give kCancelled. Thread: any.
  virtual void cancel() = 0;
};

}  // namespace fvmm::control
