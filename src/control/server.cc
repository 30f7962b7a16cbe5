#include "control/server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <optional>
#include <system_error>
#include <unordered_map>
#include <unordered_set>

#include "base/check.h"
#include "control/call_under_way.h"
#include "control/connection.h"
#include "control/pool.h"
#include "control/unix_socket.h"
#include "proto/rpc.pb.h"

// client ──frame──► io thread: FrameReader, checks, ──► pool thread: Handler ──frame──► client
//                    (run's thread)                      writes by itself; leftovers go to the io thread

namespace fvmm::control {
namespace {

constexpr std::chrono::milliseconds kAcceptRetry{100};  // after accept failed for want of descriptors or memory
constexpr int kAcceptsPerTurn = 16;

/// The group of the socket's file, where it has one.
std::optional<unsigned> group_of(int listener) {
  sockaddr_un name{};
  socklen_t bytes = sizeof name;
  struct stat info {};
  if (::getsockname(listener, reinterpret_cast<sockaddr*>(&name), &bytes) != 0) return std::nullopt;
  if (bytes <= offsetof(sockaddr_un, sun_path) || name.sun_path[0] == '\0') return std::nullopt;  // no file
  const std::string path(name.sun_path, ::strnlen(name.sun_path, sizeof name.sun_path));
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return info.st_gid;
}

class ServerOverSocket final : public Server, private ConnectionOwner {
 public:
  /// Throws what Asio throws when the kernel gives no epoll descriptor; open() turns that into an Error.
  ServerOverSocket(Options&& options, UniqueFd listener)
      : socket_(std::move(options.socket)),
        allow_(std::move(options.allow)),
        frame_wait_max_(options.frame_wait_max),
        group_(group_of(listener.get())),
        listener_(io_),
        accept_timer_(io_),
        work_(asio::make_work_guard(io_)) {
    struct stat info {};
    if (!socket_.empty() && ::stat(socket_.c_str(), &info) == 0) socket_inode_ = info.st_ino;
    listener_.assign(listener.get());
    (void)listener.release();
  }
  ~ServerOverSocket() override { remove_socket_file(); }
  ServerOverSocket(const ServerOverSocket&) = delete;
  ServerOverSocket& operator=(const ServerOverSocket&) = delete;
  ServerOverSocket(ServerOverSocket&&) = delete;
  ServerOverSocket& operator=(ServerOverSocket&&) = delete;

  void handle(std::string method, Handler handler) override {
    FVMM_CHECK(!running_, "methods are registered before run()");
    FVMM_CHECK(handlers_.emplace(std::move(method), std::move(handler)).second, "a method has one handler");
  }

  void run() override {
    FVMM_CHECK(!running_.exchange(true), "a server runs once");
    wait_acceptable();
    io_.run();
    pool_.join();
  }

  void stop() override {
    if (stopping_.exchange(true)) return;
    asio::post(io_, [this] { begin_stop(); });
  }

 private:
  // Accepting.
  void wait_acceptable();
  void accept_some();
  void admit(UniqueFd socket);
  [[nodiscard]] bool allowed(int socket, const PeerCredentials& peer) const;
  static void turn_away(int socket, const Error& error);

  // Calls.
  void received(const std::shared_ptr<Connection>& connection, Incoming&& frame) override;
  void dispatch(const std::shared_ptr<Connection>& connection, fvmm::v1::RpcRequest&& request, Incoming&& frame);
  void start_call(const std::shared_ptr<Connection>& connection, std::shared_ptr<CallUnderWay> call,
                  const Handler& handler, std::uint64_t number);
  void closed(const std::shared_ptr<Connection>& connection) override { connections_.erase(connection); }

  // Stopping.
  void begin_stop();
  void finish_stop();
  void remove_socket_file();

  asio::io_context io_{1};
  const std::filesystem::path socket_;  // empty when activated from outside
  ino_t socket_inode_ = 0;
  const std::function<bool(const PeerCredentials&)> allow_;
  const std::chrono::milliseconds frame_wait_max_;
  const std::optional<unsigned> group_;
  asio::posix::stream_descriptor listener_;
  asio::steady_timer accept_timer_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::unordered_map<std::string, Handler> handlers_;            // constant once running
  std::unordered_set<std::shared_ptr<Connection>> connections_;  // io thread
  bool stop_begun_ = false;                                      // io thread
  bool stop_finished_ = false;                                   // io thread
  std::atomic<bool> running_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<unsigned> calls_{0};  // places taken, of kCallsMax
  std::atomic<unsigned> handlers_under_way_{0};
  Pool pool_{kCallsMax};
};

void ServerOverSocket::wait_acceptable() {
  listener_.async_wait(asio::posix::stream_descriptor::wait_read, [this](const AsioError& error) {
    if (!error) accept_some();
  });
}

void ServerOverSocket::accept_some() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd socket(::accept4(listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      admit(std::move(socket));
      continue;
    }
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) break;
    accept_timer_.expires_after(kAcceptRetry);  // EMFILE and the like stay readable: waiting avoids spinning
    accept_timer_.async_wait([this](const AsioError& error) {
      if (!error) wait_acceptable();
    });
    return;
  }
  wait_acceptable();
}

void ServerOverSocket::admit(UniqueFd socket) {
  const int fd = socket.get();
  const Result<PeerCredentials> peer = peer_credentials(fd);
  if (!peer) return turn_away(fd, peer.error());
  if (!allowed(fd, *peer)) {
    return turn_away(fd,
                     Error(Errc::kPermissionDenied, fmt::format("uid {} may not use this socket; run as root or join "
                                                                "its group",
                                                                peer->uid)));
  }
  if (connections_.size() >= kConnectionsMax) {
    return turn_away(fd,
                     Error(Errc::kResourceExhausted, fmt::format("{} connections are open already", kConnectionsMax)));
  }
  auto connection = std::make_shared<Connection>(io_, std::move(socket), *peer, static_cast<ConnectionOwner&>(*this),
                                                 frame_wait_max_);
  if (const Status started = connection->start(); !started) return turn_away(fd, started.error());
  connections_.insert(std::move(connection));
}

bool ServerOverSocket::allowed(int socket, const PeerCredentials& peer) const {
  if (allow_) return allow_(peer);
  return peer.uid == 0 || peer.uid == ::geteuid() || (group_ && peer_has_group(socket, peer, *group_));
}

void ServerOverSocket::turn_away(int socket, const Error& error) {
  (void)send_some(socket,
                  encode_error(kConnectionCall, error));  // a fresh socket takes this much; a lost one is no matter
}

void ServerOverSocket::received(const std::shared_ptr<Connection>& connection, Incoming&& frame) {
  fvmm::v1::RpcRequest request;
  if (!request.ParseFromString(frame.body)) {
    return connection->refuse(Error(Errc::kInvalidArgument, "a frame that is no RpcRequest"));
  }
  if (request.call() == kConnectionCall) {
    return connection->refuse(Error(Errc::kInvalidArgument, "call numbers begin at 1"));
  }
  dispatch(connection, std::move(request), std::move(frame));
}

void ServerOverSocket::dispatch(const std::shared_ptr<Connection>& connection, fvmm::v1::RpcRequest&& request,
                                Incoming&& frame) {
  const std::uint64_t number = request.call();
  const auto answer = [&](Errc code, std::string text) {
    frame.descriptors.clear();  // closed before the client can know
    connection->push(encode_error(number, Error(code, std::move(text))));
  };
  const auto found = handlers_.find(request.method());
  if (found == handlers_.end()) {
    return answer(Errc::kUnimplemented, fmt::format("method \"{}\" is not known here", request.method()));
  }
  if (frame.descriptors_lost) {
    return answer(Errc::kInvalidArgument, fmt::format("{}: more than {} descriptors with one request", request.method(),
                                                      kDescriptorsPerCallMax));
  }
  if (stopping_) return answer(Errc::kUnavailable, "the server is stopping");
  if (calls_ >= kCallsMax)
    return answer(Errc::kResourceExhausted, fmt::format("{} calls are under way already", kCallsMax));
  if (!connection->begin_call(number)) {
    return connection->refuse(Error(Errc::kInvalidArgument, fmt::format("call {} is still under way", number)));
  }
  auto call = std::make_shared<CallUnderWay>(connection, std::move(request), std::move(frame.descriptors), stopping_);
  start_call(connection, std::move(call), found->second, number);
}

void ServerOverSocket::start_call(const std::shared_ptr<Connection>& connection, std::shared_ptr<CallUnderWay> call,
                                  const Handler& handler, std::uint64_t number) {
  ++calls_;
  ++handlers_under_way_;
  const bool taken = pool_.submit([this, call = std::move(call), &handler]() mutable {
    call->serve(handler, [this] { --calls_; });
    call.reset();
    if (--handlers_under_way_ == 0 && stopping_) asio::post(io_, [this] { finish_stop(); });
  });
  if (taken) return;
  --calls_;
  --handlers_under_way_;
  connection->end_call(number);
  connection->push(encode_error(number, Error(Errc::kResourceExhausted, "no thread can be started for the call")));
}

void ServerOverSocket::begin_stop() {
  stop_begun_ = true;
  remove_socket_file();  // first: whoever starts in our place must not find a file and nobody behind it
  AsioError ignored;
  listener_.close(ignored);
  accept_timer_.cancel();
  for (const auto& connection : connections_) {
    connection->stop_reading();
    connection->wake();
  }
  finish_stop();
}

void ServerOverSocket::finish_stop() {
  if (!stop_begun_ || stop_finished_ || handlers_under_way_ != 0) return;
  stop_finished_ = true;
  const std::vector<std::shared_ptr<Connection>> open(connections_.begin(), connections_.end());  // draining may erase
  for (const auto& connection : open) connection->drain();
  work_.reset();
}

void ServerOverSocket::remove_socket_file() {
  struct stat info {};
  if (socket_.empty() || socket_inode_ == 0) return;
  if (::lstat(socket_.c_str(), &info) == 0 && info.st_ino == socket_inode_) ::unlink(socket_.c_str());
  socket_inode_ = 0;
}

}  // namespace

Result<std::unique_ptr<Server>> Server::open(Options options) {
  UniqueFd listener = std::move(options.listener);
  if (listener) {
    options.socket.clear();  // made, and removed, by whoever activated us
    const int flags = ::fcntl(listener.get(), F_GETFL);
    if (flags < 0 || ::fcntl(listener.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
      return Error(Errc::kIo, "control socket from outside", errno);
    }
  } else {
    listener = FVMM_TRY(listen_unix(options.socket));
  }
  try {
    return std::unique_ptr<Server>(std::make_unique<ServerOverSocket>(std::move(options), std::move(listener)));
  } catch (const std::system_error& error) {
    return Error(Errc::kIo, "event loop of the control socket", error.code().value());
  }
}

Result<std::string> parse_error(std::string_view method) {
  return Error(Errc::kInvalidArgument, fmt::format("{}: the request is not the method's message", method));
}

}  // namespace fvmm::control
