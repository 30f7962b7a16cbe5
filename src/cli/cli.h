// fvmmctl: commands for fvmmd, `noun verb`. docs/fvmmctl.md.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace fvmm::cli {

/// Exit codes of fvmmctl.
enum ExitCode : int {
  kDone = 0,
  kFailed = 1,  // and the VM still runs where it was
  kUsage = 2,
  kUnreachable = 3,  // no daemon answers at the socket
  kUnknown = 4,      // the outcome is not known: see `fvmmctl migrate resolve`
};

/// Where a command reads and writes. The console uses the descriptors, everything else the streams.
struct Streams {
  std::ostream& out;
  std::ostream& err;
  int in_fd = 0;
  int out_fd = 1;
  int err_fd = 2;  // asked whether it is a terminal: only there a bar is drawn
};

/// Runs one command; `arguments` are those after the program's name. Thread: one, the caller's.
int run(std::vector<std::string> arguments, const Streams& streams);
/// The same for main().
int run(int argc, char** argv);

}  // namespace fvmm::cli
