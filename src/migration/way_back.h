// The way back: after a migration both sides make sure that what the source keeps of the VM is what the destination's
// log of writes counts from. Neither waits for it inside the pause.
//
//   destination (the guest runs)                            source (what left lies frozen)
//   hashes what arrived and nobody has written since ─► WAY_BACK: digest, pages written since
//                                                           the same digest over the same pages of what left?
//                      WAY_BACK_KEPT, digest ◄───────────── sealed; or REJECTED, and nothing is kept
//
// Pages that the guest has written since need no check: on the way back they travel.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "memory/digest.h"
#include "memory/dirty.h"
#include "migration/machine.h"
#include "net/stream.h"

namespace fvmm::migration {

inline constexpr std::size_t kWrittenRangesMax = 1U << 16;    // in one WAY_BACK; more: there is no way back
inline constexpr std::uint64_t kHashSlicePages = 4096;        // with the guest in hand: 1 to 3 ms
inline constexpr std::chrono::seconds kWayBackWait{60};       // source: for WAY_BACK
inline constexpr std::chrono::seconds kWayBackGuestWait{30};  // destination: for other commands to let go of the guest
inline constexpr std::chrono::minutes kWayBackKeptWait{10};   // destination: a delta at the speed of the source's disk

/// Whether the VM may return to that peer against what it kept of it.
bool may_go_by_way_back(const Guest& guest, const std::string& peer);

/// kResourceExhausted past kWrittenRangesMax ranges of written pages.
Result<v1::PeerMessage> way_back_message(const memory::Digest& digest, const memory::Bitmap& written);

/// The destination's side: the digest of what arrived, taken while the guest runs. Owner: one thread.
class ArrivedPages {
 public:
  /// @param arrived  pages that the migration brought
  /// @param base     digest of what they are a difference from; none(): a generation known by its id alone
  ArrivedPages(memory::Bitmap arrived, const memory::Digest& base, std::uint64_t memory_bytes);
  /// Hashes the next kHashSlicePages. With the guest in hand. False: that was all.
  Result<bool> next(Guest& guest);
  /// WAY_BACK. kResourceExhausted when the guest has written too scattered.
  [[nodiscard]] Result<v1::PeerMessage> message() const { return way_back_message(chain_.finish(), written_); }

 private:
  memory::Bitmap written_;  // what arrived and was not hashed before somebody wrote it
  std::vector<memory::PageRange> ranges_;
  std::size_t at_ = 0;  // in ranges_
  memory::DigestChain chain_;
};

/// The source's side. kDataLoss: the message makes no sense, or the peer has other pages.
/// @param sent  pages that the migration took away; their memory lies as it left
Status check_way_back(const v1::PeerMessage& message, const memory::GuestMemory& memory, const memory::Bitmap& sent,
                      const memory::Digest& base);

}  // namespace fvmm::migration
