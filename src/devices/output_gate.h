// The one place through which everything leaves a VM: serial and console bytes, packets, vsock, disk writes and
// flushes. Open, it passes output through; held, it keeps output by epoch until that epoch is known to be safe
// elsewhere.
//
// Owner: the machine; outlives its devices. Thread: any. Deliveries run under the gate's lock, in the order of arrival:
// they are short, never wait for I/O, and never call the gate.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <shared_mutex>
#include <span>

#include "base/units.h"
#include "devices/device.h"

namespace fvmm::devices {

inline constexpr std::size_t kHeldOutputBytesMax = 64 * kMiB;  // of one VM
inline constexpr std::size_t kHeldOutputItemsMax = 65536;

class OutputGate {
 public:
  using Epoch = std::uint64_t;
  using Delivery = std::function<void()>;

  explicit OutputGate(std::size_t bytes_max = kHeldOutputBytesMax, std::size_t items_max = kHeldOutputItemsMax)
      : bytes_max_(bytes_max), items_max_(items_max) {}

  /// One piece of output. Open: `delivery` runs now. Held: it is kept; it must own what it delivers. False: held and
  /// full, nothing was kept; the caller drops and counts, or keeps its request and tries again at its next resume().
  /// @param bytes  what keeping it costs
  [[nodiscard]] bool pass(std::size_t bytes, Delivery delivery);
  /// The same for bytes towards a sink, which are copied only if they are kept. `sink` outlives what is held.
  [[nodiscard]] bool pass(OutputSink& sink, std::span<const std::byte> bytes);

  // ---- for whoever commits epochs; one thread

  /// From now on output belongs to this epoch and is kept. Epochs only grow (FVMM_CHECK).
  void hold(Epoch epoch);
  /// Delivers what was kept in epochs up to and with this one. How many pieces.
  std::size_t release(Epoch up_to);
  /// Forgets what was kept in epochs after this one: they never happened. How many pieces.
  std::size_t drop(Epoch after);
  /// Delivers everything kept and passes output through again.
  void open();

  struct Counts {
    std::size_t held_items = 0;
    std::size_t held_bytes = 0;
    std::uint64_t refused = 0;  // pieces for which there was no room
    std::uint64_t dropped = 0;  // pieces of epochs that never happened
  };
  [[nodiscard]] Counts counts() const;

 private:
  struct Item {
    Epoch epoch;
    std::size_t bytes;
    Delivery delivery;
  };
  bool keep(std::size_t bytes, Delivery delivery);  // mutex_ held alone

  const std::size_t bytes_max_;
  const std::size_t items_max_;
  mutable std::shared_mutex mutex_;  // shared while passing through, alone for everything else
  bool holding_ = false;             // mutex_
  Epoch epoch_ = 0;                  // mutex_
  std::deque<Item> held_;            // mutex_
  std::size_t held_bytes_ = 0;       // mutex_
  std::uint64_t refused_ = 0;        // mutex_
  std::uint64_t dropped_ = 0;        // mutex_
};

/// A device's sink behind the gate. What a full gate refuses is dropped and counted. Owner: the machine.
class GatedSink final : public OutputSink {
 public:
  GatedSink(OutputGate& gate, OutputSink& sink) : gate_(gate), sink_(sink) {}
  void emit(std::span<const std::byte> bytes) override;
  [[nodiscard]] std::uint64_t dropped_bytes() const { return dropped_bytes_.load(std::memory_order_relaxed); }

 private:
  OutputGate& gate_;
  OutputSink& sink_;
  std::atomic<std::uint64_t> dropped_bytes_{0};
};

}  // namespace fvmm::devices
