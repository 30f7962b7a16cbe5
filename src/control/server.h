// gRPC-style protobuf calls over a Unix socket: the serving side. docs/control-protocol.md, version 1.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace google::protobuf {
class MessageLite;
}

namespace fvmm::control {

inline constexpr std::uint32_t kRpcFrameBytesMax = 8 * 1024 * 1024;
inline constexpr unsigned kConnectionsMax = 64;
inline constexpr unsigned kCallsMax = 64;               // under way at once, over all connections
inline constexpr unsigned kDescriptorsPerCallMax = 16;  // SCM_RIGHTS descriptors with one request
inline constexpr std::uint32_t kDefaultDeadlineMs = 30'000;
inline constexpr std::chrono::milliseconds kFrameWaitMax{10'000};  // a request once begun must be whole within

struct PeerCredentials {
  int pid = 0;
  unsigned uid = 0;
  unsigned gid = 0;
};

/// One call under way. Lives on the pool thread that runs its handler.
class Call {
 public:
  virtual ~Call() = default;
  [[nodiscard]] virtual Deadline deadline() const = 0;
  [[nodiscard]] virtual const PeerCredentials& credentials() const = 0;
  /// True once the client is gone or the deadline has passed: a streaming handler looks and leaves.
  [[nodiscard]] virtual bool cancelled() const = 0;
  /// One answer of a stream (not the last). Blocks while the client is slow, until the deadline. kCancelled when it is
  /// gone.
  virtual Status send(const google::protobuf::MessageLite& message) = 0;
  /// The descriptors that came with the request, in order; moved out once.
  virtual std::vector<UniqueFd> take_descriptors() = 0;
};

/// Method handlers by name ("fvmm.v1.Vms/Create"). The returned string is the serialized last message; an error becomes
/// code and text. Handlers run on pool threads and may block until their deadline.
using Handler = std::function<Result<std::string>(Call& call, const std::string& request)>;

class Server {
 public:
  struct Options {
    std::filesystem::path socket;  // created with mode 0660; an old file nobody listens on is replaced
    UniqueFd listener;             // instead of `socket`: systemd socket activation
    /// Who may call; empty: uid 0, our own uid, and members of the socket file's group (its permissions did that
    /// already).
    std::function<bool(const PeerCredentials&)> allow;
    std::chrono::milliseconds frame_wait_max = kFrameWaitMax;
  };
  static Result<std::unique_ptr<Server>> open(Options options);
  virtual ~Server() = default;
  /// Register every method before run(). FVMM_CHECKs duplicates.
  virtual void handle(std::string method, Handler handler) = 0;
  /// Registers a unary method with typed messages.
  template <class Request, class Response>
  void unary(std::string method, std::function<Result<Response>(Call&, const Request&)> handler);
  /// Registers a server-streaming method: the handler sends events through the call; its return value is the last
  /// message.
  template <class Request, class Response>
  void stream(std::string method, std::function<Result<Response>(Call&, const Request&)> handler) {
    unary<Request, Response>(std::move(method), std::move(handler));
  }
  virtual void run() = 0;   // serves until stop(); returns with all handlers ended
  virtual void stop() = 0;  // thread: any, also from a handler; calls under way become cancelled()
};

Result<std::string> parse_error(std::string_view method);  // kInvalidArgument: the request is not the method's message

template <class Request, class Response>
void Server::unary(std::string method, std::function<Result<Response>(Call&, const Request&)> handler) {
  const std::string name = method;
  handle(std::move(method),
         [name, handler = std::move(handler)](Call& call, const std::string& bytes) -> Result<std::string> {
           Request request;
           if (!request.ParseFromString(bytes)) return parse_error(name);
           const Response response = FVMM_TRY(handler(call, request));
           return response.SerializeAsString();
         });
}

}  // namespace fvmm::control
