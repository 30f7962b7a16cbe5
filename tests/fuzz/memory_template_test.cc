// Mutated template files through their decoders: never a crash, never a wild allocation, and what is accepted is either
// the original or obeys every limit. FVMM_FUZZ_SEED and FVMM_FUZZ_ROUNDS change the run; a failure prints its seed.
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/template_format.h"
#include "support/mutate.h"

namespace fvmm::memory {
namespace {

using testing::fuzz_setting;
using testing::mutate;
using testing::Random;

const std::uint64_t kSeed = fuzz_setting("FVMM_FUZZ_SEED", 20260101);
const std::uint64_t kRounds = fuzz_setting("FVMM_FUZZ_ROUNDS", 100'000);
constexpr std::uint64_t kMemory = 16 * kMiB;

/// Makes length and checksum of an envelope right again, so that what lies behind them is reached.
std::string reseal(std::string file) {
  if (file.size() < 32) return file;
  const auto body_bytes = static_cast<std::uint32_t>(file.size() - 32);
  std::memcpy(file.data() + 12, &body_bytes, sizeof(body_bytes));
  StreamHash hash;
  hash.update(as_bytes(file).first(16));
  hash.update(as_bytes(file).subspan(32));
  std::memcpy(file.data() + 16, hash.finish().bytes.data(), 16);
  return file;
}

v1::TemplateManifest a_manifest() {
  v1::TemplateManifest manifest;
  manifest.set_kind(v1::TEMPLATE_BASE);
  manifest.set_id(std::string(16, 'i'));
  manifest.set_name("web");
  manifest.set_parent_digest(std::string(16, '\0'));
  manifest.set_digest(std::string(16, 'd'));
  manifest.set_memory_bytes(kMemory);
  manifest.set_pages(100);
  manifest.set_created("2026-01-01T00:00:00Z");
  manifest.mutable_config()->set_cmdline("console=ttyS0");
  manifest.mutable_hashes()->set_bytes(hash_table_bytes(100));
  manifest.mutable_hashes()->set_checksum(std::string(16, 'h'));
  manifest.mutable_machine()->set_bytes(1000);
  manifest.mutable_machine()->set_checksum(std::string(16, 'm'));
  return manifest;
}

/// The kinds of manifest there are.
std::vector<v1::TemplateManifest> manifests() {
  v1::TemplateManifest delta = a_manifest();
  delta.set_kind(v1::TEMPLATE_DELTA);
  delta.set_name("web@2");
  delta.set_parent_digest(std::string(16, 'p'));
  delta.set_parent_id(std::string(16, 'q'));
  delta.set_parent_name("web");
  delta.set_runs(17);
  v1::TemplateManifest folded = delta;
  folded.set_kind(v1::TEMPLATE_BASE);
  folded.clear_runs();
  folded.mutable_delta()->set_bytes(hash_table_bytes(30));
  folded.mutable_delta()->set_checksum(std::string(16, 'l'));
  v1::TemplateManifest squashed = delta;
  *squashed.mutable_delta() = folded.delta();
  squashed.mutable_lies_on()->set_name("golden");
  squashed.mutable_lies_on()->set_id(std::string(16, 'g'));
  squashed.mutable_lies_on()->set_digest(std::string(16, 'e'));
  v1::TemplateManifest with_disks = delta;
  for (int i = 0; i < 3; ++i) with_disks.mutable_config()->add_disks()->set_path("/disk");
  for (const std::uint32_t disk : {0U, 2U}) {
    v1::DiskOfTemplate& held = *with_disks.add_disks();
    held.set_disk(disk);
    for (char id = 'x'; id <= 'z'; ++id) {
      v1::LayerOfDisk& layer = *held.add_layers();
      layer.set_id(std::string(16, id));
      layer.set_bytes(1 << 20);
    }
  }
  return {a_manifest(), delta, folded, squashed, with_disks};
}

void expect_lineage(const v1::TemplateManifest& manifest) {
  const bool plain = manifest.kind() == v1::TEMPLATE_BASE && !is_folded(manifest);
  EXPECT_EQ(manifest.parent_digest().size(), 16U);
  EXPECT_EQ(manifest.parent_digest() == std::string(16, '\0'), plain);
  if (plain) return;
  EXPECT_EQ(manifest.parent_id().size(), 16U);
  EXPECT_TRUE(check_stored_name(manifest.parent_name()).ok());  // never a way out of the store
  EXPECT_LE(manifest.runs(), manifest.memory_bytes() / kPageBytes);
  const v1::TemplateLink below = lies_on(manifest);
  EXPECT_EQ(below.id().size(), 16U);
  EXPECT_EQ(below.digest().size(), 16U);
  EXPECT_TRUE(check_stored_name(below.name()).ok());
  if (!manifest.has_delta()) return;
  EXPECT_EQ(manifest.delta().checksum().size(), 16U);
  EXPECT_LE(hash_entries_in(manifest.delta().bytes()), manifest.memory_bytes() / kPageBytes);
}

void expect_within_limits(const v1::TemplateManifest& manifest) {
  EXPECT_EQ(manifest.id().size(), 16U);
  EXPECT_EQ(manifest.digest().size(), 16U);
  EXPECT_GE(manifest.memory_bytes(), kRamBytesMin);
  EXPECT_LE(manifest.memory_bytes(), kRamBytesMax);
  EXPECT_LE(manifest.pages(), manifest.memory_bytes() / kPageBytes);
  EXPECT_EQ(manifest.hashes().bytes(), hash_table_bytes(manifest.pages()));
  EXPECT_LE(manifest.machine().bytes(), kMachineBytesMax);
  EXPECT_LE(manifest.disks_size(), manifest.config().disks_size());
  for (const v1::DiskOfTemplate& disk : manifest.disks()) {
    EXPECT_LT(disk.disk(), static_cast<std::uint32_t>(manifest.config().disks_size()));
    EXPECT_TRUE(disk.layers_size() > 0 && disk.layers_size() <= kDiskLayersMax);
    for (const v1::LayerOfDisk& layer : disk.layers()) EXPECT_EQ(layer.id().size(), 16U);  // no way out of the template
  }
  expect_lineage(manifest);
}

TEST(FuzzManifest, MutationsAreRefusedOrChangeNothing) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const google::protobuf::LogSilencer quiet;  // it prints every string that is not UTF-8
  Random random(kSeed);
  for (const v1::TemplateManifest& manifest : manifests()) {
    const std::string good = encode_manifest(manifest);
    ASSERT_TRUE(decode_manifest(good).ok());
    for (std::uint64_t round = 0; round < kRounds / 3; ++round) {
      const std::string bad = mutate(good, random);
      const auto decoded = decode_manifest(bad);
      EXPECT_EQ(decoded.ok(), bad == good) << "round " << round;
    }
  }
}

TEST(FuzzManifest, ResealedMutationsStayWithinLimits) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const google::protobuf::LogSilencer quiet;  // it prints every string that is not UTF-8
  Random random(kSeed);
  for (const v1::TemplateManifest& manifest : manifests()) {
    const std::string good = encode_manifest(manifest);
    std::uint64_t accepted = 0;
    for (std::uint64_t round = 0; round < kRounds / 3; ++round) {
      const auto decoded = decode_manifest(reseal(mutate(good, random, 32)));
      if (!decoded) continue;
      ++accepted;
      expect_within_limits(*decoded);
    }
    EXPECT_GT(accepted, 0U);  // the mutations reach what lies behind the checksum
  }
}

TEST(FuzzMachine, MutationsNeverCrash) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const google::protobuf::LogSilencer quiet;  // it prints every string that is not UTF-8
  Random random(kSeed);
  v1::MachineState state;
  state.set_version(1);
  state.add_vcpus()->set_xsave(std::string(512, 'x'));
  state.add_devices()->set_id("serial");
  const std::string good = *encode_machine(state);
  for (std::uint64_t round = 0; round < kRounds; ++round) {
    const std::string bad = mutate(good, random);
    EXPECT_EQ(decode_machine(bad).ok(), bad == good) << "round " << round;
    (void)decode_machine(reseal(mutate(good, random, 32)));
  }
}

/// Reads a whole table; the entries, or nothing when it was refused.
std::optional<std::vector<HashEntry>> read_table(const std::string& file, const v1::StoredFile& expected) {
  const UniqueFd fd(::memfd_create("hashes", MFD_CLOEXEC));
  EXPECT_TRUE(write_all(fd.get(), as_bytes(file), 0).ok());
  auto reader = HashTableReader::open(fd.get(), kMemory, expected);
  if (!reader) return std::nullopt;
  std::vector<HashEntry> entries;
  for (;;) {
    const auto batch = reader->next();
    if (!batch) return std::nullopt;
    if (batch->empty()) return entries;
    entries.insert(entries.end(), batch->begin(), batch->end());
  }
}

std::string a_table(v1::StoredFile& stored) {
  const UniqueFd fd(::memfd_create("hashes", MFD_CLOEXEC));
  HashTableWriter writer(fd.get(), kMemory);
  for (PageIndex page = 0; page < 50; ++page) EXPECT_TRUE(writer.add(page * 3, hash_bytes({})).ok());
  stored = *writer.finish();
  std::string file(stored.bytes(), '\0');
  EXPECT_TRUE(read_all(fd.get(), std::as_writable_bytes(std::span(file)), 0).ok());
  return file;
}

TEST(FuzzHashes, MutationsAreRefusedOrChangeNothing) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const google::protobuf::LogSilencer quiet;  // it prints every string that is not UTF-8
  Random random(kSeed);
  v1::StoredFile stored;
  const std::string good = a_table(stored);
  ASSERT_TRUE(read_table(good, stored));
  for (std::uint64_t round = 0; round < kRounds / 4; ++round) {
    const std::string bad = mutate(good, random);
    EXPECT_EQ(read_table(bad, stored).has_value(), bad == good) << "round " << round;
  }
}

TEST(FuzzHashes, ResealedMutationsStaySortedAndInRange) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const google::protobuf::LogSilencer quiet;  // it prints every string that is not UTF-8
  Random random(kSeed);
  v1::StoredFile stored;
  const std::string good = a_table(stored);
  std::uint64_t accepted = 0;
  for (std::uint64_t round = 0; round < kRounds / 4; ++round) {
    std::string bad = mutate(good, random, random() % 2 ? 48 : 0);
    if (bad.size() < 48) continue;
    StreamHash hash;
    hash.update(as_bytes(bad).subspan(48));
    hash.update(as_bytes(bad).first(32));
    const Digest checksum = hash.finish();
    std::memcpy(bad.data() + 32, checksum.bytes.data(), 16);
    v1::StoredFile expected;
    expected.set_bytes(bad.size());
    expected.set_checksum(checksum.raw());
    const auto entries = read_table(bad, expected);
    if (!entries) continue;
    ++accepted;
    for (std::size_t i = 0; i < entries->size(); ++i) {
      EXPECT_LT((*entries)[i].page, kMemory / kPageBytes);
      if (i > 0) {
        EXPECT_GT((*entries)[i].page, (*entries)[i - 1].page);
      }
    }
  }
  EXPECT_GT(accepted, 0U);
}

}  // namespace
}  // namespace fvmm::memory
