// A whole template to a peer's store, over one connection: Hello, pages in ascending order, machine state, sealed.
#pragma once

#include <cstdint>
#include <functional>

#include "base/clock.h"
#include "base/result.h"
#include "memory/template_store.h"
#include "net/channel.h"
#include "net/stream.h"
#include "proto/peer.pb.h"

namespace fvmm::migration {

struct PushProgress {
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes_total = 0;
};

struct PushStats {
  bool already_there = false;
  std::uint64_t bytes_sent = 0;
  double duration_ms = 0;
};

/// Whether a template travels as its own pages over its parent, which the peer must have then. A squashed delta does
/// not: its parent is gone.
bool travels_as_delta(const memory::TemplateInfo& info);

/// Sends a sealed template, its memory alone, whatever disks it holds; returns once the peer has sealed it, or has it
/// already (same id and digest). The progress function returning false cancels. kAlreadyExists when the peer has
/// another template of that name.
Result<PushStats> push_template(const memory::OpenTemplate& source, const net::Endpoint& to, const Deadline& deadline,
                                const std::function<bool(const PushProgress&)>& progress);
/// The same over an open stream.
Result<PushStats> push_template(const memory::OpenTemplate& source, net::Stream& stream, const Deadline& deadline,
                                const std::function<bool(const PushProgress&)>& progress);

/// The receiving side, after the Hello. Answers on the stream; an error is told to the peer before it is returned.
Status receive_template(net::Stream& stream, const v1::PeerHello& hello, memory::TemplateStore& store,
                        const Deadline& deadline);

}  // namespace fvmm::migration
