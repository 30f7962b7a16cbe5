// Which received frames a network's driver wants: its addresses, and what the control queue's receive modes say (virtio
// 1.2, sections 5.1.6.5.1 and 5.1.6.5.2). Owner: the device; under its lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/mac.h"
#include "base/result.h"
#include "devices/state_codec.h"

namespace fvmm::devices {

/// Of each table; a driver that wants more gets everything of that kind.
inline constexpr std::size_t kMacTableEntriesMax = 64;

class NetFilter {
 public:
  struct Table {
    std::vector<Mac> entries;
    bool all = false;  // more than there is room for
    bool operator==(const Table&) const = default;
  };

  /// A driver begins with everything, until it says what it wants.
  /// @param own  what its configuration space shows
  void reset(const Mac& own) { *this = NetFilter{}, own_ = known_ = own; }

  /// What the configuration space shows now, and what the driver last read there or set. They differ in a clone whose
  /// driver has not looked again; frames to both are wanted.
  [[nodiscard]] const Mac& own() const { return own_; }
  [[nodiscard]] const Mac& known() const { return known_; }
  void set_own(const Mac& own) { own_ = own; }
  void set_known(const Mac& known) { known_ = known; }
  void set_promiscuous(bool on) { promiscuous_ = on; }
  void set_all_multicast(bool on) { all_multicast_ = on; }
  void set_tables(Table unicast, Table multicast);

  /// @param destination  the first 6 bytes of a frame
  [[nodiscard]] bool wants(std::span<const std::byte> destination) const;

  void save(StateWriter& writer) const;
  /// kInvalidArgument for tables larger than they may be; the reader tells of anything else.
  static Result<NetFilter> load(StateReader& reader);

 private:
  Mac own_{};
  Mac known_{};
  bool promiscuous_ = true;
  bool all_multicast_ = true;
  Table unicast_;
  Table multicast_;
};

}  // namespace fvmm::devices
