// A template store in a directory of its own, and a small template to put into it.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "memory/template_store.h"
#include "support/temp_dir.h"

namespace fvmm::testing {

inline constexpr std::uint64_t kTestMemoryBytes = 16 * kMiB;

/// 16 MiB of which pages 0 to 2, 10 and the last are random; all others are zero.
inline std::vector<std::byte> test_memory(std::uint64_t seed) {
  std::vector<std::byte> memory(kTestMemoryBytes);
  std::mt19937_64 random(seed);
  for (const std::uint64_t page :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{10}, kTestMemoryBytes / kPageBytes - 1}) {
    for (std::uint64_t at = 0; at < kPageBytes; at += 8) {
      const std::uint64_t word = random() | 1;
      std::memcpy(memory.data() + page * kPageBytes + at, &word, 8);
    }
  }
  return memory;
}
inline constexpr std::uint64_t kTestMemoryPages = 5;  // non-zero ones

inline v1::MachineState test_machine_state() {
  v1::MachineState state;
  state.set_version(1);
  state.add_vcpus()->set_regs("registers");
  return state;
}

inline memory::TemplateStore::NewTemplate wanted_template(const std::string& name) {
  memory::TemplateStore::NewTemplate wanted;
  wanted.name = name;
  wanted.generation = 3;
  wanted.memory_bytes = kTestMemoryBytes;
  wanted.config.set_name("web1");
  wanted.config.set_memory_bytes(kTestMemoryBytes);
  return wanted;
}

/// begin, all pages at once, machine state, seal.
inline Result<memory::TemplateInfo> store_template(memory::TemplateStore& store,
                                                   const memory::TemplateStore::NewTemplate& wanted,
                                                   const std::vector<std::byte>& memory) {
  memory::TemplateWriter writer = FVMM_TRY(store.begin(wanted));
  FVMM_TRY(writer.add_pages(0, memory));
  FVMM_TRY(writer.set_machine_state(test_machine_state()));
  return writer.seal();
}

inline std::vector<std::string> names_of(const std::vector<memory::TemplateInfo>& templates) {
  std::vector<std::string> names;
  for (const memory::TemplateInfo& info : templates) names.push_back(info.name);
  return names;
}

/// Everything in the directory, dot names too, sorted.
inline std::vector<std::string> entries_of(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace fvmm::testing
