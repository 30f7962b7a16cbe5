// The commands, by noun. Each add_* declares its options and says what to do when it is the one chosen.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "cli/session.h"
#include "proto/control.pb.h"

namespace CLI {
class App;
}

namespace fvmm::cli {

/// The action of the command that was parsed; empty until one is.
using Chosen = std::function<int(Session&)>;

void add_vm_commands(CLI::App& app, Chosen& chosen);
void add_template_commands(CLI::App& app, Chosen& chosen);
void add_migrate_command(CLI::App& app, Chosen& chosen);
void add_replicate_commands(CLI::App& app, Chosen& chosen);
void add_cpu_template_commands(CLI::App& app, Chosen& chosen);
void add_host_commands(CLI::App& app, Chosen& chosen);   // host show, doctor
void add_debug_commands(CLI::App& app, Chosen& chosen);  // hidden

/// A path as the daemon, which has another working directory, must get it. Empty stays empty.
std::string absolute_path(const std::string& path);

int vm_logs(Session& session, const std::string& name, bool follow);
int vm_console(Session& session, const std::string& name, bool virtio);
/// Joins standard input and output to a console's socket until one of them ends, or Ctrl-] on a terminal.
Status join_console(const std::string& socket, const Streams& streams);

void print_vm(std::ostream& out, const v1::VmInfo& vm);
std::string vm_table(const v1::VmList& list);
std::string state_word(v1::VmState state);

}  // namespace fvmm::cli
