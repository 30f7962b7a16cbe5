#include "migration/generation_line.h"

#include <algorithm>
#include <functional>
#include <optional>

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

std::vector<memory::TemplateInfo> generations_of(const memory::TemplateStore& store, const std::string& vm_id,
                                                 const std::string& line, std::uint64_t end) {
  auto found = store.scan();
  if (!found) return {};
  std::erase_if(*found, [&](const memory::TemplateInfo& info) {
    return info.config.id() != vm_id || !is_of_line(info, line) || info.generation >= end;
  });
  std::ranges::sort(*found, std::greater(), &memory::TemplateInfo::generation);
  return std::move(*found);
}

void remove_generations(memory::TemplateStore& store, const std::vector<memory::TemplateInfo>& generations) {
  for (const auto& info : generations) (void)store.remove(info.name);
}

void remove_older(memory::TemplateStore& store, const std::string& vm_id, const std::string& line, std::uint64_t newest,
                  const memory::Digest& keep) {
  auto older = generations_of(store, vm_id, line, newest);
  std::erase_if(older, [&](const memory::TemplateInfo& info) { return info.digest == keep; });
  remove_generations(store, older);
}

}  // namespace fvmm::migration
