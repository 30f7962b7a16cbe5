// Socket files, descriptors in passing, and a client without a server.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>

#include "base/scope_exit.h"
#include "control/frame.h"
#include "control/unix_socket.h"
#include "proto/control.pb.h"
#include "proto/rpc.pb.h"
#include "support/served.h"

namespace fvmm::control {
namespace {

using test::Served;
using test::soon;
using test::TemporaryDirectory;
using v1::Empty;
using v1::VmName;

UniqueFd memory_file(std::string_view content) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(fd.get(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
  return fd;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

void with_reader(Server& server) {  // answers with the first byte of each descriptor
  server.unary<Empty, VmName>("Read", [](Call& call, const Empty&) -> Result<VmName> {
    VmName answer;
    for (const UniqueFd& fd : call.take_descriptors()) {
      char byte = '?';
      EXPECT_EQ(::pread(fd.get(), &byte, 1, 0), 1);
      EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
      answer.mutable_name()->push_back(byte);
    }
    EXPECT_TRUE(call.take_descriptors().empty());
    return answer;
  });
  server.unary<Empty, VmName>("Ignore", [](Call&, const Empty&) -> Result<VmName> { return VmName(); });
}

TEST(ControlSocket, DescriptorsArriveInOrderWithTheirRequest) {
  Served served(with_reader);
  const UniqueFd a = memory_file("a");
  const UniqueFd b = memory_file("b");
  const UniqueFd c = memory_file("c");
  const auto client = served.client();
  VmName answer;
  const int first[] = {a.get(), b.get()};
  const int second[] = {c.get()};
  ASSERT_TRUE(client->call("Read", Empty(), answer, soon(), first).ok());
  EXPECT_EQ(answer.name(), "ab");
  ASSERT_TRUE(client->call("Read", Empty(), answer, soon(), second).ok());
  EXPECT_EQ(answer.name(), "c");
  ASSERT_TRUE(client->call("Read", Empty(), answer, soon()).ok());
  EXPECT_EQ(answer.name(), "");
}

TEST(ControlSocket, DescriptorsUpToTheLimitPassAndTheClientRefusesMore) {
  Served served(with_reader);
  const UniqueFd a = memory_file("a");
  const std::vector<int> most(kDescriptorsPerCallMax, a.get());
  const std::vector<int> more(kDescriptorsPerCallMax + 1, a.get());
  const auto client = served.client();
  VmName answer;
  ASSERT_TRUE(client->call("Read", Empty(), answer, soon(), most).ok());
  EXPECT_EQ(answer.name(), std::string(kDescriptorsPerCallMax, 'a'));
  const Status status = client->call("Read", Empty(), answer, soon(), more);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kInvalidArgument);
}

TEST(ControlSocket, ServerRefusesARequestWithMoreDescriptorsAndKeepsNone) {
  Served served(with_reader);
  const UniqueFd a = memory_file("a");
  const UniqueFd socket = std::move(*connect_unix(served.socket(), soon()));
  v1::RpcRequest request;
  request.set_call(1);
  request.set_method("Read");
  const std::string frame = encode_frame(request);
  // Within one sendmsg, and in two, so that both ways to count are taken.
  const std::vector<int> many(kDescriptorsPerCallMax - 1, a.get());
  ASSERT_EQ(send_some(socket.get(), std::string_view(frame).substr(0, 6), many), 6);
  ASSERT_GT(send_some(socket.get(), std::string_view(frame).substr(6), many), 0);
  auto client = std::move(*Client::adopt(UniqueFd(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0))));
  VmName answer;
  const Status status = client->call("Read", Empty(), answer, soon());  // its number is 1 too: the refusal answers it
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kInvalidArgument);
  EXPECT_NE(status.error().message().find("descriptors"), std::string::npos);
}

TEST(ControlSocket, DescriptorsThatNoHandlerTakesAreClosed) {
  Served served(with_reader);
  const UniqueFd a = memory_file("a");
  const int descriptors[] = {a.get()};
  const auto client = served.client();
  VmName answer;
  ASSERT_TRUE(client->call("Ignore", Empty(), answer, soon(), descriptors).ok());
  const std::size_t before = open_descriptors();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(client->call("Ignore", Empty(), answer, soon(), descriptors).ok());
    EXPECT_FALSE(client->call("Unknown", Empty(), answer, soon(), descriptors).ok());
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(ControlSocket, FileHasMode0660WhateverTheUmaskAndEndsWithTheServer) {
  const mode_t old = ::umask(0077);
  const ScopeExit restore([old] { ::umask(old); });
  Served served(with_reader);
  struct stat info {};
  ASSERT_EQ(::stat(served.socket().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0660U);
  served.stop();
  EXPECT_NE(::stat(served.socket().c_str(), &info), 0);
}

TEST(ControlSocket, SocketInUseIsNamed) {
  Served served(with_reader);
  const auto second = listen_unix(served.socket());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code(), Errc::kAlreadyExists);
  EXPECT_NE(second.error().message().find(served.socket().string()), std::string::npos);
  VmName answer;
  EXPECT_TRUE(served.client()->call("Ignore", Empty(), answer, soon()).ok());
}

TEST(ControlSocket, AbandonedSocketFileIsReplaced) {
  TemporaryDirectory directory;
  const auto path = directory.path() / "s";
  { const UniqueFd listener = std::move(*listen_unix(path)); }  // closed, its file stays
  ASSERT_TRUE(std::filesystem::exists(path));
  const auto again = listen_unix(path);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_TRUE(connect_unix(path, soon()).ok());
}

TEST(ControlSocket, FileThatIsNoSocketIsLeftAlone) {
  TemporaryDirectory directory;
  const auto path = directory.path() / "precious";
  std::ofstream(path) << "data";
  const auto listener = listen_unix(path);
  ASSERT_FALSE(listener.ok());
  EXPECT_EQ(listener.error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(std::filesystem::file_size(path), 4U);
}

TEST(ControlSocket, ListenerFromOutsideIsServedAndItsFileLeft) {
  TemporaryDirectory directory;
  const auto path = directory.path() / "activated";
  Server::Options options;
  options.listener = std::move(*listen_unix(path));
  auto server = std::move(*Server::open(std::move(options)));
  with_reader(*server);
  std::thread thread([&] { server->run(); });
  VmName answer;
  EXPECT_TRUE((*Client::connect(path, soon()))->call("Ignore", Empty(), answer, soon()).ok());
  server->stop();
  thread.join();
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST(ControlSocket, PathLongerThanAnAddressHoldsIsInvalid) {
  const std::filesystem::path longest = "/tmp/" + std::string(sizeof(sockaddr_un::sun_path) - 1 - 5, 'x');
  const std::filesystem::path longer = longest.string() + "x";
  EXPECT_EQ(connect_unix(longest, soon()).error().code(), Errc::kUnavailable);
  EXPECT_EQ(connect_unix(longer, soon()).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(listen_unix(longer).error().code(), Errc::kInvalidArgument);
}

TEST(ControlSocket, MissingServerIsNamedWithTheFix) {
  TemporaryDirectory directory;
  const auto path = directory.path() / "nobody.sock";
  const auto client = Client::connect(path, soon());
  ASSERT_FALSE(client.ok());
  EXPECT_EQ(client.error().code(), Errc::kUnavailable);
  EXPECT_NE(client.error().message().find(path.string()), std::string::npos);
  EXPECT_NE(client.error().message().find("is fvmmd running?"), std::string::npos);
}

TEST(ControlSocket, ServerThatDiesInACallLeavesTheOutcomeUnknown) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  auto client = std::move(*Client::adopt(UniqueFd(ends[0])));
  UniqueFd server(ends[1]);
  std::thread dying([&] {
    char byte = 0;
    EXPECT_EQ(::recv(server.get(), &byte, 1, 0), 1);
    server.reset();
  });
  Empty empty;
  const Status status = client->call("Anything", empty, empty, soon());
  dying.join();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kUnavailable);
  EXPECT_FALSE(client->answered());
}

TEST(ControlSocket, ServerThatTalksNonsenseIsInternal) {
  const v1::RpcResponse none;
  v1::RpcResponse future;
  future.set_call(99);
  const std::string long_frame("\xff\xff\xff\xff", 4);
  const std::string garbage("\x02\x00\x00\x00\xff\xff", 6);
  for (const std::string& bytes : {long_frame, garbage, encode_frame(future)}) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    const UniqueFd server(ends[1]);
    ASSERT_EQ(::send(server.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    auto client = std::move(*Client::adopt(UniqueFd(ends[0])));
    Empty empty;
    EXPECT_EQ(client->call("Anything", empty, empty, soon()).error().code(), Errc::kInternal);
    EXPECT_EQ(client->call("Anything", empty, empty, soon()).error().code(), Errc::kUnavailable);
  }
}

}  // namespace
}  // namespace fvmm::control
