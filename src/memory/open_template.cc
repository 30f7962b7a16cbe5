#include "memory/open_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"
#include "memory/template_chain.h"
#include "memory/template_format.h"

namespace fvmm::memory {

Result<OpenTemplate> OpenTemplate::open(const std::filesystem::path& template_directory) {
  Chain chain = FVMM_TRY(open_chain(template_directory));
  OpenTemplate opened;
  std::vector<OverlayRun> runs = FVMM_TRY(resolve(chain));
  std::vector<UniqueFd> files;
  for (std::size_t i = chain.layers.size() - 1; i-- > 0;) files.push_back(std::move(chain.layers[i].payload));
  ChainLayer& top = chain.layers.front();
  opened.info_ = std::move(top.info);
  opened.info_.chain = static_cast<std::uint32_t>(chain.layers.size());
  opened.info_.runs = runs.size();
  opened.manifest_ = std::move(top.manifest);
  opened.directory_ = std::move(chain.directory);
  opened.hashes_ = std::move(top.hashes);
  opened.delta_ = std::move(chain.delta);
  opened.machine_ = std::move(chain.machine);
  opened.image_ = std::make_shared<const TemplateImage>(std::move(chain.layers.back().payload), std::move(files),
                                                        std::move(runs), opened.info_.memory_bytes);
  for (ChainLayer& layer : chain.layers) opened.pins_.push_back(std::move(layer.pin));
  return opened;
}

Status OpenTemplate::read_pages(PageRange range, std::span<std::byte> out) const {
  const std::uint64_t pages = info_.memory_bytes / kPageBytes;
  if (range.first > pages || range.count > pages - range.first || out.size() != range.count * kPageBytes) {
    return Error(Errc::kOutOfRange, fmt::format("template {}: {} pages at {} into {} bytes, it has {}", info_.name,
                                                range.count, range.first, out.size(), pages));
  }
  FVMM_TRY(image_->read_pages(range, out), fmt::format("template {}", info_.name));
  return {};
}

Result<HashCursor> OpenTemplate::delta_hashes() const {
  if (delta_) return HashCursor::open(delta_.get(), info_.memory_bytes, manifest_.delta());
  if (info_.is_delta()) return HashCursor::open(hashes_.get(), info_.memory_bytes, manifest_.hashes());
  return Error(Errc::kFailedPrecondition, fmt::format("template {} is no delta and was none", info_.name));
}

Result<v1::MachineState> OpenTemplate::machine_state() const {
  const std::string context = fmt::format("template {}", info_.name);
  const std::string file = FVMM_TRY(read_whole(machine_.get(), kMachineFile, kMachineBytesMax), context);
  if (hash_bytes(as_bytes(file)).raw() != manifest_.machine().checksum()) {
    return Error(Errc::kDataLoss, context + ": machine state: checksum is not the manifest's");
  }
  return FVMM_TRY(decode_machine(file), context);
}

}  // namespace fvmm::memory
