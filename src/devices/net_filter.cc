#include "devices/net_filter.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace fvmm::devices {
namespace {

void put(StateWriter& writer, const Mac& mac) {
  for (const std::uint8_t byte : mac) writer.put(byte);
}

Mac get(StateReader& reader) {
  Mac mac{};
  for (std::uint8_t& byte : mac) byte = reader.get<std::uint8_t>();
  return mac;
}

void put(StateWriter& writer, const NetFilter::Table& table) {
  writer.put(table.all);
  writer.put(static_cast<std::uint8_t>(table.entries.size()));
  for (const Mac& mac : table.entries) put(writer, mac);
}

Result<NetFilter::Table> get_table(StateReader& reader) {
  NetFilter::Table table;
  table.all = reader.get_bool();
  const auto count = reader.get<std::uint8_t>();
  if (count > kMacTableEntriesMax) return Error(Errc::kInvalidArgument, "a table of too many addresses");
  for (unsigned i = 0; i < count; ++i) table.entries.push_back(get(reader));
  return table;
}

bool has(const NetFilter::Table& table, const Mac& mac) {
  return table.all || std::ranges::find(table.entries, mac) != table.entries.end();
}

}  // namespace

void NetFilter::set_tables(Table unicast, Table multicast) {
  unicast_ = std::move(unicast);
  multicast_ = std::move(multicast);
}

bool NetFilter::wants(std::span<const std::byte> destination) const {
  FVMM_CHECK(destination.size() == kMacBytes, "an address has 6 bytes");
  Mac mac{};
  std::ranges::transform(destination, mac.begin(), [](std::byte byte) { return std::to_integer<std::uint8_t>(byte); });
  constexpr Mac kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  if (promiscuous_ || mac == kBroadcast) return true;
  if ((mac[0] & 1) != 0) return all_multicast_ || has(multicast_, mac);
  return mac == own_ || mac == known_ || has(unicast_, mac);
}

void NetFilter::save(StateWriter& writer) const {
  put(writer, own_);
  put(writer, known_);
  writer.put(promiscuous_);
  writer.put(all_multicast_);
  put(writer, unicast_);
  put(writer, multicast_);
}

Result<NetFilter> NetFilter::load(StateReader& reader) {
  NetFilter filter;
  filter.own_ = get(reader);
  filter.known_ = get(reader);
  filter.promiscuous_ = reader.get_bool();
  filter.all_multicast_ = reader.get_bool();
  filter.unicast_ = FVMM_TRY(get_table(reader));
  filter.multicast_ = FVMM_TRY(get_table(reader));
  return filter;
}

}  // namespace fvmm::devices
