// What every command shares: the global options, a connection made when first needed, and how results and errors are
// shown.
#pragma once

#include <google/protobuf/message.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cli/cli.h"
#include "control/client.h"

namespace fvmm::cli {

inline constexpr std::string_view kDefaultSocket = "/run/fvmm/fvmmd.sock";
inline constexpr std::chrono::seconds kCallTimeout{30};
inline constexpr std::chrono::seconds kLongCallTimeout{600};   // reads or writes a whole template
inline constexpr std::chrono::hours kFollowTimeout{24 * 365};  // until interrupted
inline constexpr std::chrono::seconds kConnectTimeout{5};

struct GlobalOptions {
  std::string socket{kDefaultSocket};
  std::string output = "table";
  std::string timeout;  // empty: the command's own
  [[nodiscard]] bool json() const { return output == "json"; }
};

/// One run of fvmmctl. Lives on the one thread of the program.
class Session {
 public:
  Session(const GlobalOptions& options, const Streams& streams) : options_(options), streams_(streams) {}

  [[nodiscard]] bool json() const { return options_.json(); }
  [[nodiscard]] std::ostream& out() const { return streams_.out; }
  [[nodiscard]] std::ostream& err() const { return streams_.err; }
  [[nodiscard]] const Streams& streams() const { return streams_; }
  [[nodiscard]] const GlobalOptions& options() const { return options_; }

  /// --timeout, or else the command's own.
  [[nodiscard]] Result<std::chrono::microseconds> timeout(std::chrono::microseconds own) const;
  Result<control::Client*> client();
  /// Whether the daemon itself gave the last error; false: it was not reached, or was lost before it answered.
  [[nodiscard]] bool answered() const { return client_ && client_->answered(); }

  /// A unary call; the answer, as JSON or by `table`, goes to standard output. Returns the exit code.
  int call(std::string_view method, const google::protobuf::Message& request, google::protobuf::Message& response,
           std::chrono::microseconds own_timeout, const std::function<void()>& table);
  Status call(std::string_view method, const google::protobuf::Message& request, google::protobuf::Message& response,
              std::chrono::microseconds own_timeout);
  Status stream(std::string_view method, const google::protobuf::Message& request,
                const std::function<bool(const std::string&, bool)>& event, std::chrono::microseconds own_timeout);

  /// Prints the error on standard error, and as an object on standard output with --output json. Returns the exit code.
  int fail(const Error& error) const;
  int fail(const Error& error, int exit_code) const;

 private:
  const GlobalOptions& options_;
  const Streams& streams_;
  std::unique_ptr<control::Client> client_;
};

/// Rows with columns aligned, two spaces between; the last column is not padded.
std::string align(const std::vector<std::vector<std::string>>& rows);
/// Prints `fvmmctl: message`, and the JSON object where asked.
void print_error(const Streams& streams, bool json, std::string_view code, std::string_view message);

}  // namespace fvmm::cli
