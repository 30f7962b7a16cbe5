// What a guest's drivers find their devices by: the DSDT's terms.
#include <fmt/format.h>

#include "vmm/acpi.h"
#include "vmm/aml.h"
#include "vmm/virtio_slots.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint8_t kChanged = 0x80;

aml::Bytes com1() {
  return aml::device(
      "COM1", aml::join({aml::name("_HID", aml::eisa_id("PNP0501")), aml::name("_UID", aml::integer(0)),
                         aml::name("_CRS", aml::resources({aml::io_ports(0x3F8, 8), aml::interrupt({.gsi = 4})}))}));
}

/// "LNRO0005" is how Linux knows a virtio-mmio window.
aml::Bytes virtio(unsigned slot) {
  const auto base = static_cast<std::uint32_t>(virtio_address(slot));
  const auto bytes = static_cast<std::uint32_t>(devices::kVirtioMmioBytes);
  return aml::device(fmt::format("VR{:02}", slot),
                     aml::join({aml::name("_HID", aml::string("LNRO0005")), aml::name("_UID", aml::integer(slot)),
                                aml::name("_CCA", aml::integer(1)),
                                aml::name("_CRS", aml::resources({aml::memory32_fixed(base, bytes),
                                                                  aml::interrupt({.gsi = virtio_gsi(slot)})}))}));
}

/// ADDR gives the address of the 16 bytes; a Notify says that they have changed.
aml::Bytes generation_id() {
  return aml::device(
      "VGEN", aml::join({aml::name("_HID", aml::string("FVMM0001")), aml::name("_CID", aml::string("VM_Gen_Counter")),
                         aml::name("_DDN", aml::string("VM_Gen_Counter")),
                         aml::name("ADDR", aml::package({aml::integer(kGenerationIdAddress), aml::integer(0)}))}));
}

/// ACPI0013, the generic event device (5.6.9): its only interrupt is the generation id's.
aml::Bytes events() {
  return aml::device("GEDV", aml::join({aml::name("_HID", aml::string("ACPI0013")), aml::name("_UID", aml::integer(0)),
                                        aml::name("_CRS", aml::resources({aml::interrupt({.gsi = kGenerationGsi})})),
                                        aml::method("_EVT", 1, aml::notify("\\_SB_.VGEN", kChanged))}));
}

}  // namespace

std::vector<std::uint8_t> acpi_dsdt(const AcpiMachine& machine) {
  aml::Bytes terms = aml::join({com1(), generation_id(), events()});
  for (unsigned slot = 0; slot < machine.virtio_devices; ++slot) {
    const aml::Bytes device = virtio(slot);
    terms.insert(terms.end(), device.begin(), device.end());
  }
  return aml::scope("\\_SB_", terms);
}

}  // namespace fvmm::vmm
