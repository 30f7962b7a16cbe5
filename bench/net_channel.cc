// What a Channel costs beside the plainest C sender and receiver, over loopback TCP, in the same run, alternating.
//   net_channel [MiB per turn, default 256] [turns, default 5]
// Throughput: plain = write(2)/read(2) of contiguous 1 MiB; channel = 256 scattered 4 KiB parts per 1 MiB at both ends.
// Both receive into memory never touched before. Latency: ping-pong of 64 bytes. Prints one JSON object.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/units.h"
#include "net/channel.h"

namespace {

using fvmm::Deadline;
using fvmm::kMiB;
using fvmm::kPageBytes;
using fvmm::UniqueFd;
using fvmm::net::Channel;
using fvmm::net::Listener;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kSourceBytes = 64 * kMiB;
constexpr std::size_t kPartsPerChunk = kMiB / kPageBytes;
constexpr std::size_t kPingBytes = 64;
constexpr int kPings = 3000;

Deadline patient() {
  return Deadline::after(std::chrono::minutes(2));
}

/// Untouched anonymous memory of 4 KiB pages.
std::byte* fresh(std::uint64_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  FVMM_CHECK(memory != MAP_FAILED, "mmap");
  (void)::madvise(memory, bytes, MADV_NOHUGEPAGE);
  return static_cast<std::byte*>(memory);
}

std::pair<UniqueFd, UniqueFd> plain_pair() {
  const UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof at;
  FVMM_CHECK(::bind(server.get(), reinterpret_cast<sockaddr*>(&at), sizeof at) == 0, "bind");
  FVMM_CHECK(::listen(server.get(), 1) == 0, "listen");
  FVMM_CHECK(::getsockname(server.get(), reinterpret_cast<sockaddr*>(&at), &bytes) == 0, "getsockname");
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  FVMM_CHECK(::connect(client.get(), reinterpret_cast<sockaddr*>(&at), sizeof at) == 0, "connect");
  UniqueFd accepted(::accept4(server.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const int on = 1;
  for (const int fd : {client.get(), accepted.get()}) {
    FVMM_CHECK(::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
  }
  return {std::move(client), std::move(accepted)};
}

std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>> channel_pair() {
  auto listener = Listener::open({.host = "127.0.0.1", .port = 0});
  auto client = Channel::connect(listener.value().bound(), patient());
  auto server = Channel::adopt(listener->accept(patient()).value());
  return {std::move(client.value()), std::move(server.value())};
}

/// The i-th 1 MiB as 256 parts, no two adjacent: every other page of a 2 MiB block, even chunks the even pages.
void scatter(std::byte* base, std::uint64_t chunk, std::uint64_t chunks, std::array<iovec, kPartsPerChunk>& parts) {
  std::byte* block = base + (chunk / 2 * 2 % chunks) * kMiB;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    parts[i] = {block + (2 * i + chunk % 2) * kPageBytes, kPageBytes};
  }
}

double mb_per_second(std::uint64_t chunks, Clock::duration took) {
  return static_cast<double>(chunks * kMiB) / 1e6 / std::chrono::duration<double>(took).count();
}

double plain_turn(std::byte* source, std::uint64_t chunks) {
  auto [client, server] = plain_pair();
  std::byte* into = fresh(chunks * kMiB);
  const auto began = Clock::now();
  std::jthread sender([&, fd = client.get()] {
    for (std::uint64_t i = 0; i < chunks; ++i) {
      const std::byte* from = source + i * kMiB % kSourceBytes;
      for (std::size_t at = 0; at < kMiB;) {
        const ssize_t n = ::write(fd, from + at, kMiB - at);
        FVMM_CHECK(n > 0, "write");
        at += static_cast<std::size_t>(n);
      }
    }
  });
  for (std::uint64_t at = 0; at < chunks * kMiB;) {
    const ssize_t n = ::read(server.get(), into + at, std::min(kMiB - at % kMiB, chunks * kMiB - at));
    FVMM_CHECK(n > 0, "read");
    at += static_cast<std::uint64_t>(n);
  }
  const auto took = Clock::now() - began;
  sender.join();
  ::munmap(into, chunks * kMiB);
  return mb_per_second(chunks, took);
}

double channel_turn(std::byte* source, std::uint64_t chunks) {
  auto [client, server] = channel_pair();
  std::byte* into = fresh(chunks * kMiB);
  const auto began = Clock::now();
  std::jthread sender([&, &channel = *client] {
    std::array<iovec, kPartsPerChunk> parts{};
    for (std::uint64_t i = 0; i < chunks; ++i) {
      scatter(source, i, kSourceBytes / kMiB, parts);
      FVMM_CHECK(channel.start_send(parts, patient()).ok(), "send");
    }
    FVMM_CHECK(channel.finish_send(patient()).ok(), "send");
  });
  std::array<iovec, kPartsPerChunk> parts{};
  for (std::uint64_t i = 0; i < chunks; ++i) {
    scatter(into, i, chunks, parts);
    FVMM_CHECK(server->receive(parts, patient()).ok(), "receive");
  }
  const auto took = Clock::now() - began;
  sender.join();
  ::munmap(into, chunks * kMiB);
  return mb_per_second(chunks, took);
}

using Bytes = std::span<std::byte>;

/// Round trips in µs, sorted. `send` and `receive` of each side move one message.
std::vector<double> ping_pong(const std::function<void(Bytes)>& ping, const std::function<void(Bytes)>& pong,
                              const std::function<void()>& echo) {
  std::jthread other([&] {
    for (int i = 0; i < kPings; ++i) echo();
  });
  std::vector<double> took_us;
  std::array<std::byte, kPingBytes> message{};
  for (int i = 0; i < kPings; ++i) {
    const auto began = Clock::now();
    ping(message);
    pong(message);
    took_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - began).count());
  }
  std::sort(took_us.begin(), took_us.end());
  return took_us;
}

std::vector<double> plain_pings() {
  auto [client, server] = plain_pair();
  auto send = [](int fd, Bytes bytes) {
    FVMM_CHECK(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()), "send");
  };
  auto receive = [](int fd, Bytes bytes) {
    FVMM_CHECK(::recv(fd, bytes.data(), bytes.size(), MSG_WAITALL) == static_cast<ssize_t>(bytes.size()), "recv");
  };
  return ping_pong([&, fd = client.get()](Bytes bytes) { send(fd, bytes); },
                   [&, fd = client.get()](Bytes bytes) { receive(fd, bytes); },
                   [&, fd = server.get()] {
                     std::array<std::byte, kPingBytes> message{};
                     receive(fd, message);
                     send(fd, message);
                   });
}

std::vector<double> channel_pings() {
  auto [client, server] = channel_pair();
  return ping_pong(
      [&, &channel = *client](Bytes bytes) { FVMM_CHECK(channel.send(bytes, patient()).ok(), "send"); },
      [&, &channel = *client](Bytes bytes) { FVMM_CHECK(channel.receive(bytes, patient()).ok(), "receive"); },
      [&, &channel = *server] {
        std::array<std::byte, kPingBytes> message{};
        FVMM_CHECK(channel.receive(Bytes(message), patient()).ok(), "receive");
        FVMM_CHECK(channel.send(Bytes(message), patient()).ok(), "send");
      });
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t mib = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 256;
  const int turns = argc > 2 ? std::atoi(argv[2]) : 5;
  if (mib < 2 || mib % 2 != 0 || mib > 16'384 || turns < 1 || turns > 1000) {
    std::fprintf(stderr, "usage: net_channel [MiB per turn, even, 2 to 16384] [turns, 1 to 1000]\n");
    return 2;
  }
  std::byte* source = fresh(kSourceBytes);
  for (std::uint64_t at = 0; at < kSourceBytes; ++at) source[at] = static_cast<std::byte>(at * 31 + at / 4096);
  (void)plain_turn(source, mib);  // warms the machine's free memory, so that no side pays for getting it from its host
  std::vector<double> plain;
  std::vector<double> channel;
  std::vector<double> ratio;
  for (int turn = 0; turn < turns; ++turn) {
    plain.push_back(plain_turn(source, mib));
    channel.push_back(channel_turn(source, mib));
    ratio.push_back(channel.back() / plain.back());
  }
  const auto plain_us = plain_pings();
  const auto channel_us = channel_pings();
  std::printf(
      "{\"bench\": \"net_channel\", \"mib_per_turn\": %llu, \"turns\": %d,\n"
      " \"plain_mb_s_median\": %.0f, \"channel_mb_s_median\": %.0f, \"ratio_median\": %.3f,\n"
      " \"plain_mb_s_best\": %.0f, \"channel_mb_s_best\": %.0f,\n"
      " \"plain_ping_us_p50\": %.1f, \"plain_ping_us_p99\": %.1f,\n"
      " \"channel_ping_us_p50\": %.1f, \"channel_ping_us_p99\": %.1f}\n",
      static_cast<unsigned long long>(mib), turns, median(plain), median(channel), median(ratio),
      *std::max_element(plain.begin(), plain.end()), *std::max_element(channel.begin(), channel.end()),
      plain_us[kPings / 2], plain_us[kPings * 99 / 100], channel_us[kPings / 2], channel_us[kPings * 99 / 100]);
  return 0;
}
