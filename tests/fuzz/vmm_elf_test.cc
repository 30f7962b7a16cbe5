// Kernels that are not quite ELF: any file is either loaded or refused by type, and nothing outside guest RAM is
// touched (ASan and the guard pages of the mapping would say so).
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "support/elf_image.h"
#include "support/stored_template.h"
#include "vmm/boot.h"

namespace fvmm::vmm {
namespace {

constexpr int kFiles = 2000;

std::string valid_kernel() {
  test::ElfImage image = test::kernel_of(std::string(300, 'c'));
  image.segments.push_back({.address = 0x200000, .data = std::string(500, 'd'), .memory_bytes = 9000});
  image.notes = test::elf_note(std::string("GNU\0", 4), 3, "build") + image.notes;
  return image.build();
}

// Values that arithmetic on sizes and addresses trips over.
std::uint64_t awkward(std::mt19937_64& random) {
  constexpr std::uint64_t kMax = ~std::uint64_t{0};
  const std::uint64_t values[] = {0,           1,         0xfff,      0x1000,      0xfffff,   0x100000, 0x7fffffff,
                                  0x80000000U, kMax >> 1, kMax - 0xf, kMax - 0x37, 16 * kMiB, kMax};
  return values[random() % std::size(values)] + random() % 3;
}

std::string mutate(std::string image, std::mt19937_64& random) {
  const auto changes = 1 + random() % 4;
  for (std::uint64_t i = 0; i < changes && !image.empty(); ++i) {
    const std::size_t at = random() % (random() % 2 == 0 ? std::min<std::size_t>(image.size(), 240) : image.size());
    switch (random() % 4) {
      case 0:
        image[at] = static_cast<char>(image[at] ^ (1 << random() % 8));
        break;
      case 1:
        image[at] = static_cast<char>(random());
        break;
      case 2: {
        const std::uint64_t value = awkward(random);
        std::memcpy(image.data() + at, &value, std::min<std::size_t>(8, image.size() - at));
        break;
      }
      default:
        image.resize(random() % image.size());
        break;
    }
  }
  return image;
}

TEST(VmmElfFuzz, AnyFileIsLoadedOrRefusedByType) {
  const char* const text = std::getenv("FVMM_SEED");  // NOLINT(concurrency-mt-unsafe): no other thread yet
  const std::uint64_t seed = text == nullptr ? 20240607 : std::strtoull(text, nullptr, 0);
  std::printf("FVMM_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const testing::TempDir directory("/dev/shm");
  const std::string path = (directory.path() / "kernel").string();
  const auto ram = memory::GuestMemory::reserve(16 * kMiB).value();
  ASSERT_TRUE(ram->map_zero().ok());
  const std::string valid = valid_kernel();
  int loaded = 0;
  for (int i = 0; i < kFiles; ++i) {
    {
      std::ofstream file(path, std::ios::binary | std::ios::trunc);
      const std::string image = mutate(valid, random);
      file.write(image.data(), static_cast<std::streamsize>(image.size()));
    }
    const auto entry = load_kernel(*ram, {.kernel = path, .initrd = "", .cmdline = "x"});
    if (entry) {
      ++loaded;
      EXPECT_TRUE(ram->layout().ram_offset(entry->entry, 1)) << "file " << i;
      EXPECT_GE(entry->entry, 0x100000U) << "file " << i;
      continue;
    }
    const Errc code = entry.error().code();
    EXPECT_TRUE(code == Errc::kInvalidArgument || code == Errc::kResourceExhausted)
        << "file " << i << ": " << entry.error().message();
  }
  std::printf("%d of %d loaded\n", loaded, kFiles);
  EXPECT_GT(loaded, 0) << "some changes do no harm";
  EXPECT_LT(loaded, kFiles) << "some do";
}

}  // namespace
}  // namespace fvmm::vmm
