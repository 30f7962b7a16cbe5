// The template of the simulated guests, as a store has it. Include in one file of a program (sim_run.h).
#pragma once

#include "support/sim_machine.h"
#include "support/sim_run.h"
#include "support/stored_template.h"

namespace fvmm::testing {

/// The template of all seeds, sealed once; each gets it as hard links.
inline const std::filesystem::path& sim_stored_template() {
  static const TempDir directory(sim_files_parent());
  static const bool stored = [] {
    auto store = *memory::TemplateStore::open(directory.path());
    memory::TemplateStore::NewTemplate wanted;
    wanted.name = "base";
    wanted.memory_bytes = kSimRamBytes;
    wanted.config.set_name("base");
    wanted.config.set_memory_bytes(kSimRamBytes);
    auto writer = store.begin(wanted);
    return writer && writer->add_pages(0, {SimTemplate::of(true).bytes, kSimRamBytes}) &&
           writer->set_machine_state(test_machine_state()) && writer->seal();
  }();
  FVMM_CHECK(stored, "the template is stored");
  return directory.path();
}

/// Makes a store in which it is: "base".
inline void sim_store_template(const std::filesystem::path& store) {
  std::filesystem::create_directory(store);
  std::filesystem::copy(sim_stored_template(), store,
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::create_hard_links);
}

}  // namespace fvmm::testing
