// A fuzz target without a fuzzer: every input of the corpus, then random ones, with the ordinary compiler.
//   fuzz_TARGET FILE...     only these inputs, as libFuzzer's binary does it with a finding
//   FVMM_FUZZ_SEED=N        the same random inputs again; FVMM_FUZZ_INPUTS=N their number
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "support/fuzz_input.h"

namespace fvmm {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

void replay(const std::filesystem::path& path) {
  std::cout << path.filename().string() << std::endl;  // the last one named is the one that ended the process
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  (void)LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

TEST(Fuzz, EveryInputOfTheCorpusEndsWell) {
  std::vector<std::filesystem::path> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(FVMM_CORPUS_DIR)) inputs.push_back(entry.path());
  ASSERT_FALSE(inputs.empty()) << FVMM_CORPUS_DIR;
  std::ranges::sort(inputs);
  for (const auto& input : inputs) replay(input);
}

TEST(Fuzz, RandomInputsEndWell) {
  const std::uint64_t seed = from_environment("FVMM_FUZZ_SEED", std::random_device{}());
  const std::uint64_t inputs = from_environment("FVMM_FUZZ_INPUTS", 64);
  std::cout << "FVMM_FUZZ_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  testing::fuzz_effects = 0;
  for (std::uint64_t i = 0; i < inputs; ++i) {
    std::vector<std::uint8_t> bytes(random() % (i % 8 == 0 ? 65536 : 2048));
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    (void)LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  EXPECT_GT(testing::fuzz_effects, 0U) << "the device never did anything: this tests nothing";
}

}  // namespace
}  // namespace fvmm

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) fvmm::replay(argv[i]);
  return argc > 1 ? 0 : RUN_ALL_TESTS();
}
