#include "memory/template_chain.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

constexpr int kOpenAttemptsMax = 16;  // each time a fold has exchanged a directory meanwhile

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
    if (errno == EWOULDBLOCK) return gone(path);  // only a removal locks exclusively, and then nothing is in use
    return Error(Errc::kIo, "lock the pin file", errno);
  }
  if (!is_same_directory(directory, path)) return gone(path);
  return pin;
}

Result<ChainLayer> open_files(int directory, const fs::path& path) {
  ChainLayer layer;
  layer.pin = FVMM_TRY(take_pin(directory, path));
  Inspected seen = FVMM_TRY(inspect(directory, path));
  layer.payload = FVMM_TRY(open_in(directory, payload_file(seen.manifest), O_RDONLY));
  layer.hashes = FVMM_TRY(open_in(directory, kHashesFile, O_RDONLY));
  layer.info = std::move(seen.info);
  layer.manifest = std::move(seen.manifest);
  return layer;
}

/// Whether the directory of a layer is no longer the one whose files are open.
bool was_replaced(const ChainLayer& layer) {
  struct stat open {};
  struct stat named {};
  const fs::path file = layer.info.directory / payload_file(layer.manifest);
  return ::fstat(layer.payload.get(), &open) != 0 || ::stat(file.c_str(), &named) != 0 || open.st_dev != named.st_dev ||
         open.st_ino != named.st_ino;
}

/// @param replaced  set when the failure may come from a fold or removal that happened meanwhile
Result<ChainLayer> open_layer(const fs::path& path, UniqueFd& directory, bool& replaced) {
  directory = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY));
  Result<ChainLayer> layer = open_files(directory.get(), path);
  if (!layer) replaced = !is_same_directory(directory.get(), path) && ::access(path.c_str(), F_OK) == 0;
  return layer;
}

Result<ChainLayer> open_parent(const ChainLayer& child, bool& replaced) {
  const fs::path store = child.info.directory.parent_path();
  const Inspected found = FVMM_TRY(find_parent(store, child.manifest));
  UniqueFd directory;
  ChainLayer parent =
      FVMM_TRY(open_layer(found.info.directory, directory, replaced), fmt::format("parent \"{}\"", found.info.name));
  if (!is_parent_of(parent.info, child.info)) {
    replaced = true;
    return Error(Errc::kFailedPrecondition, fmt::format("parent \"{}\" has other content", parent.info.name));
  }
  if (parent.info.memory_bytes != child.info.memory_bytes) {
    return Error(Errc::kDataLoss, fmt::format("it has {} bytes of memory, parent \"{}\" {}", child.info.memory_bytes,
                                              parent.info.name, parent.info.memory_bytes));
  }
  return parent;
}

Result<Chain> try_chain(const fs::path& path, bool& replaced) {
  Chain chain;
  const std::string top = fmt::format("template {}", path.string());
  chain.layers.push_back(FVMM_TRY(open_layer(path, chain.directory, replaced), top));
  chain.machine = FVMM_TRY(open_in(chain.directory.get(), kMachineFile, O_RDONLY), top);
  if (chain.layers.front().manifest.has_delta()) {
    chain.delta = FVMM_TRY(open_in(chain.directory.get(), kDeltaFile, O_RDONLY), top);
  }
  while (chain.layers.back().info.is_delta()) {
    const ChainLayer& child = chain.layers.back();
    const std::string context = fmt::format("template {}", child.info.directory.string());
    if (chain.layers.size() == kChainMax) {
      return Error(Errc::kFailedPrecondition,
                   fmt::format("{}: its chain has more than {} generations", top, kChainMax));
    }
    Result<ChainLayer> parent = open_parent(child, replaced);
    if (!parent) {
      replaced = replaced || std::any_of(chain.layers.begin(), chain.layers.end(), was_replaced);
      return std::move(parent.error()).with(context);
    }
    chain.layers.push_back(std::move(*parent));
  }
  return chain;
}

/// Runs of one delta.
Result<std::vector<OverlayRun>> runs_of(const ChainLayer& delta, std::uint32_t layer) {
  HashTableReader reader =
      FVMM_TRY(HashTableReader::open(delta.hashes.get(), delta.info.memory_bytes, delta.manifest.hashes()),
               fmt::format("template {}", delta.info.directory.string()));
  std::vector<OverlayRun> runs;
  std::uint64_t file_page = 0;
  for (;;) {
    const auto batch = FVMM_TRY(reader.next(), fmt::format("template {}", delta.info.directory.string()));
    if (batch.empty()) return runs;
    for (const HashEntry& entry : batch) {
      if (!runs.empty() && runs.back().pages.first + runs.back().pages.count == entry.page) {
        ++runs.back().pages.count;
      } else {
        runs.push_back({.pages = {.first = entry.page, .count = 1}, .layer = layer, .file_page = file_page});
      }
      ++file_page;
    }
  }
}

bool matches(const TemplateInfo& info, const v1::TemplateLink& link) {
  return info.id.raw() == link.id() && info.digest.raw() == link.digest();
}

}  // namespace

bool is_parent_of(const TemplateInfo& parent, const TemplateInfo& child) {
  return child.is_delta() && parent.id == child.below_id && parent.digest == child.below_digest;
}

Result<Chain> open_chain(const fs::path& directory) {
  std::error_code error;
  const fs::path path = fs::absolute(directory / "", error).parent_path().lexically_normal();
  if (error) return Error(Errc::kIo, fmt::format("{}", directory.string()), error.value());
  for (int attempt = 1;; ++attempt) {
    bool replaced = false;
    Result<Chain> chain = try_chain(path, replaced);
    if (chain || !replaced || attempt == kOpenAttemptsMax) return chain;
  }
}

Result<std::vector<OverlayRun>> resolve(const Chain& chain) {
  return resolve(chain, chain.layers.size() - 1);
}

Result<std::vector<OverlayRun>> resolve(const Chain& chain, std::size_t below) {
  std::vector<OverlayRun> runs;
  for (std::size_t layer = 0; layer < below; ++layer) {  // from below up: the newest has the last word
    runs = overlay(FVMM_TRY(runs_of(chain.layers[below - 1 - layer], static_cast<std::uint32_t>(layer))), runs);
  }
  return runs;
}

Result<Inspected> find_parent(const fs::path& store, const v1::TemplateManifest& child) {
  const v1::TemplateLink link = lies_on(child);
  Result<Inspected> named = inspect_path(store / link.name());
  if (named && matches(named->info, link)) return named;
  for (const std::string& name : FVMM_TRY(stored_names(store))) {
    Result<Inspected> other = inspect_path(store / name);
    if (other && matches(other->info, link)) return other;
  }
  const std::string parent = fmt::format("parent \"{}\"", link.name());
  if (named) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("{} has digest {} here, digest {} of id {} is needed", parent, named->info.digest.hex(),
                             to_hex(as_bytes(link.digest())), to_hex(as_bytes(link.id()))));
  }
  if (named.error().code() != Errc::kNotFound) return std::move(named.error()).with(parent);
  return Error(Errc::kFailedPrecondition,
               fmt::format("{} (digest {}) is not here", parent, to_hex(as_bytes(link.digest()))));
}

std::uint32_t chain_length(const fs::path& store, const v1::TemplateManifest& manifest) {
  v1::TemplateManifest at = manifest;
  for (std::uint32_t length = 1; length <= kChainMax; ++length) {
    if (at.kind() != v1::TEMPLATE_DELTA) return length;
    Result<Inspected> parent = find_parent(store, at);
    if (!parent) return 0;
    at = std::move(parent->manifest);
  }
  return 0;
}

}  // namespace fvmm::memory
