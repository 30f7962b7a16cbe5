// ConsoleServer: one client at a time on a unix stream socket, one thread, poll(2).
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "base/check.h"
#include "devices/console.h"

namespace fvmm::devices {
namespace {

constexpr int kBacklog = 4;
constexpr int kClientSendBytes = 1024 * 1024;  // a burst of a full output buffer passes a client that reads at all
constexpr std::string_view kBusy = "console is in use by another client\n";

}  // namespace

ConsoleServer::ConsoleServer(std::filesystem::path path, SerialOutput& output, Input input)
    : path_(std::move(path)), output_(output), input_(std::move(input)) {}

Result<std::unique_ptr<ConsoleServer>> ConsoleServer::start(const std::filesystem::path& path, SerialOutput& output,
                                                            Input input) {
  std::unique_ptr<ConsoleServer> server(new ConsoleServer(path, output, std::move(input)));
  server->listener_ = FVMM_TRY(BoundSocket::bind(path), "console " + path.string());
  FVMM_TRY(server->listener_.listen(kBacklog), "console " + path.string());
  server->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->stop_) return Error(Errc::kIo, "eventfd", errno);
  server->thread_ = std::thread([raw = server.get()] { raw->run(); });
  ::pthread_setname_np(server->thread_.native_handle(), "fvmm-console");
  return server;
}

ConsoleServer::~ConsoleServer() {
  stop();
}

void ConsoleServer::stop() {
  if (thread_.joinable()) {
    const std::uint64_t one = 1;
    FVMM_CHECK(::write(stop_.get(), &one, sizeof(one)) == sizeof(one), "an eventfd takes a 1");
    thread_.join();
  }
  listener_.close();
}

void ConsoleServer::run() {
  bool can_accept = true;
  while (true) {
    // Input that the guest has no room for holds back the client: its socket fills, and it waits.
    const bool wants_input = client_ && !input_ended_ && input_bytes_.empty();
    std::array<pollfd, 3> fds{};
    fds[0] = {.fd = stop_.get(), .events = POLLIN, .revents = 0};
    fds[1] = {.fd = can_accept ? listener_.fd() : -1, .events = POLLIN, .revents = 0};
    fds[2] = {.fd = client_.get(), .events = static_cast<short>(wants_input ? POLLIN : 0), .revents = 0};
    const bool retry = !input_bytes_.empty() || !can_accept;
    const int timeout_ms = retry ? static_cast<int>(kConsoleRetry.count()) : -1;
    if (::poll(fds.data(), fds.size(), timeout_ms) < 0) {
      FVMM_CHECK(errno == EINTR || errno == ENOMEM, "poll gets valid arguments");
      continue;
    }
    if (fds[0].revents != 0) break;
    if (client_) serve_client(fds[2].revents);
    can_accept = fds[1].revents == 0 || accept_client();
  }
  if (client_) drop_client();
}

bool ConsoleServer::accept_client() {
  auto taken = listener_.accept();
  if (!taken) return false;
  UniqueFd accepted = std::move(*taken);
  if (!accepted) return true;
  if (client_) {
    ::send(accepted.get(), kBusy.data(), kBusy.size(), MSG_NOSIGNAL);  // best effort; closing says it too
    refused_clients_.fetch_add(1);
    return true;
  }
  UniqueFd for_output(::fcntl(accepted.get(), F_DUPFD_CLOEXEC, 0));
  if (!for_output) return false;
  ::setsockopt(accepted.get(), SOL_SOCKET, SO_SNDBUF, &kClientSendBytes, sizeof(kClientSendBytes));  // a wish
  client_ = std::move(accepted);
  input_ended_ = false;
  has_client_.store(true);
  output_.attach(std::move(for_output));
  return true;
}

void ConsoleServer::serve_client(short events) {
  offer_input();
  if ((events & (POLLHUP | POLLERR)) != 0) {
    take_leave();
  } else if ((events & POLLIN) != 0) {
    if (!read_input()) drop_client();
    offer_input();
  }
}

// A client that closed may have left input in its socket: all of it is offered once.
void ConsoleServer::take_leave() {
  while (input_bytes_.empty() && read_input() && !input_bytes_.empty()) offer_input();
  drop_client();
}

bool ConsoleServer::read_input() {
  if (input_ended_ || !input_bytes_.empty()) return true;
  input_bytes_.resize(kConsoleInputBytesMax);
  const ssize_t got = ::recv(client_.get(), input_bytes_.data(), input_bytes_.size(), MSG_DONTWAIT);
  const int error = errno;
  input_bytes_.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  if (got == 0) input_ended_ = true;  // it may still listen: only POLLHUP says that it is gone
  return got >= 0 || error == EAGAIN || error == EINTR;
}

void ConsoleServer::offer_input() {
  if (input_bytes_.empty()) return;
  const std::size_t taken = input_(input_bytes_);
  FVMM_CHECK(taken <= input_bytes_.size(), "nobody takes more input than was offered");
  input_bytes_.erase(input_bytes_.begin(), input_bytes_.begin() + static_cast<std::ptrdiff_t>(taken));
}

void ConsoleServer::drop_client() {
  input_dropped_bytes_.fetch_add(input_bytes_.size());
  input_bytes_.clear();
  output_.detach();
  client_.reset();
  has_client_.store(false);
}

}  // namespace fvmm::devices
