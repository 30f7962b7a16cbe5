#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <cerrno>

#include "base/file.h"
#include "memory/template_directory.h"
#include "memory/template_format.h"
#include "memory/template_store.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

Error gone(const fs::path& directory) {
  return Error(Errc::kNotFound, fmt::format("template \"{}\" was removed", directory.filename().string()));
}

/// A shared lock that holds: taken, and the template is still where it was.
Result<UniqueFd> take_pin(int directory, const fs::path& path) {
  Result<UniqueFd> pin = open_in(directory, kPinFile, O_RDONLY);
  if (!pin && pin.error().code() != Errc::kNotFound) return std::move(pin.error());
  if (!pin && !is_same_directory(directory, path)) return gone(path);
  if (!pin) return Error(Errc::kDataLoss, "the pin file is missing");
  if (::flock(pin->get(), LOCK_SH | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return gone(path);  // only a removal locks exclusively, and it does not turn back
    return Error(Errc::kIo, "lock the pin file", errno);
  }
  if (!is_same_directory(directory, path)) return gone(path);
  return pin;
}

}  // namespace

Result<OpenTemplate> OpenTemplate::open(const fs::path& template_directory) {
  std::error_code error;
  const fs::path path = fs::absolute(template_directory / "", error).parent_path().lexically_normal();
  if (error) return Error(Errc::kIo, fmt::format("{}", template_directory.string()), error.value());
  const std::string context = fmt::format("template {}", path.string());
  OpenTemplate opened;
  opened.directory_ = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY), context);
  opened.pin_ = FVMM_TRY(take_pin(opened.directory_.get(), path), context);
  Inspected seen = FVMM_TRY(inspect(opened.directory_.get(), path), context);
  opened.memory_ = FVMM_TRY(open_in(opened.directory_.get(), kMemoryFile, O_RDONLY), context);
  opened.info_ = std::move(seen.info);
  opened.manifest_ = std::move(seen.manifest);
  return opened;
}

Result<v1::MachineState> OpenTemplate::machine_state() const {
  const std::string context = fmt::format("template {}", info_.name);
  const std::string file = FVMM_TRY(read_in(directory_.get(), kMachineFile, kMachineBytesMax), context);
  if (hash_bytes(as_bytes(file)).raw() != manifest_.machine().checksum()) {
    return Error(Errc::kDataLoss, context + ": machine state: checksum is not the manifest's");
  }
  return FVMM_TRY(decode_machine(file), context);
}

}  // namespace fvmm::memory
