// Small pieces of ACPI Machine Language, put together into terms (ACPI 6.5, chapter 20). Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace fvmm::vmm::aml {

/// A term, a list of terms, or data: just bytes.
using Bytes = std::vector<std::uint8_t>;

Bytes join(std::initializer_list<Bytes> parts);
Bytes integer(std::uint64_t value);    // in its shortest form
Bytes string(std::string_view text);   // ASCII without a zero
Bytes eisa_id(std::string_view name);  // "PNP0501": three letters, four hex digits
/// "VR00", or "\\_SB_.VGEN": segments of exactly four characters.
Bytes path(std::string_view path);

Bytes name(std::string_view segment, const Bytes& value);
Bytes scope(std::string_view at, const Bytes& terms);
Bytes device(std::string_view segment, const Bytes& terms);
Bytes method(std::string_view segment, unsigned arguments, const Bytes& terms);  // NotSerialized
Bytes notify(std::string_view target, std::uint8_t value);
Bytes package(const std::vector<Bytes>& elements);

// Resource descriptors (6.4), and the buffer that holds a list of them.
Bytes resources(std::initializer_list<Bytes> descriptors);
Bytes memory32_fixed(std::uint32_t base, std::uint32_t bytes);  // read and write
Bytes io_ports(std::uint16_t base, std::uint8_t count);
struct Interrupt {
  std::uint32_t gsi = 0;
  bool edge = true;  // active high, not shared
};
Bytes interrupt(const Interrupt& line);

}  // namespace fvmm::vmm::aml
