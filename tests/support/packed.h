// Compressed content as the kernel's build makes it, and bzImages around it.
#pragma once

#include <gtest/gtest.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/check.h"

namespace fvmm::test {

inline std::string packed_gzip(const std::string& content) {
  z_stream stream{};
  FVMM_CHECK(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK, "zlib");
  std::string out(deflateBound(&stream, content.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  FVMM_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END, "zlib");
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

/// With the x86 filter and CRC32, as scripts/xz_wrap.sh has it.
inline std::string packed_xz(const std::string& content) {
  lzma_options_lzma options;
  FVMM_CHECK(lzma_lzma_preset(&options, 1) == 0, "liblzma");
  lzma_filter filters[] = {{.id = LZMA_FILTER_X86, .options = nullptr},
                           {.id = LZMA_FILTER_LZMA2, .options = &options},
                           {.id = LZMA_VLI_UNKNOWN, .options = nullptr}};
  std::string out(lzma_stream_buffer_bound(content.size()), '\0');
  std::size_t at = 0;
  FVMM_CHECK(lzma_stream_buffer_encode(filters, LZMA_CHECK_CRC32, nullptr,
                                       reinterpret_cast<const std::uint8_t*>(content.data()), content.size(),
                                       reinterpret_cast<std::uint8_t*>(out.data()), &at, out.size()) == LZMA_OK,
             "liblzma");
  out.resize(at);
  return out;
}

inline std::string packed_zstd(const std::string& content) {
  std::string out(ZSTD_compressBound(content.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), content.data(), content.size(), 3));
  return out;
}

/// Zeros that nobody has to hold in memory.
inline std::string packed_zeros_zstd(std::uint64_t bytes) {
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setPledgedSrcSize(context, bytes);
  const std::string zeros(1U << 20, '\0');
  std::string out;
  std::string part(ZSTD_CStreamOutSize(), '\0');
  for (std::uint64_t left = bytes; left != 0;) {
    ZSTD_inBuffer in{zeros.data(), static_cast<std::size_t>(std::min<std::uint64_t>(left, zeros.size())), 0};
    left -= in.size;
    for (bool done = false; !done;) {
      ZSTD_outBuffer to{part.data(), part.size(), 0};
      const std::size_t rest = ZSTD_compressStream2(context, &to, &in, left == 0 ? ZSTD_e_end : ZSTD_e_continue);
      FVMM_CHECK(ZSTD_isError(rest) == 0, "libzstd");
      out.append(part, 0, to.pos);
      done = left == 0 ? rest == 0 : in.pos == in.size;
    }
  }
  ZSTD_freeCCtx(context);
  return out;
}

/// The legacy form, `lz4 -l`: magic, then size and data of each block of 8 MiB.
inline std::string packed_lz4(const std::string& content) {
  constexpr std::size_t kBlock = 8U << 20;
  std::string out("\x02\x21\x4c\x18", 4);
  for (std::size_t at = 0; at < content.size(); at += kBlock) {
    const std::string part = content.substr(at, kBlock);
    std::string block(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(part.size()))), '\0');
    const int bytes =
        LZ4_compress_default(part.data(), block.data(), static_cast<int>(part.size()), static_cast<int>(block.size()));
    out.append(reinterpret_cast<const char*>(&bytes), 4).append(block, 0, static_cast<std::size_t>(bytes));
  }
  return out;
}

inline std::string packed(const std::string& format, const std::string& content) {
  if (format == "gzip") return packed_gzip(content);
  if (format == "xz") return packed_xz(content);
  if (format == "zstd") return packed_zstd(content);
  FVMM_CHECK(format == "lz4", "a format of kernels");
  return packed_lz4(content);
}

/// A bzImage: four setup sectors with the header of protocol 2.15, 64 bytes of protected-mode code, the payload.
/// Offsets are those of Documentation/x86/boot.rst.
inline std::string bzimage_of(const std::string& payload) {
  constexpr std::size_t kSetupBytes = 5 * 512;
  constexpr std::size_t kCodeBytes = 64;
  std::string image(kSetupBytes + kCodeBytes, '\0');
  const auto put = [&](std::size_t offset, auto value) { std::memcpy(image.data() + offset, &value, sizeof value); };
  put(0x1F1, std::uint8_t{4});
  put(0x1FE, std::uint16_t{0xAA55});
  put(0x200, std::uint8_t{0xEB});
  put(0x201, std::uint8_t{0x6A});  // the header ends at 0x26C
  std::memcpy(image.data() + 0x202, "HdrS", 4);
  put(0x206, std::uint16_t{0x020F});
  put(0x211, std::uint8_t{1});            // LOADED_HIGH
  put(0x22C, std::uint32_t{0x7FFFFFFF});  // initrd_addr_max
  put(0x230, std::uint32_t{0x200000});
  put(0x236, std::uint16_t{0x3});   // XLF_KERNEL_64, XLF_CAN_BE_LOADED_ABOVE_4G
  put(0x238, std::uint32_t{2047});  // cmdline_size
  put(0x248, static_cast<std::uint32_t>(kCodeBytes));
  put(0x24C, static_cast<std::uint32_t>(payload.size()));
  put(0x258, std::uint64_t{0x1000000});
  return image + payload;
}

}  // namespace fvmm::test
