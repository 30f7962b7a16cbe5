#include "cli/session.h"

#include <algorithm>
#include <ostream>

#include "base/units.h"
#include "cli/json.h"

namespace fvmm::cli {

Result<std::chrono::microseconds> Session::timeout(std::chrono::microseconds own) const {
  if (options_.timeout.empty()) return own;
  return parse_duration(options_.timeout);
}

Result<control::Client*> Session::client() {
  if (!client_) client_ = FVMM_TRY(control::Client::connect(options_.socket, Deadline::after(kConnectTimeout)));
  return client_.get();
}

Status Session::call(std::string_view method, const google::protobuf::Message& request,
                     google::protobuf::Message& response, std::chrono::microseconds own_timeout) {
  const Deadline deadline = Deadline::after(FVMM_TRY(timeout(own_timeout), "--timeout"));
  control::Client* const daemon = FVMM_TRY(client());
  return daemon->call(method, request, response, deadline);
}

Status Session::stream(std::string_view method, const google::protobuf::Message& request,
                       const std::function<bool(const std::string&, bool)>& event,
                       std::chrono::microseconds own_timeout) {
  const Deadline deadline = Deadline::after(FVMM_TRY(timeout(own_timeout), "--timeout"));
  control::Client* const daemon = FVMM_TRY(client());
  return daemon->stream(method, request, event, deadline);
}

int Session::call(std::string_view method, const google::protobuf::Message& request,
                  google::protobuf::Message& response, std::chrono::microseconds own_timeout,
                  const std::function<void()>& table) {
  if (const Status status = call(method, request, response, own_timeout); !status) return fail(status.error());
  if (json()) {
    out() << to_json(response) << '\n';
  } else {
    table();
  }
  return kDone;
}

int Session::fail(const Error& error) const {
  const bool lost = client_ && !client_->answered() && error.code() == Errc::kUnavailable;
  const bool never_reached = !client_ && error.code() != Errc::kInvalidArgument;
  return fail(error, lost || never_reached ? kUnreachable : client_ ? kFailed : kUsage);
}

int Session::fail(const Error& error, int exit_code) const {
  print_error(streams_, json(), to_string(error.code()), error.message());
  return exit_code;
}

void print_error(const Streams& streams, bool json, std::string_view code, std::string_view message) {
  streams.err << "fvmmctl: " << message << '\n';
  if (!json) return;
  JsonObject inner;
  inner.add("code", code).add("message", message);
  streams.out << JsonObject().raw("error", inner.str()).str() << '\n';
}

std::string align(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

}  // namespace fvmm::cli
