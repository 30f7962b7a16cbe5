// What the output gate has let through of a vsock device, in order, on its way to the device's thread; and the eventfd
// at which that thread waits. Thread: any.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/unique_fd.h"
#include "devices/vsock_packet.h"

namespace fvmm::devices {

class VsockInbox {
 public:
  struct Item {
    std::shared_ptr<const VsockPacket> packet;  // of the guest; null: its driver has gone, which happened
    std::uint64_t reset = 0;                    // so many times
  };

  VsockInbox();
  /// The calling thread is the one that takes out: nobody has to wake it for what it puts in itself.
  void serve_here();
  void put(Item item);
  [[nodiscard]] std::optional<Item> take();

  [[nodiscard]] int doorbell() const { return doorbell_.get(); }
  void ring() const;
  void silence() const;  // before looking: a later ring is not lost

 private:
  UniqueFd doorbell_;
  std::mutex mutex_;
  std::deque<Item> items_;  // mutex_; no more than the gate keeps, and what one turn has passed
  std::thread::id server_;  // mutex_
};

}  // namespace fvmm::devices
