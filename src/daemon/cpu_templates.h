// The CPU templates of this host: those that are built in, and DIRECTORY/NAME.json.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "control/server.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kCpuTemplateFilesMax = 256;

/// Files are read when they are asked for: what is changed counts for VMs created afterwards, as each VM keeps the text
/// that it was created with. Thread: any.
class CpuTemplates {
 public:
  explicit CpuTemplates(std::filesystem::path directory) : directory_(std::move(directory)) {}
  void bind(control::Server& server) const;

  /// Built in ones first, then files by name; a file that is no template is there with the reason. kResourceExhausted
  /// for more than kCpuTemplateFilesMax.
  [[nodiscard]] Result<v1::CpuTemplateList> list() const;
  [[nodiscard]] Result<std::vector<std::string>> names() const;  // in that order
  /// With what it gives a guest here. kNotFound lists those there are; kInvalidArgument for a wrong file.
  [[nodiscard]] Result<v1::CpuTemplateInfo> show(const std::string& name) const;
  /// Puts the text of the file that config.cpu_template names into config.cpu; nothing for a built-in or the default.
  /// kFailedPrecondition naming a required feature that this host lacks.
  Status settle(v1::VmConfig& config) const;

 private:
  struct HostCpu;
  [[nodiscard]] Result<v1::CpuTemplateInfo> show(const std::string& name, const HostCpu& host) const;
  [[nodiscard]] Result<v1::CpuTemplate> find(const std::string& name) const;
  [[nodiscard]] std::filesystem::path path_of(const std::string& name) const { return directory_ / (name + ".json"); }

  const std::filesystem::path directory_;
};

}  // namespace fvmm::daemon
