#include "vmm/unpack.h"

#include <fmt/format.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/scope_exit.h"
#include "base/units.h"

namespace fvmm::vmm {
namespace {

constexpr std::size_t kChunkBytes = 1U << 20;
constexpr std::uint64_t kXzMemoryMax = 256 * kMiB;   // dictionaries of kernels have 32 MiB
constexpr int kZstdWindowLogMax = 27;                // 128 MiB: what `zstd -22 --ultra` of the build needs
constexpr std::size_t kLz4BlockBytesMax = 8U << 20;  // of the legacy form, unpacked
constexpr std::uint32_t kLz4LegacyMagic = 0x184C2102;

Error damaged(std::string_view format) {
  return {Errc::kInvalidArgument, fmt::format("the {} data is damaged or cut short", format)};
}
Error too_large(std::string_view format, std::uint64_t bytes_max) {
  return {Errc::kResourceExhausted,
          fmt::format("the {} data unpacks to more than {}", format, format_bytes(bytes_max))};
}

/// Where the content goes: grows by chunks up to the limit.
class Sink {
 public:
  explicit Sink(std::uint64_t bytes_max) : bytes_max_(bytes_max) {}
  /// Room for more, at least one byte; empty at the limit.
  std::span<char> room() {
    if (used_ == content_.size()) content_.resize(std::min<std::uint64_t>(used_ + kChunkBytes, bytes_max_));
    return std::span(content_).subspan(used_);
  }
  void fill(std::size_t bytes) { used_ += bytes; }
  [[nodiscard]] bool full() const { return used_ == bytes_max_; }
  std::string take() {
    content_.resize(used_);
    return std::move(content_);
  }

 private:
  std::uint64_t bytes_max_;
  std::string content_;
  std::size_t used_ = 0;
};

enum class Step { kMore, kEnd, kDamaged };

/// Calls `step` with room until the stream ends; all three libraries fail when they cannot go on. A full sink gets one
/// more call with a spare byte: the end of a stream may need none.
template <class StepFunction>
Result<std::string> run(std::string_view format, std::uint64_t bytes_max, const StepFunction& step) {
  Sink sink(bytes_max);
  char spare = 0;
  for (;;) {
    const bool full = sink.full();
    const std::span<char> room = full ? std::span(&spare, 1) : sink.room();
    std::size_t written = 0;
    const Step done = step(room, written);
    if (full && written != 0) return too_large(format, bytes_max);
    sink.fill(full ? 0 : written);
    if (done == Step::kEnd) return sink.take();
    if (done == Step::kDamaged) return damaged(format);
  }
}

Result<std::string> unpack_gzip(std::span<const std::byte> packed, std::uint64_t bytes_max) {
  z_stream stream{};
  constexpr int kGzip = 16 + MAX_WBITS;
  if (inflateInit2(&stream, kGzip) != Z_OK) return Error(Errc::kResourceExhausted, "zlib has no memory");
  const ScopeExit end([&] { inflateEnd(&stream); });
  if (packed.size() > UINT32_MAX) return damaged("gzip");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  return run("gzip", bytes_max, [&](std::span<char> room, std::size_t& written) {
    stream.next_out = reinterpret_cast<Bytef*>(room.data());
    stream.avail_out = static_cast<uInt>(room.size());
    const int answer = inflate(&stream, Z_NO_FLUSH);
    written = room.size() - stream.avail_out;
    if (answer == Z_STREAM_END) return Step::kEnd;
    return answer == Z_OK ? Step::kMore : Step::kDamaged;
  });
}

Result<std::string> unpack_xz(std::span<const std::byte> packed, std::uint64_t bytes_max) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, kXzMemoryMax, 0) != LZMA_OK) {
    return Error(Errc::kResourceExhausted, "liblzma has no memory");
  }
  const ScopeExit end([&] { lzma_end(&stream); });
  stream.next_in = reinterpret_cast<const std::uint8_t*>(packed.data());
  stream.avail_in = packed.size();
  return run("xz", bytes_max, [&](std::span<char> room, std::size_t& written) {
    stream.next_out = reinterpret_cast<std::uint8_t*>(room.data());
    stream.avail_out = room.size();
    const lzma_ret answer = lzma_code(&stream, LZMA_RUN);
    written = room.size() - stream.avail_out;
    if (answer == LZMA_STREAM_END) return Step::kEnd;
    return answer == LZMA_OK ? Step::kMore : Step::kDamaged;
  });
}

Result<std::string> unpack_zstd(std::span<const std::byte> packed, std::uint64_t bytes_max) {
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), &ZSTD_freeDCtx);
  if (!context) return Error(Errc::kResourceExhausted, "libzstd has no memory");
  ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kZstdWindowLogMax);
  const unsigned long long declared = ZSTD_getFrameContentSize(packed.data(), packed.size());
  const bool known = declared != ZSTD_CONTENTSIZE_UNKNOWN && declared != ZSTD_CONTENTSIZE_ERROR;
  if (known && declared > bytes_max) return too_large("zstd", bytes_max);  // before anything is allocated
  ZSTD_inBuffer in{packed.data(), packed.size(), 0};
  return run("zstd", bytes_max, [&](std::span<char> room, std::size_t& written) {
    ZSTD_outBuffer out{room.data(), room.size(), 0};
    const std::size_t answer = ZSTD_decompressStream(context.get(), &out, &in);
    written = out.pos;
    if (ZSTD_isError(answer) != 0) return Step::kDamaged;
    return answer == 0 ? Step::kEnd : Step::kMore;
  });
}

// Magic, then blocks: packed size (4 bytes, little-endian) and as many bytes, each up to 8 MiB unpacked. There is no
// end mark; what cannot be a further block is the size that the kernel's build appends.
Result<std::string> unpack_lz4(std::span<const std::byte> packed, std::uint64_t bytes_max) {
  std::string content;
  std::vector<char> block(kLz4BlockBytesMax);
  std::size_t at = sizeof(kLz4LegacyMagic);
  for (bool any = false;; any = true) {
    std::uint32_t bytes = 0;
    if (packed.size() - at < sizeof bytes) break;
    std::memcpy(&bytes, packed.data() + at, sizeof bytes);
    if (any && packed.size() - at == sizeof bytes) break;
    at += sizeof bytes;
    if (bytes == 0 || bytes > packed.size() - at || bytes > LZ4_COMPRESSBOUND(kLz4BlockBytesMax)) return damaged("lz4");
    const int got = LZ4_decompress_safe(reinterpret_cast<const char*>(packed.data() + at), block.data(),
                                        static_cast<int>(bytes), static_cast<int>(block.size()));
    if (got <= 0) return damaged("lz4");
    if (static_cast<std::uint64_t>(got) > bytes_max - content.size()) return too_large("lz4", bytes_max);
    content.append(block.data(), static_cast<std::size_t>(got));
    at += bytes;
  }
  if (content.empty()) return damaged("lz4");
  return content;
}

struct Format {
  std::string_view name;
  std::string_view magic;
  Result<std::string> (*unpack)(std::span<const std::byte>, std::uint64_t);
};
using std::string_view_literals::operator""sv;
constexpr std::array<Format, 4> kFormats{{
    {"gzip", "\x1f\x8b\x08"sv, unpack_gzip},
    {"xz",
     "\xfd"
     "7zXZ\0"sv,
     unpack_xz},
    {"zstd", "\x28\xb5\x2f\xfd"sv, unpack_zstd},
    {"lz4", "\x02\x21\x4c\x18"sv, unpack_lz4},
}};

const Format* format_of(std::span<const std::byte> packed) {
  const std::string_view text(reinterpret_cast<const char*>(packed.data()), packed.size());
  const auto* const at = std::find_if(kFormats.begin(), kFormats.end(),
                                      [&](const Format& format) { return text.starts_with(format.magic); });
  return at == kFormats.end() ? nullptr : at;
}

}  // namespace

std::string_view compression_of(std::span<const std::byte> packed) {
  const Format* const format = format_of(packed);
  return format == nullptr ? std::string_view() : format->name;
}

Result<std::string> unpack(std::span<const std::byte> packed, std::uint64_t bytes_max) {
  const Format* const format = format_of(packed);
  if (format == nullptr) {
    return Error(Errc::kInvalidArgument, "compressed by none of gzip, xz, zstd and lz4");
  }
  return format->unpack(packed, bytes_max);
}

}  // namespace fvmm::vmm
