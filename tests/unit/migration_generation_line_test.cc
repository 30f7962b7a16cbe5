#include "migration/generation_line.h"

#include <gtest/gtest.h>

#include "support/stored_delta.h"

namespace fvmm::migration {
namespace {

using testing::delta_over;
using testing::entries_of;
using testing::names_of;
using testing::store_delta;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;

using Names = std::vector<std::string>;

class GenerationLine : public ::testing::Test {
 protected:
  void SetUp() override {
    vm_.set_id(std::string(16, 'v'));
    vm_.set_name("web");
    ASSERT_TRUE(store_template(store_, wanted_template("base"), test_memory(1)).ok());
    for (const std::uint64_t number : {2, 10, 9}) keep(vm_, number);
  }

  void keep(const v1::VmConfig& config, std::uint64_t number) {
    auto delta = delta_over("base");
    delta.name = memory::generation_name(line(), number);
    delta.generation = number;
    delta.config = config;
    ASSERT_TRUE(store_delta(store_, delta, {{number, 1}}).ok());
  }
  [[nodiscard]] std::string line() const { return way_back_line(vm_); }
  [[nodiscard]] std::string generation(std::uint64_t number) const { return memory::generation_name(line(), number); }

  v1::VmConfig vm_;
  testing::TempDir dir_;
  memory::TemplateStore store_ = *memory::TemplateStore::open(dir_.path() / "store");
};

TEST_F(GenerationLine, FindsThoseOfOneVmBelowANumberNewestFirst) {
  v1::VmConfig other = vm_;
  other.set_id(std::string(16, 'o'));
  keep(other, 5);
  EXPECT_EQ(names_of(generations_of(store_, vm_.id(), line(), 10)), (Names{generation(9), generation(2)}));
  EXPECT_EQ(generations_of(store_, vm_.id(), line(), kAllGenerations).size(), 3U);
}

// A VM that returns before its way back is sealed comes back on what its host pushes meanwhile, under a smaller number.
TEST_F(GenerationLine, RemovesOnlyThoseThatWereThereWhenItLooked) {
  const auto known = generations_of(store_, vm_.id(), line(), kAllGenerations);
  keep(vm_, 11);
  keep(vm_, 3);
  remove_generations(store_, known);
  EXPECT_EQ(entries_of(store_.directory()), (Names{"base", generation(11), generation(3)}));
}

TEST_F(GenerationLine, RemoveOlderKeepsTheNewestAndWhatIsNamed) {
  const auto kept = store_.find(generation(2));
  ASSERT_TRUE(kept.ok());
  remove_older(store_, vm_.id(), line(), 10, kept->digest);
  EXPECT_EQ(entries_of(store_.directory()), (Names{"base", generation(10), generation(2)}));
}

}  // namespace
}  // namespace fvmm::migration
