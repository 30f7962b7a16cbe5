// bzImages that are not quite: parsed within their bounds or refused by type, then unpacked, loaded or refused.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "support/elf_image.h"
#include "support/packed.h"
#include "vmm/boot_data.h"
#include "vmm/unpack.h"

namespace fvmm::vmm {
namespace {

#ifdef FVMM_SANITIZED  // ten times as slow, and more where the machine is shared
constexpr int kImages = 4'000;
#else
constexpr int kImages = 20'000;
#endif
constexpr std::uint64_t kUnpackedMax = 4 * kMiB;

std::string mutate(std::string image, std::mt19937_64& random) {
  static constexpr std::uint64_t kAwkward[] = {0,          1,          0x1F1,      0x28F,      0x290,
                                               0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFE00, 0xFFFFFFFFFFFFFFFF};
  const auto changes = 1 + random() % 4;
  for (std::uint64_t i = 0; i < changes && !image.empty(); ++i) {
    // Half of them in the setup header.
    const bool header = random() % 2 == 0 && image.size() > 0x270;
    const std::size_t at = header ? 0x1F1 + random() % 0x7F : random() % image.size();
    switch (random() % 4) {
      case 0:
        image[at] = static_cast<char>(image[at] ^ (1 << random() % 8));
        break;
      case 1:
        image[at] = static_cast<char>(random());
        break;
      case 2: {
        const std::uint64_t value = kAwkward[random() % std::size(kAwkward)] + random() % 3;
        std::memcpy(image.data() + at, &value, std::min<std::size_t>(4, image.size() - at));
        break;
      }
      default:
        if (random() % 8 == 0) image.resize(random() % image.size());
        break;
    }
  }
  return image;
}

TEST(VmmBzImageFuzz, AnyImageIsLoadedOrRefusedByType) {
  const char* const text = std::getenv("FVMM_SEED");  // NOLINT(concurrency-mt-unsafe): no other thread yet
  const std::uint64_t seed = text == nullptr ? 20240607 : std::strtoull(text, nullptr, 0);
  std::printf("FVMM_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto ram = memory::GuestMemory::reserve(16 * kMiB).value();
  ASSERT_TRUE(ram->map_zero().ok());
  const std::string kernel = test::kernel_of(std::string(3000, 'c')).build();
  std::vector<std::string> images;
  for (const char* const format : {"gzip", "xz", "zstd", "lz4"}) {
    images.push_back(test::bzimage_of(test::packed(format, kernel)));
  }
  int loaded = 0;
  for (int i = 0; i < kImages; ++i) {
    const std::string image = mutate(images[static_cast<std::size_t>(i) % images.size()], random);
    const auto file = std::as_bytes(std::span(image));
    const auto parsed = parse_bzimage(file);
    if (!parsed) {
      ASSERT_EQ(parsed.error().code(), Errc::kInvalidArgument) << "image " << i;
      continue;
    }
    const auto inside = [&](std::span<const std::byte> part) {
      return part.empty() || (part.data() >= file.data() && part.data() + part.size() <= file.data() + file.size());
    };
    ASSERT_TRUE(inside(parsed->setup) && inside(parsed->payload)) << "image " << i;
    const auto params = write_linux_boot_data(*ram, parsed->setup, {}, 0);
    ASSERT_TRUE(params.ok()) << "image " << i;
    const auto vmlinux = unpack(parsed->payload, kUnpackedMax);
    if (!vmlinux) {
      const Errc code = vmlinux.error().code();
      ASSERT_TRUE(code == Errc::kInvalidArgument || code == Errc::kResourceExhausted) << "image " << i;
      continue;
    }
    ASSERT_LE(vmlinux->size(), kUnpackedMax);
    ++loaded;
  }
  std::printf("%d of %d loaded\n", loaded, kImages);
  EXPECT_GT(loaded, 0) << "some changes do no harm";
  EXPECT_LT(loaded, kImages) << "some do";
}

}  // namespace
}  // namespace fvmm::vmm
