// The two things systemd gives a service, without its library: a notification socket and passed listeners.
#pragma once

#include <optional>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace fvmm::daemon {

/// sd_notify(3): "READY=1", "STOPPING=1". Nothing happens without $NOTIFY_SOCKET.
Status notify_systemd(std::string_view state);

/// sd_listen_fds(3): the control socket's listener, when systemd passed it (LISTEN_PID is us, LISTEN_FDS is 1). Call
/// once, before any thread starts: it removes the variables. kInvalidArgument for more than one descriptor.
Result<std::optional<UniqueFd>> take_systemd_listener();

}  // namespace fvmm::daemon
