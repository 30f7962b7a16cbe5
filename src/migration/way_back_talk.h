// The conversation of both sides about the way back, once the guest runs at the destination. way_back.h has its
// picture, and what is compared.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "base/id.h"
#include "base/result.h"
#include "memory/template_info.h"
#include "migration/machine.h"
#include "migration/way_back.h"
#include "net/stream.h"
#include "proto/state.pb.h"

namespace fvmm::migration {

/// Does `work` with the guest in hand, between two commands that have it; `what` names it. An error when that takes too
/// long or the guest is no longer here, else that of `work`.
using WhenGuestRests = std::function<Status(const std::string& what, const std::function<Status(Guest& guest)>& work)>;

/// Destination: compares, and notes what the source has kept. Waits for the source's disk: on a thread of its own. An
/// error: the peer was told, and the VM returns against its template.
Status agree_on_way_back(net::Stream& stream, ArrivedPages arrived, const WhenGuestRests& when_guest_rests);

/// A VM that has left against a template: what its memory here does not say.
struct Departed {
  Id session;
  v1::MachineState state;
  std::unique_ptr<net::Stream> way_back;  // null: an older peer
  bool by_way_back = false;               // the pages that travelled were against that, not the template
  memory::Digest base;                    // of what they were against
};

/// Source: seals what has left as a generation of the store, once the peer is known to have the same. The peer hears of
/// it, or why not; then the connection is closed. An older peer is neither asked nor told.
Result<memory::TemplateInfo> seal_way_back(const Guest& guest, Departed& departed,
                                           const std::filesystem::path& store_directory);

}  // namespace fvmm::migration
