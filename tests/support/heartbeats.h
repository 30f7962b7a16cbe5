// What workload.elf prints (docs/guests.md), read back.
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace fvmm::test {

struct Heartbeat {
  std::uint64_t n = 0;
  std::uint64_t step = 0;
  std::uint64_t sweeps = 0;
  std::uint64_t sweep_step = 0;
  std::uint64_t pages = 0;
  std::uint64_t errors = 0;
};

/// "key=123" in a line; nothing when it is absent.
inline std::optional<std::uint64_t> field(std::string_view line, std::string_view key) {
  const std::string wanted = " " + std::string(key) + "=";
  const auto at = line.find(wanted);
  if (at == std::string_view::npos) return std::nullopt;
  std::uint64_t value = 0;
  std::size_t i = at + wanted.size();
  if (i >= line.size() || line[i] < '0' || line[i] > '9') return std::nullopt;
  for (; i < line.size() && line[i] >= '0' && line[i] <= '9'; ++i) {
    value = value * 10 + static_cast<std::uint64_t>(line[i] - '0');
  }
  return value;
}

/// Every heartbeat of a serial log, in order. A last line without its end is left out.
inline std::vector<Heartbeat> heartbeats(const std::string& serial) {
  std::vector<Heartbeat> beats;
  std::istringstream lines(serial.substr(0, serial.rfind('\n') + 1));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("HB ")) continue;
    const auto n = field(line, "n"), step = field(line, "step"), sweeps = field(line, "sweeps");
    const auto sweep_step = field(line, "sweep_step"), pages = field(line, "pages"), errors = field(line, "errors");
    // A move cuts a line between two hosts, and the next one joins its halves with what was printed elsewhere.
    if (!n || !step || !sweeps || !sweep_step || !pages || !errors || !field(line, "ms")) continue;
    beats.push_back({*n, *step, *sweeps, *sweep_step, *pages, *errors});
  }
  return beats;
}

/// The first line with which the guest complains (ERR, FATAL); empty when it never did.
inline std::string complaint(const std::string& serial) {
  std::istringstream lines(serial);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("ERR ") || line.starts_with("FATAL")) return line;
  }
  return "";
}

}  // namespace fvmm::test
