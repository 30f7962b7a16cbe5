#include "daemon/call_worker.h"

#include <array>
#include <vector>

namespace fvmm::daemon {

namespace {

constexpr std::chrono::seconds kConnectWait{5};

std::vector<int> numbers_of(std::span<const UniqueFd> descriptors) {
  std::vector<int> numbers;
  for (const UniqueFd& descriptor : descriptors) numbers.push_back(descriptor.get());
  return numbers;
}

}  // namespace

void StopSignal::fire() {
  const std::lock_guard lock(mutex_);
  fired_ = true;
  for (Guard* guard : guards_) guard->cancel_();
}

bool StopSignal::fired() const {
  const std::lock_guard lock(mutex_);
  return fired_;
}

StopSignal::Guard::Guard(StopSignal& signal, std::function<void()> cancel)
    : signal_(signal), cancel_(std::move(cancel)) {
  const std::lock_guard lock(signal_.mutex_);
  signal_.guards_.insert(this);
  if (signal_.fired_) cancel_();
}

StopSignal::Guard::~Guard() {
  const std::lock_guard lock(signal_.mutex_);
  signal_.guards_.erase(this);
}

template <class Response, class Request>
Result<Response> WorkerClient::call(const char* method, const Request& request, const Deadline& deadline,
                                    std::span<const int> descriptors) const {
  const auto client = FVMM_TRY(control::Client::connect(socket_, deadline.sooner(kConnectWait)), "worker");
  Response response;
  FVMM_TRY(client->call(std::string("fvmm.v1.Worker/") + method, request, response, deadline, descriptors));
  return response;
}

template <class Event, class Request>
Status WorkerClient::stream(const char* method, const Request& request, StopSignal& stop, const Deadline& deadline,
                            const std::function<bool(const Event&)>& event, std::span<const int> descriptors) const {
  const auto client = FVMM_TRY(control::Client::connect(socket_, deadline.sooner(kConnectWait)), "worker");
  const StopSignal::Guard guard(stop, [&client] { client->cancel(); });
  const auto on_message = [&](const std::string& bytes, bool) {
    Event message;
    return message.ParseFromString(bytes) && event(message);
  };
  return client->stream(std::string("fvmm.v1.Worker/") + method, request, on_message, deadline, descriptors);
}

Result<v1::WorkerInfo> WorkerClient::boot(const v1::WorkerBootRequest& request, std::span<const UniqueFd> nets,
                                          const Deadline& deadline) const {
  return call<v1::WorkerInfo>("Boot", request, deadline, numbers_of(nets));
}
Result<v1::WorkerInfo> WorkerClient::clone(const v1::WorkerCloneRequest& request, std::span<const UniqueFd> nets,
                                           const Deadline& deadline) const {
  return call<v1::WorkerInfo>("Clone", request, deadline, numbers_of(nets));
}
Result<v1::WorkerInfo> WorkerClient::resume(const Deadline& deadline) const {
  return call<v1::WorkerInfo>("Resume", v1::Empty(), deadline);
}
Result<v1::WorkerInfo> WorkerClient::pause(const Deadline& deadline) const {
  return call<v1::WorkerInfo>("Pause", v1::Empty(), deadline);
}
Result<v1::WorkerInfo> WorkerClient::balloon(const v1::BalloonRequest& request, const Deadline& deadline) const {
  return call<v1::WorkerInfo>("Balloon", request, deadline);
}
Status WorkerClient::stop(const Deadline& deadline) const {
  FVMM_TRY(call<v1::Empty>("Stop", v1::Empty(), deadline));
  return {};
}
Result<v1::WorkerInfo> WorkerClient::info(const Deadline& deadline) const {
  return call<v1::WorkerInfo>("Info", v1::Empty(), deadline);
}
Result<v1::TemplateInfo> WorkerClient::create_template(const v1::WorkerTemplateRequest& request,
                                                       const Deadline& deadline) const {
  return call<v1::TemplateInfo>("CreateTemplate", request, deadline);
}
Status WorkerClient::cancel_migration(const Deadline& deadline) const {
  FVMM_TRY(call<v1::Empty>("CancelMigration", v1::Empty(), deadline));
  return {};
}
Status WorkerClient::add_connection(const v1::WorkerAddConnectionRequest& request, int connection,
                                    const Deadline& deadline) const {
  const std::array<int, 1> descriptors{connection};
  FVMM_TRY(call<v1::Empty>("AddConnection", request, deadline, descriptors));
  return {};
}
Result<v1::WorkerInfo> WorkerClient::settle(bool resume, const Deadline& deadline) const {
  v1::WorkerSettleRequest request;
  request.set_resume(resume);
  return call<v1::WorkerInfo>("Settle", request, deadline);
}
Result<v1::SessionAnswer> WorkerClient::ask_session(const v1::SessionQuery& query, const Deadline& deadline) const {
  return call<v1::SessionAnswer>("AskSession", query, deadline);
}
Result<v1::ReplicaStatus> WorkerClient::start_replication(const v1::WorkerReplicateRequest& request,
                                                          const Deadline& deadline) const {
  return call<v1::ReplicaStatus>("StartReplication", request, deadline);
}
Result<v1::ReplicaStatus> WorkerClient::stop_replication(const Deadline& deadline) const {
  return call<v1::ReplicaStatus>("StopReplication", v1::Empty(), deadline);
}
Status WorkerClient::fence(const std::string& peer, const Deadline& deadline) const {
  v1::WorkerFenceRequest request;
  request.set_peer(peer);
  FVMM_TRY(call<v1::Empty>("Fence", request, deadline));
  return {};
}
Result<v1::ReplicaStatus> WorkerClient::replication_status(const Deadline& deadline) const {
  return call<v1::ReplicaStatus>("ReplicationStatus", v1::Empty(), deadline);
}
Result<v1::TemplateInfo> WorkerClient::seal_way_back(const v1::WorkerSealRequest& request,
                                                     const Deadline& deadline) const {
  return call<v1::TemplateInfo>("SealWayBack", request, deadline);
}
Status WorkerClient::poke(const v1::PokeRequest& request, const Deadline& deadline) const {
  FVMM_TRY(call<v1::Empty>("Poke", request, deadline));
  return {};
}

Status WorkerClient::watch(StopSignal& stop, const Deadline& deadline,
                           const std::function<bool(const v1::WorkerInfo&)>& event) const {
  return stream<v1::WorkerInfo>("Watch", v1::Empty(), stop, deadline, event);
}
Status WorkerClient::migrate(const v1::WorkerMigrateRequest& request, StopSignal& stop, const Deadline& deadline,
                             const std::function<bool(const v1::MigrateEvent&)>& event) const {
  return stream<v1::MigrateEvent>("Migrate", request, stop, deadline, event);
}
Status WorkerClient::receive(const v1::WorkerReceiveRequest& request, std::span<const UniqueFd> descriptors,
                             StopSignal& stop, const Deadline& deadline,
                             const std::function<bool(const v1::WorkerInfo&)>& event) const {
  return stream<v1::WorkerInfo>("Receive", request, stop, deadline, event, numbers_of(descriptors));
}

}  // namespace fvmm::daemon
