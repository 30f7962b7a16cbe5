#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "control/connection.h"
#include "control/server.h"
#include "proto/rpc.pb.h"

namespace fvmm::control {

/// One call: what its handler sees, and the last words to its client. Lives on the pool thread that serves it.
class CallUnderWay final : public Call {
 public:
  CallUnderWay(std::shared_ptr<Connection> connection, fvmm::v1::RpcRequest&& request,
               std::vector<UniqueFd>&& descriptors, const std::atomic<bool>& stopping);

  [[nodiscard]] Deadline deadline() const override { return deadline_; }
  [[nodiscard]] const PeerCredentials& credentials() const override { return connection_->peer(); }
  [[nodiscard]] bool cancelled() const override { return stopping_ || connection_->gone() || deadline_.passed(); }
  Status send(const google::protobuf::MessageLite& message) override;
  std::vector<UniqueFd> take_descriptors() override { return std::exchange(descriptors_, {}); }

  /// Runs the handler and answers. `release` gives back the call's place before the client can know that it has ended,
  /// so that a client which has its answer can always make its next call.
  void serve(const Handler& handler, const std::function<void()>& release);

 private:
  Result<std::string> run(const Handler& handler);

  const std::shared_ptr<Connection> connection_;
  const fvmm::v1::RpcRequest request_;
  std::vector<UniqueFd> descriptors_;
  const Deadline deadline_;
  const std::atomic<bool>& stopping_;
};

}  // namespace fvmm::control
