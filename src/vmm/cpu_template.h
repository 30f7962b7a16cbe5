// CPU templates: what a guest gets of its host's CPU, as data: built in, or a JSON file of the host's
// (docs/cpu-templates.md). Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "proto/config.pb.h"
#include "vmm/cpuid_words.h"

namespace fvmm::vmm {

inline constexpr std::uint32_t kCpuTemplateVersion = 1;
inline constexpr std::size_t kCpuTemplateBytesMax = 64 << 10;  // of a file

/// The text of a file. kInvalidArgument naming what is wrong: no JSON, an unknown key, word or feature, another name
/// than the file's, another version.
Result<v1::CpuTemplate> parse_cpu_template(std::string_view name, std::string_view json);
/// The same of a template that came in a message.
Status check_cpu_template(const v1::CpuTemplate& cpu);

/// "host", "baseline", "pvm".
std::vector<std::string> builtin_cpu_template_names();
/// kNotFound listing those there are.
Result<v1::CpuTemplate> builtin_cpu_template(std::string_view name);

/// Takes and gives features and leaves as the template says, and makes what depends on them agree: the sizes of the
/// extended state, the last index of leaf 7. kFailedPrecondition naming a required feature that `table` lacks.
/// `cpu` has been checked.
Status apply_cpu_template(const v1::CpuTemplate& cpu, CpuidTable& table);

/// A table's feature bits by their names, word by word; one without a name is "WORD:BIT".
std::vector<v1::CpuFeatures> name_features(const CpuidTable& table);

}  // namespace fvmm::vmm
