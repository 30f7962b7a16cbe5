// Continuous templating, the sending side: generation after generation of a running VM to a peer. docs/replication.md.
//
//   capture thread:  due? ─► guest in hand ─► chase ─► buffer ─► end of generation          (policy.h, capture.h)
//   sender thread:   connect, Hello ─► REPLICA_READY ─► pages, GENERATION ─► HELD ─► SEALED ─► next
//        └── any error: the buffer is emptied, what was not sealed is dirty again, connect anew ◄──┘
//
// A generation is against the one before it; the first is against the template that the VM runs on, or, on the zero
// template, against nothing.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/id.h"
#include "base/result.h"
#include "memory/digest.h"
#include "migration/capture_buffer.h"
#include "migration/machine.h"
#include "migration/pacer.h"
#include "migration/page_sender.h"
#include "migration/policy.h"
#include "migration/steps.h"
#include "migration/transport.h"
#include "proto/control.pb.h"

namespace fvmm::migration {

inline constexpr std::uint64_t kReplicateBuffer = 256 * kMiB;     // when nobody says otherwise
inline constexpr std::chrono::seconds kReplicaConnectWait{10};    // for connection, Hello and READY
inline constexpr std::chrono::seconds kReplicaAnswerWait{120};    // for HELD and SEALED: the peer's disk may be slow
inline constexpr std::chrono::milliseconds kReconnectFirst{100};  // then twice as long each time
inline constexpr std::chrono::seconds kReconnectLast{5};
inline constexpr std::chrono::seconds kRefusedLast{30};       // where the peer has no room: that ends less soon
inline constexpr std::chrono::milliseconds kPolicyLook{10};   // between two looks at the dirt, at the least
inline constexpr std::chrono::milliseconds kSenderLook{200};  // between two looks at an idle link
inline constexpr std::size_t kSendPages = 256;                // taken from the buffer at a time

struct ReplicationOptions {
  std::string peer;  // HOST:PORT, for status and errors
  std::string from;  // our daemon's peer address
  Id replication;    // what this one is called, at both ends
  ReplicationPolicy policy;
  std::uint64_t buffer_bytes = kReplicateBuffer;
  std::uint64_t bandwidth_bytes_s = 0;
  std::string peer_test_hook;  // travels in the Hello
  StepHook on_step;
  /// Somebody has recovered the VM at the peer: it must stop running here at once, whoever has the guest in hand. An
  /// error is tried again. Thread: the sender's.
  std::function<Status()> on_fenced;
  /// Somebody waits for the guest: a capture gives up and begins again later. Thread: the capture's.
  std::function<bool()> wanted;
};

/// Runs a function with the guest in hand; its own error when the guest is elsewhere. Thread: any.
using WithGuest = std::function<Status(const std::function<Status(Guest&)>&)>;

/// One VM's replication. start() and stop() with no guest in hand; status() from any thread.
class Replication {
 public:
  /// Begins: everything that differs from the template is due. The transport outlives it.
  static Result<std::unique_ptr<Replication>> start(ReplicationOptions options, WithGuest with_guest,
                                                    std::unique_ptr<Transport> transport);
  ~Replication();
  Replication(const Replication&) = delete;
  Replication& operator=(const Replication&) = delete;
  Replication(Replication&&) = delete;
  Replication& operator=(Replication&&) = delete;

  /// Ends both threads; the guest stops collecting. The peer keeps what it has sealed. Once; more does nothing.
  void stop();
  [[nodiscard]] v1::ReplicaStatus status() const;

 private:
  struct Point {  // a generation that has been captured and is not known to be sealed
    std::uint64_t number = 0;
    memory::Digest digest;  // none() until it was sent
    memory::Bitmap pages;
    SteadyTime instant;
  };
  Replication(ReplicationOptions options, WithGuest with_guest, std::unique_ptr<Transport> transport,
              std::unique_ptr<CaptureBuffer> buffer);
  Status begin(Guest& guest);
  // replication_capture.cc: the capture thread
  void capture_loop();
  bool wait_until_due();
  Status look(Guest& guest);
  Status capture(Guest& guest);
  Status give_back(Guest& guest);
  [[nodiscard]] ReplicationPace pace() const;
  // replication.cc: the sender thread
  void send_loop();
  Status session();
  v1::PeerHello hello() const;
  Status agree(const v1::PeerMessage& ready);
  Status send_items();
  Status send_pages(PageSender& sender, const std::vector<BufferedPage>& pages);
  Status send_end(PageSender& sender, const GenerationEnd& end);
  memory::Digest digest_of(const memory::Digest& parent, std::uint64_t& pages);
  Status await(v1::PeerKind wanted, std::uint64_t number);
  Status step(std::string_view name);
  void lose_link(const Error& error, std::chrono::milliseconds next_try);
  void acknowledge(const Point& point);  // mutex_ held
  void fence();
  void set_state(std::string_view state, std::string detail);

  const ReplicationOptions options_;
  const WithGuest with_guest_;
  const std::unique_ptr<Transport> transport_;
  const std::unique_ptr<CaptureBuffer> buffer_;
  Pacer pacer_;
  v1::VmConfig config_;
  v1::TemplateRef base_;
  v1::CpuIdentity cpu_;
  std::uint64_t fencing_token_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  v1::ReplicaStatus status_;               // mutex_; what is counted elsewhere is filled in by status()
  bool stopping_ = false;                  // mutex_
  bool connected_ = false;                 // mutex_
  bool start_over_ = false;                // mutex_; the next generation holds all that differs from the template
  std::optional<memory::Bitmap> lost_;     // mutex_; pages of generations that were never sealed
  std::deque<Point> in_flight_;            // mutex_; at most kInFlightMax
  std::uint64_t next_number_ = 1;          // mutex_
  SteadyTime last_instant_{};              // mutex_; of the newest captured generation
  SteadyTime sealed_instant_{};            // mutex_; of the newest sealed one
  std::chrono::nanoseconds round_trip_{};  // mutex_
  std::uint64_t dirty_pages_ = 0;          // mutex_; since the last generation, as far as harvested
  memory::Digest sealed_;  // mutex_; of the newest generation that the peer has sealed; at first the template's

  std::mutex stream_mutex_;
  std::unique_ptr<net::Stream> stream_;                               // stream_mutex_ while set; else the sender's
  std::vector<std::pair<memory::PageIndex, memory::Digest>> hashes_;  // the sender's; of the generation under way
  std::thread capturing_;
  std::thread sending_;
};

}  // namespace fvmm::migration
