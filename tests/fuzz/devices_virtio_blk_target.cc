// virtio-blk behind its transport: a raw image, a read-only one, or a layer with copy on write, over files whose
// operations end in any order, short, interrupted or with an error.
#include "disk/layer.h"
#include "support/faulty_io.h"
#include "support/fuzz_virtio.h"
#include "support/temp_dir.h"

namespace fvmm::testing {
namespace {

enum class Disk { kRaw, kReadOnly, kLayer };

constexpr std::uint64_t kDiskBytes = kMiB + 3 * disk::kSectorBytes;
constexpr std::uint64_t kBaseBytes = kMiB / 2 + disk::kSectorBytes;

disk::RawImage memory_image(std::uint64_t bytes) {
  disk::RawImage image{.file = UniqueFd(::memfd_create("disk", MFD_CLOEXEC)), .bytes = bytes};
  FVMM_CHECK(::ftruncate(image.file.get(), static_cast<off_t>(bytes)) == 0, "a memfd of a test");
  return image;
}

disk::Stack stack_of(Disk disk) {
  if (disk != Disk::kLayer) return disk::Stack::raw(memory_image(kDiskBytes), disk == Disk::kRaw);
  const TempDir directory("/dev/shm");
  auto layer =
      disk::Layer::create(directory.path() / "layer", {.id = Id::random(), .parent = {}, .disk_bytes = kDiskBytes});
  return disk::Stack::layered(std::move(layer).value(), {}, memory_image(kBaseBytes)).value();
}

std::unique_ptr<devices::VirtioBlk> make_blk(Disk disk, std::uint32_t seed) {
  static devices::OutputGate open_gate;
  auto io = std::make_unique<FaultyIo>(seed);
  io->fail_every = seed % 4 == 0 ? 8 : 0;
  return std::make_unique<devices::VirtioBlk>(
      devices::VirtioBlkSetup{.stack = stack_of(disk), .io = std::move(io), .gate = open_gate, .id = "fuzz"});
}

}  // namespace
}  // namespace fvmm::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::FuzzInput input({data, size});
  const auto disk = static_cast<fvmm::testing::Disk>(input.below(3));
  const auto seed = static_cast<std::uint32_t>(input.below(256));
  fvmm::testing::VirtioKind kind = fvmm::testing::kind_named("blk");
  kind.make = [=](fvmm::devices::OutputSink&) { return fvmm::testing::make_blk(disk, seed); };
  fvmm::testing::VirtioFuzz(kind).run(input);
  return 0;
}
