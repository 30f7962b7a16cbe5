// What workload.elf prints (docs/guests.md), read back.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
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

/// A whole heartbeat line and nothing else. A move cuts a line between two hosts, and the next one joins a half with
/// what was printed elsewhere: such a line has a field too few or too many.
inline std::optional<Heartbeat> parse_heartbeat(const std::string& line) {
  Heartbeat beat;
  std::array<unsigned long, 4> others{};
  int used = 0;
  const int fields =
      std::sscanf(line.c_str(),
                  "HB n=%lu step=%lu sweeps=%lu sweep_step=%lu pages=%lu errors=%lu gap_us=%lu maxgap_us=%lu "
                  "io_us=%lu ms=%lu%n",
                  &beat.n, &beat.step, &beat.sweeps, &beat.sweep_step, &beat.pages, &beat.errors, &others[0],
                  &others[1], &others[2], &others[3], &used);
  if (fields != 10 || line.find_first_not_of("\r ", static_cast<std::size_t>(used)) != std::string::npos)
    return std::nullopt;
  return beat;
}

/// Every heartbeat of a serial log, in order. A last line without its end is left out.
inline std::vector<Heartbeat> heartbeats(const std::string& serial) {
  std::vector<Heartbeat> beats;
  std::istringstream lines(serial.substr(0, serial.rfind('\n') + 1));
  for (std::string line; std::getline(lines, line);) {
    if (const auto beat = parse_heartbeat(line)) beats.push_back(*beat);
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
