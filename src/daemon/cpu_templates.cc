#include "daemon/cpu_templates.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/file.h"
#include "daemon/checks.h"
#include "vmm/cpu_template.h"
#include "vmm/cpuid.h"
#include "vmm/kvm.h"

namespace fvmm::daemon {
namespace {

bool is_builtin(const std::string& name) {
  return std::ranges::count(vmm::builtin_cpu_template_names(), name) > 0;
}

}  // namespace

/// What templates are judged by here. KVM_GET_SUPPORTED_CPUID costs some milliseconds where CPUID itself traps: a
/// command asks once.
struct CpuTemplates::HostCpu {
  std::string_view by_default;  // empty without a KVM
  Result<vmm::CpuidTable> supported;

  static HostCpu read() {
    auto kvm = vmm::Kvm::open();
    if (!kvm) return {"", std::move(kvm.error())};
    return {vmm::default_cpu_template(kvm->features()), kvm->supported_cpuid()};
  }
  /// What a guest on this host gets by it.
  [[nodiscard]] Result<vmm::CpuidTable> table(const v1::CpuTemplate& cpu) const {
    constexpr std::uint32_t kNoTimer = 0;  // the timing leaf is no feature
    if (!supported) return supported.error();
    return vmm::build_cpuid(cpu, *supported, kNoTimer);
  }
};

Result<std::vector<std::string>> CpuTemplates::names() const {
  auto names = vmm::builtin_cpu_template_names();
  const auto built_in = static_cast<std::ptrdiff_t>(names.size());
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() != ".json") continue;
    if (names.size() - static_cast<std::size_t>(built_in) == kCpuTemplateFilesMax) {
      return Error(Errc::kResourceExhausted,
                   fmt::format("{} has more than {} files", directory_.string(), kCpuTemplateFilesMax));
    }
    names.push_back(it->path().stem().string());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return Error(Errc::kIo, fmt::format("read {}: {}", directory_.string(), error.message()));
  }
  std::sort(names.begin() + built_in, names.end());
  return names;
}

Result<v1::CpuTemplate> CpuTemplates::find(const std::string& name) const {
  if (is_builtin(name)) return vmm::builtin_cpu_template(name);
  FVMM_TRY(check_name("CPU template", name));
  const auto text = read_file(path_of(name), vmm::kCpuTemplateBytesMax);
  if (text) return FVMM_TRY(vmm::parse_cpu_template(name, *text), path_of(name).string());
  if (text.error().code() != Errc::kNotFound) return text.error();
  return Error(Errc::kNotFound, fmt::format("unknown CPU template \"{}\"; there are {}; {} would be another", name,
                                            fmt::join(FVMM_TRY(names()), ", "), path_of(name).string()));
}

Result<v1::CpuTemplateInfo> CpuTemplates::show(const std::string& name) const {
  return show(name, HostCpu::read());
}

Result<v1::CpuTemplateInfo> CpuTemplates::show(const std::string& name, const HostCpu& host) const {
  v1::CpuTemplateInfo info;
  *info.mutable_template_() = FVMM_TRY(find(name));
  if (!is_builtin(name)) info.set_file(path_of(name).string());
  info.set_by_default(host.by_default == name);
  const auto table = host.table(info.template_());
  if (!table) {
    info.set_refused(table.error().message());
    return info;
  }
  for (v1::CpuFeatures& word : vmm::name_features(*table)) *info.add_features() = std::move(word);
  return info;
}

Result<v1::CpuTemplateList> CpuTemplates::list() const {
  v1::CpuTemplateList out;
  const HostCpu host = HostCpu::read();
  std::size_t at = 0;
  for (const std::string& name : FVMM_TRY(names())) {
    v1::CpuTemplateInfo& info = *out.add_templates();
    const bool hidden = at++ >= vmm::builtin_cpu_template_names().size() && is_builtin(name);
    auto shown = show(name, host);
    if (shown && !hidden) {
      info = std::move(*shown);
      continue;
    }
    info.mutable_template_()->set_name(name);
    info.set_file(path_of(name).string());
    info.set_refused(hidden ? "the template of that name is built in: give the file another" : shown.error().message());
  }
  return out;
}

Status CpuTemplates::settle(v1::VmConfig& config) const {
  if (config.cpu_template().empty() || config.has_cpu()) return {};
  v1::CpuTemplate cpu = FVMM_TRY(find(config.cpu_template()));
  if (!cpu.require().empty()) FVMM_TRY(HostCpu::read().table(cpu), "VM " + config.name());
  if (!is_builtin(cpu.name())) *config.mutable_cpu() = std::move(cpu);
  return {};
}

void CpuTemplates::bind(control::Server& server) const {
  server.unary<v1::Empty, v1::CpuTemplateList>("fvmm.v1.CpuTemplates/List",
                                               [this](control::Call&, const v1::Empty&) { return list(); });
  server.unary<v1::CpuTemplateName, v1::CpuTemplateInfo>(
      "fvmm.v1.CpuTemplates/Show",
      [this](control::Call&, const v1::CpuTemplateName& request) { return show(request.name()); });
}

}  // namespace fvmm::daemon
