// Where connections to a peer come from: TCP in production, scripted pipes in tests.
#pragma once

#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "net/channel.h"
#include "net/stream.h"

namespace fvmm::migration {

inline constexpr std::uint32_t kPeerVersion = 2;
inline constexpr std::size_t kHintRangesMax = 4096;  // of PeerHello.expected

/// Opens connections to one peer. Thread: any.
class Transport {
 public:
  Transport() = default;
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  Transport(Transport&&) = delete;
  Transport& operator=(Transport&&) = delete;
  virtual Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) = 0;
};

class TcpTransport final : public Transport {
 public:
  explicit TcpTransport(net::Endpoint to) : to_(std::move(to)) {}
  Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) override {
    return std::unique_ptr<net::Stream>(FVMM_TRY(net::Channel::connect(to_, deadline)));
  }

 private:
  net::Endpoint to_;
};

}  // namespace fvmm::migration
