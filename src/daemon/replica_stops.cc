#include "daemon/replica_stops.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

#include "base/file.h"
#include "daemon/records.h"
#include "migration/transport.h"
#include "net/channel.h"
#include "net/frame.h"

namespace fvmm::daemon {
namespace fs = std::filesystem;
namespace {

constexpr const char* kKind = ".pb";

std::string key_of(const v1::ReplicaStop& stop) {
  const auto vm = Id::from_bytes(stop.vm()).value_or(Id{});
  const auto replication = Id::from_bytes(stop.replication()).value_or(Id{});
  return vm.hex() + "-" + replication.hex();
}

ReplicaStops::Outcome outcome_of(const v1::ReplicaStop& stop, const Result<v1::PeerMessage>& answer) {
  using Told = ReplicaStops::Told;
  if (!answer) return {Told::kLater, answer.error().message()};
  if (answer->kind() == v1::PEER_REPLICA_FORGOTTEN) return {Told::kYes, ""};
  const std::string why = fmt::format("peer {}: {}", stop.peer(), answer->reason());
  if (answer->kind() == v1::PEER_FENCED) return {Told::kRecovered, why};
  const bool unknown =
      answer->kind() == v1::PEER_REJECTED && answer->code() == static_cast<std::uint32_t>(Errc::kInvalidArgument);
  return {unknown ? Told::kNotUnderstood : Told::kLater, why};
}

}  // namespace

Result<std::unique_ptr<ReplicaStops>> ReplicaStops::open(Parts parts) {
  FVMM_TRY(make_directories(parts.directory), "ends of replications");
  std::unique_ptr<ReplicaStops> made(new ReplicaStops(std::move(parts)));
  FVMM_TRY(made->load());
  made->thread_ = std::thread([m = made.get()] { m->loop(); });
  return made;
}

Status ReplicaStops::load() {
  std::error_code error;
  for (fs::directory_iterator it(parts_.directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() != kKind) continue;  // a temporary file of a write that did not end
    const auto content = FVMM_TRY(read_file(it->path(), kRecordBytesMax));
    v1::ReplicaStop stop;
    if (!stop.ParseFromString(content)) {
      return Error(Errc::kDataLoss, fmt::format("{} does not name the end of a replication: remove it, and look "
                                                "whether its peer still has a replica",
                                                it->path().string()));
    }
    notices_[it->path().stem()] = {std::move(stop), std::chrono::steady_clock::now(), parts_.first};
  }
  if (error) return Error(Errc::kIo, parts_.directory.string() + ": " + error.message());
  return {};
}

ReplicaStops::~ReplicaStops() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::size_t ReplicaStops::untold() const {
  const std::lock_guard lock(mutex_);
  return notices_.size();
}

Result<ReplicaStops::Outcome> ReplicaStops::tell(const v1::ReplicaStop& stop) {
  const std::string key = key_of(stop);
  std::unique_lock lock(mutex_);
  if (!notices_.contains(key) && notices_.size() >= kUntoldStopsMax) {
    lock.unlock();
    Outcome once = outcome_of(stop, parts_.tell(stop));
    if (once.told == Told::kLater) {
      once.told = Told::kNotUnderstood;
      once.why += fmt::format("; and {} peers are waited for already, so it is not tried again", kUntoldStopsMax);
    }
    return once;
  }
  changed_.wait(lock, [&] { return !notices_.contains(key) || !notices_.at(key).telling; });
  FVMM_TRY(replace_file(file_of(key), stop.SerializeAsString()), "record the end of the replication");
  notices_[key] = {stop, std::chrono::steady_clock::now(), parts_.first};
  return attempt(key, lock);
}

// Without the lock while the peer is asked; nobody else touches the notice meanwhile.
ReplicaStops::Outcome ReplicaStops::attempt(const std::string& key, std::unique_lock<std::mutex>& lock) {
  Notice& notice = notices_.at(key);
  notice.telling = true;
  lock.unlock();
  Outcome outcome = outcome_of(notice.stop, parts_.tell(notice.stop));
  lock.lock();
  notice.telling = false;
  notice.due = std::chrono::steady_clock::now() + notice.pause;
  notice.pause = std::min(notice.pause * 2, kTellLast);
  if (outcome.told != Told::kLater) forget(key);
  changed_.notify_all();
  return outcome;
}

// With the lock. A file that stays costs one more message, whose answer is the same.
void ReplicaStops::forget(const std::string& key) {
  const Status removed = remove_file(file_of(key));
  if (!removed) spdlog::warn("{}: {}", file_of(key).string(), removed.error().message());
  notices_.erase(key);
}

void ReplicaStops::supersede(const std::string& vm_id, const std::string& peer) {
  std::unique_lock lock(mutex_);
  const auto ours = [&](const auto& item) { return item.second.stop.vm() == vm_id && item.second.stop.peer() == peer; };
  for (;;) {
    const auto found = std::ranges::find_if(notices_, ours);
    if (found == notices_.end()) return;
    const std::string key = found->first;
    if (!found->second.telling) {
      forget(key);
      continue;
    }
    changed_.wait(lock);  // its attempt ends within kTellWait
  }
}

void ReplicaStops::loop() {
  ::pthread_setname_np(::pthread_self(), "replica-stops");
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto now = std::chrono::steady_clock::now();
    auto next = now + std::chrono::milliseconds(kTellLast);
    std::optional<std::string> due;
    for (const auto& [key, notice] : notices_) {
      if (notice.telling) continue;
      if (notice.due <= now) due = key;
      next = std::min(next, notice.due);
    }
    if (!due) {
      changed_.wait_until(lock, next);
      continue;
    }
    const v1::ReplicaStop stop = notices_.at(*due).stop;
    const Outcome outcome = attempt(*due, lock);
    const auto age = std::chrono::nanoseconds(system_clock().realtime_ns() - stop.realtime_ns());
    if (outcome.told == Told::kLater && age > kTellDays) {
      spdlog::warn("replication of VM {}: {} was never told of its end ({}) and is given up", stop.name(), stop.peer(),
                   outcome.why);
      if (notices_.contains(*due)) forget(*due);
    }
    if (outcome.told == Told::kLater) continue;
    spdlog::info("replication of VM {}: {}", stop.name(),
                 outcome.told == Told::kYes ? stop.peer() + " has dropped what it held" : outcome.why);
    if (outcome.told != Told::kRecovered || !parts_.on_recovered) continue;
    lock.unlock();
    parts_.on_recovered(stop);
    lock.lock();
  }
}

Result<v1::PeerMessage> tell_stop(const v1::ReplicaStop& stop, const std::string& from, const Deadline& deadline) {
  const auto stream = FVMM_TRY(net::Channel::connect(FVMM_TRY(net::Endpoint::parse(stop.peer())), deadline));
  v1::PeerHello hello;
  hello.set_version(migration::kPeerVersion);
  hello.set_purpose(v1::FORGET_REPLICA);
  hello.mutable_vm()->set_id(stop.vm());
  hello.mutable_vm()->set_name(stop.name());
  hello.set_replication(stop.replication());
  hello.set_fencing_token(stop.fencing_token());
  *hello.mutable_template_() = stop.template_();
  hello.set_from(from);
  FVMM_TRY(net::send_message(*stream, net::FrameType::kHello, hello, deadline), "tell the peer");
  v1::PeerMessage answer;
  FVMM_TRY(net::receive_message(*stream, net::FrameType::kControl, answer, deadline), "tell the peer");
  return answer;
}

}  // namespace fvmm::daemon
