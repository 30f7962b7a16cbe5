// A machine as commands have it in hand.
#pragma once

#include <memory>
#include <utility>

#include "migration/machine.h"

namespace fvmm::testing {

/// A guest around a machine, as a worker has it (Worker::wrap); `base` with an empty id is the zero template.
inline std::unique_ptr<migration::Guest> guest_around(const v1::VmConfig& config, const v1::TemplateRef& base,
                                                      std::unique_ptr<migration::Machine> machine) {
  auto guest = std::make_unique<migration::Guest>();
  guest->config = config;
  guest->fencing_token = 1;
  guest->base = base;
  guest->machine = std::move(machine);
  guest->since_base = guest->machine->dirty().add_reader();
  return guest;
}

}  // namespace fvmm::testing
