// Random generations over a random base, folded and squashed in random order, against a plain copy of the memory.
// FVMM_MODEL_SEED repeats one run.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <random>

#include "memory/guest_memory.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::content_of;
using testing::delta_over;
using testing::kTestMemoryBytes;
using testing::store_delta;
using testing::store_template;
using testing::wanted_template;
using testing::write_into;
using testing::Writes;

using Random = std::mt19937_64;
constexpr std::uint64_t kPages = kTestMemoryBytes / kPageBytes;

/// Bursts of neighbours and single pages, a quarter of them zero, near each other so that generations overlap.
Writes random_writes(Random& random) {
  Writes writes;
  for (std::uint64_t burst = random() % 30; burst > 0; --burst) {
    const PageIndex first = random() % 3 == 0 ? random() % kPages : random() % 200;
    const std::uint64_t count = random() % 4 == 0 ? 1 + random() % 40 : 1;
    for (PageIndex page = first; page < std::min(kPages, first + count); ++page) {
      writes[page] = random() % 4 == 0 ? 0 : 1 + static_cast<unsigned>(random() % 60000);
    }
  }
  if (random() % 4 == 0) writes[kPages - 1] = static_cast<unsigned>(random() % 3);
  return writes;
}

/// A line of generations, what each must show, and VMs that run on some of them.
class Model {
 public:
  explicit Model(std::uint64_t seed) : random_(seed) {
    std::vector<std::byte> memory(kTestMemoryBytes);
    write_into(random_writes(random_), memory);
    EXPECT_TRUE(store_template(store_, wanted_template("vm"), memory).ok());
    expected_["vm"] = std::move(memory);
    newest_ = "vm";
  }

  void step() {
    switch (random_() % 6) {
      case 0:
        return fold();
      case 1:
      case 2:
        return squash();
      case 3:
        return map();
      default:
        return add();
    }
  }

  void check() {
    for (const auto& [name, memory] : expected_) {
      EXPECT_TRUE(content_of(store_, name) == memory) << name;
      EXPECT_EQ(store_.verify(name)->detail, "") << name;
      EXPECT_LE(OpenTemplate::open(store_.directory() / name)->runs().size(), store_.find(name)->runs) << name;
    }
    for (const auto& [name, ram] : mapped_) {
      EXPECT_EQ(std::memcmp(ram->host_base(), expected_[name].data(), kTestMemoryBytes), 0) << name;
    }
  }

  /// Everything but the newest goes once it is folded; all but it and its base once it is squashed.
  void collect() {
    const auto squashed = store_.squash(newest_);
    ASSERT_TRUE(squashed.ok());
    EXPECT_TRUE(store_.gc([&](const TemplateInfo& info) { return info.name == newest_; }).ok());
    EXPECT_LE(store_.list()->size(), 3U);  // a folded generation in between may be what it lies on
    EXPECT_TRUE(content_of(store_, newest_) == expected_[newest_]);
    EXPECT_TRUE(store_.fold(newest_).ok());
    const auto kept = store_.gc([&](const TemplateInfo& info) { return info.name == newest_; });
    EXPECT_TRUE(kept.ok());
    EXPECT_EQ(store_.list()->size(), newest_ == "vm" ? 1U : 2U);
    EXPECT_TRUE(content_of(store_, newest_) == expected_[newest_]);
  }

 private:
  void add() {
    const Writes writes = random_writes(random_);
    const auto sealed = store_delta(store_, delta_over(newest_), writes);
    ASSERT_TRUE(sealed.ok()) << sealed.error().message();
    std::vector<std::byte> memory = expected_[newest_];
    write_into(writes, memory);
    newest_ = sealed->name;
    EXPECT_TRUE(content_of(store_, newest_) == memory) << newest_;
    expected_[newest_] = std::move(memory);
  }

  std::string any() {
    auto it = expected_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random_() % expected_.size()));
    return it->first;
  }

  void fold() {
    const std::string name = any();
    const TemplateInfo before = *store_.find(name);
    const auto folded = store_.fold(name);
    ASSERT_TRUE(folded.ok()) << folded.error().message();
    EXPECT_EQ(folded->digest, before.digest);
    EXPECT_FALSE(folded->is_delta());
  }

  void squash() {
    const std::string name = any();
    const TemplateInfo before = *store_.find(name);
    const auto squashed = store_.squash(name);
    ASSERT_TRUE(squashed.ok()) << squashed.error().message();
    EXPECT_EQ(squashed->digest, before.digest);
    EXPECT_EQ(squashed->is_delta(), before.is_delta());
    EXPECT_LE(squashed->chain, 2U);
  }

  void map() {
    const std::string name = any();
    auto ram = std::move(*GuestMemory::reserve(kTestMemoryBytes));
    ASSERT_TRUE(ram->map_template(OpenTemplate::open(store_.directory() / name)->image()).ok());
    mapped_.emplace_back(name, std::move(ram));
  }

  Random random_;
  testing::TempDir dir_;
  TemplateStore store_ = *TemplateStore::open(dir_.path());
  std::map<std::string, std::vector<std::byte>> expected_;
  std::vector<std::pair<std::string, std::unique_ptr<GuestMemory>>> mapped_;
  std::string newest_;
};

void run(std::uint64_t seed) {
  SCOPED_TRACE("FVMM_MODEL_SEED=" + std::to_string(seed));
  Model model(seed);
  for (int step = 0; step < 18; ++step) model.step();
  model.check();
  model.collect();
}

TEST(GenerationModel, ShowsWhatWasWrittenWhateverIsFoldedWhen) {
  if (const char* seed = ::getenv("FVMM_MODEL_SEED")) return run(std::strtoull(seed, nullptr, 10));
  for (std::uint64_t seed = 1; seed <= 6 && !::testing::Test::HasFailure(); ++seed) run(seed);
}

// Page by page against the obvious: an array that says which layer a page is of.
TEST(OverlayModel, IsWhatAnArrayOfPagesSays) {
  constexpr PageIndex kSmall = 40;
  Random random(7);
  for (int round = 0; round < 3000; ++round) {
    std::vector<OverlayRun> runs;
    std::array<std::pair<int, std::uint64_t>, kSmall> pages;
    pages.fill({-1, 0});
    for (std::uint32_t layer = 0; layer < 5; ++layer) {
      std::vector<OverlayRun> upper;
      std::uint64_t file_page = 0;
      for (PageIndex at = random() % 8; at < kSmall; at += 1 + random() % 9) {
        const std::uint64_t count = std::min(kSmall - at, 1 + random() % 6);
        upper.push_back({.pages = {.first = at, .count = count}, .layer = layer, .file_page = file_page});
        for (std::uint64_t i = 0; i < count; ++i) pages[at + i] = {static_cast<int>(layer), file_page + i};
        file_page += count;
        at += count;
      }
      runs = overlay(upper, runs);
    }
    std::array<std::pair<int, std::uint64_t>, kSmall> shown;
    shown.fill({-1, 0});
    PageIndex next = 0;
    for (const OverlayRun& run : runs) {
      ASSERT_GE(run.pages.first, next);
      ASSERT_GT(run.pages.count, 0U);
      next = run.pages.first + run.pages.count;
      for (std::uint64_t i = 0; i < run.pages.count; ++i) {
        shown[run.pages.first + i] = {static_cast<int>(run.layer), run.file_page + i};
      }
    }
    ASSERT_EQ(shown, pages) << round;
  }
}

}  // namespace
}  // namespace fvmm::memory
