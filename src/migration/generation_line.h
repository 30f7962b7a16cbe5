// Lines of generations in a store: how those of one VM are named and found, and how the old ones go.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/template_store.h"
#include "proto/config.pb.h"

namespace fvmm::migration {

/// The name of a VM's generations in the store, without the number: its name, shortened, and the first digits of its
/// id.
std::string replica_line(const v1::VmConfig& config);
/// The same for what a host keeps of a VM that has left, until it comes back.
std::string way_back_line(const v1::VmConfig& config);
/// Whether a generation is one of that line: LINE@N.
bool is_of_line(const memory::TemplateInfo& info, const std::string& line);

/// The newest sealed generation of the VM with this id (16 bytes), safe against a power cut when it is returned.
/// kNotFound when there is none; the store's error when it cannot be synced.
Result<memory::TemplateInfo> newest_generation(const memory::TemplateStore& store, const std::string& vm_id);

inline constexpr std::uint64_t kAllGenerations = ~0ULL;

/// The VM's generations of that line with a number below `end`, newest first; none where the store cannot be read.
std::vector<memory::TemplateInfo> generations_of(const memory::TemplateStore& store, const std::string& vm_id,
                                                 const std::string& line, std::uint64_t end);
/// Removes these, in their order. Best effort: what something maps or lies on stays, until the next time.
void remove_generations(memory::TemplateStore& store, const std::vector<memory::TemplateInfo>& generations);
/// Removes the VM's generations of that line with a smaller number than `newest`, except the one with the digest
/// `keep`. Best effort as above.
void remove_older(memory::TemplateStore& store, const std::string& vm_id, const std::string& line, std::uint64_t newest,
                  const memory::Digest& keep = {});

}  // namespace fvmm::migration
