#include "migration/generation_line.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include "base/file.h"

namespace fvmm::migration {
namespace {

constexpr std::size_t kNameBytes = 40;  // of the VM's name in that of its generations

}  // namespace

std::string replica_line(const v1::VmConfig& config) {
  const auto id = Id::from_bytes(config.id());
  return config.name().substr(0, kNameBytes) + "." + (id ? id->hex().substr(0, 8) : "");
}

std::string way_back_line(const v1::VmConfig& config) {
  return replica_line(config) + ".back";
}

bool is_of_line(const memory::TemplateInfo& info, const std::string& line) {
  return info.name.starts_with(line + "@");
}

Result<memory::TemplateInfo> newest_generation(const memory::TemplateStore& store, const std::string& vm_id) {
  std::optional<memory::TemplateInfo> newest;
  for (auto& info : FVMM_TRY(store.scan())) {
    if (info.config.id() != vm_id || !is_of_line(info, replica_line(info.config))) continue;
    if (!newest || info.generation > newest->generation) newest = std::move(info);
  }
  if (!newest) return Error(Errc::kNotFound, "no generation of that VM is here");
  // A source counts it as sealed, or it is about to run: it must be safe, also where its seal failed in the last step.
  FVMM_TRY(fsync_path(store.directory()), newest->name);
  return std::move(*newest);
}

void remove_older(memory::TemplateStore& store, const std::string& vm_id, const std::string& line, std::uint64_t newest,
                  const memory::Digest& keep) {
  const auto all = store.scan();
  if (!all) return;
  std::vector<memory::TemplateInfo> older;
  for (const auto& info : *all) {
    const bool ours = info.config.id() == vm_id && is_of_line(info, line);
    if (ours && info.generation < newest && info.digest != keep) older.push_back(info);
  }
  std::ranges::sort(older, std::greater(), &memory::TemplateInfo::generation);
  for (const auto& info : older) (void)store.remove(info.name);
}

}  // namespace fvmm::migration
