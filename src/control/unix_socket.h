// Unix stream sockets as the control plane needs them: listening, connecting, credentials, descriptors in passing.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "control/server.h"

namespace fvmm::control {

/// Listens on a new socket file of mode 0660. A file that nobody listens on is replaced; kAlreadyExists when somebody
/// does or when it is no socket. Two processes starting at once are kept apart by a lock on the directory (flock(2)).
Result<UniqueFd> listen_unix(const std::filesystem::path& path);

/// Connects; close-on-exec and non-blocking. kUnavailable when nobody listens, kPermissionDenied when the file says so.
Result<UniqueFd> connect_unix(const std::filesystem::path& path, const Deadline& deadline);

/// Who is at the other end, as the kernel recorded it at connect (unix(7), SO_PEERCRED).
Result<PeerCredentials> peer_credentials(int socket);
/// Whether that process had the group, primary or supplementary, when it connected (SO_PEERGROUPS).
bool peer_has_group(int socket, const PeerCredentials& peer, unsigned gid);

/// Outcome of one non-blocking read.
struct Received {
  ssize_t bytes = 0;              // 0: end of stream; -1: see sys_errno
  int sys_errno = 0;              // EAGAIN: nothing there yet
  bool descriptors_lost = false;  // more came at once than kDescriptorsPerCallMax; the kernel closed the rest
};
/// Reads at most `into.size()` bytes; descriptors in passing are appended, close-on-exec (recvmsg(2),
/// MSG_CMSG_CLOEXEC).
Received receive_some(int socket, std::span<char> into, std::vector<UniqueFd>& descriptors);
/// Writes what fits without blocking; descriptors go with the first byte. -1 sets errno. Never raises SIGPIPE.
ssize_t send_some(int socket, std::string_view bytes, std::span<const int> descriptors = {});

/// Waits for poll(2) events until the deadline: true when there are any, hang-up and errors included.
bool wait_for(int fd, short events, const Deadline& deadline);

}  // namespace fvmm::control
