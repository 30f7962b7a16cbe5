#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "base/file.h"
#include "memory/template_chain.h"
#include "memory/template_directory.h"
#include "memory/template_disks.h"
#include "memory/template_format.h"
#include "memory/template_store.h"

namespace fvmm::memory {
namespace {

Status link_file(int from, int to, const char* name) {
  if (::linkat(from, name, to, name, 0) == 0) return {};
  const int error = errno;
  if (error == EXDEV) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("{} is on another filesystem, where a hard link cannot reach: put both stores on one "
                             "filesystem, or push the template",
                             name),
                 error);
  }
  const Errc code = error == EPERM || error == EACCES ? Errc::kPermissionDenied : Errc::kIo;
  return Error(code, fmt::format("link {}", name), error);
}

Status check_free(const TemplateStore& store, const TemplateInfo& wanted) {
  for (const TemplateInfo& known : FVMM_TRY(store.list())) {
    if (known.id != wanted.id) continue;
    return Error(Errc::kAlreadyExists,
                 fmt::format("template {} is here already, as \"{}\"{}", wanted.id.hex(), known.name,
                             known.digest == wanted.digest ? "" : " with other content"));
  }
  std::error_code error;
  if (!std::filesystem::exists(store.directory() / wanted.name, error)) return {};
  return Error(Errc::kAlreadyExists, fmt::format("another template \"{}\" exists already", wanted.name));
}

}  // namespace

Result<TemplateInfo> TemplateStore::import_linked(const std::filesystem::path& template_directory) {
  const std::string context = fmt::format("import {}", template_directory.string());
  const OpenTemplate source = FVMM_TRY(OpenTemplate::open(template_directory), context);  // pinned until we are done
  const TemplateInfo& info = source.info();
  FVMM_TRY(check_stored_name(info.name), context);
  FVMM_TRY(check_free(*this, info), context);
  if (info.is_delta()) FVMM_TRY(find_parent(directory_, source.manifest_), context);
  StagingDirectory staging = FVMM_TRY(StagingDirectory::create(directory_), context);
  for (const char* name : {payload_file(source.manifest_), kHashesFile, kMachineFile, kDeltaFile}) {
    if (name == kDeltaFile && !source.manifest_.has_delta()) continue;
    FVMM_TRY(link_file(source.directory_.get(), staging.fd(), name), context);
  }
  for (const std::string& file : disk_files(source.manifest_)) {
    FVMM_TRY(link_file(source.directory_.get(), staging.fd(), file.c_str()), context);
  }
  // Links first: they say at once that the filesystem is another one, and cost nothing to take back.
  const VerifyReport report = FVMM_TRY(verify_open(source), context);
  if (!report.detail.empty()) return Error(Errc::kDataLoss, fmt::format("{}: {}", context, report.detail));
  FVMM_TRY(staging.publish(info.name, encode_manifest(source.manifest_)), context);
  return find(info.name);
}

}  // namespace fvmm::memory
