// CPU templates as data: what a file may say, and what it does to a table made up here.
#include "vmm/cpu_template.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "vmm/cpuid_names.h"

namespace fvmm::vmm {
namespace {

kvm_cpuid_entry2 entry(std::uint32_t function, std::uint32_t index, std::uint32_t eax, std::uint32_t ebx,
                       std::uint32_t ecx, std::uint32_t edx) {
  kvm_cpuid_entry2 made{};
  made.function = function;
  made.index = index;
  made.eax = eax;
  made.ebx = ebx;
  made.ecx = ecx;
  made.edx = edx;
  return made;
}

/// A CPU with AVX (component 2: 256 bytes at 576) and PKRU (component 9: 8 bytes at 2688).
CpuidTable avx_host() {
  return {entry(0, 0, 0x1F, 0, 0, 0),
          entry(0x1, 0, 0, 0, 0x10002201, 0xFFFFFFFF),  // sse3 ssse3 cx16 avx
          entry(0x7, 0, 2, 0x20, 0x8, 0),               // avx2, pku
          entry(0x7, 1, 0x10, 0, 0, 0),                 // avx_vnni
          entry(0x7, 2, 0, 0, 0, 1),
          entry(0xA, 0, 5, 0, 0, 0),
          entry(0xD, 0, 0x207, 2696, 2696, 0),
          entry(0xD, 1, 0xF, 2696, 0x100, 0),  // xsaves, and a supervisor component (8)
          entry(0xD, 2, 256, 576, 0, 0),
          entry(0xD, 8, 128, 0, 1, 0),
          entry(0xD, 9, 8, 2688, 0, 0),
          entry(0x40000000, 0, 0x40000001, 0, 0, 0),
          entry(0x40000001, 0, 0x01000009, 0, 0, 0),
          entry(0x80000000, 0, 0x80000021, 0, 0, 0),
          entry(0x80000001, 0, 0, 0, 1, 0x20000000),
          entry(0x80000021, 0, 0xF, 0, 0, 0)};
}

v1::CpuTemplate parsed(const std::string& body) {
  auto cpu = parse_cpu_template("mine", R"({"version": 1)" + body + "}");
  EXPECT_TRUE(cpu.ok()) << cpu.error().message();
  return cpu.ok() ? *cpu : v1::CpuTemplate();
}

CpuidTable applied(const std::string& body) {
  CpuidTable table = avx_host();
  const Status done = apply_cpu_template(parsed(body), table);
  EXPECT_TRUE(done.ok()) << done.error().message();
  return table;
}

std::string refusal(const std::string& text) {
  const auto cpu = parse_cpu_template("mine", text);
  if (cpu.ok()) return "";
  EXPECT_EQ(cpu.error().code(), Errc::kInvalidArgument);
  EXPECT_NE(cpu.error().message().find("mine"), std::string::npos) << cpu.error().message();
  return cpu.error().message();
}

TEST(CpuTemplateFile, EmptyOneTakesNothingAway) {
  const CpuidTable table = applied("");
  ASSERT_EQ(table.size(), avx_host().size());
  for (std::size_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(std::memcmp(&table[i], &avx_host()[i], sizeof table[i]), 0) << std::hex << table[i].function;
  }
}

TEST(CpuTemplateFile, FeaturesGoByNameByNumberAndByMask) {
  EXPECT_EQ(find_entry(applied(R"(, "without": ["cx16", "1.ecx:28"])"), 1)->ecx, 0x00000201U);
  EXPECT_EQ(find_entry(applied(R"(, "only": [{"word": "1.ecx", "features": "sse3 cx16"}])"), 1)->ecx, 0x00002001U);
  EXPECT_EQ(find_entry(applied(R"(, "only": [{"word": "1.ecx", "features": "0x201"}])"), 1)->ecx, 0x00000201U);
  EXPECT_EQ(find_entry(applied(R"(, "only": [{"word": "1.ecx", "features": ""}])"), 1)->ecx, 0U);
}

TEST(CpuTemplateFile, ExtendedStateShrinksWithItsComponents) {
  const CpuidTable table = applied(R"(, "without": ["xstate_pkru", "xsaves"])");
  EXPECT_EQ(find_entry(table, 0xD)->eax, 7U);
  EXPECT_EQ(find_entry(table, 0xD)->ebx, 576U + 256U);
  EXPECT_EQ(find_entry(table, 0xD)->ecx, 576U + 256U);
  EXPECT_NE(find_entry(table, 0xD, 2), nullptr);
  EXPECT_EQ(find_entry(table, 0xD, 8), nullptr) << "a supervisor component is saved by XSAVES alone";
  EXPECT_EQ(find_entry(table, 0xD, 9), nullptr);
  EXPECT_EQ(find_entry(table, 0xD, 1)->ecx, 0U);
  const CpuidTable plain = applied(R"(, "only": [{"word": "0xd.eax", "features": "xstate_x87 xstate_sse"}])");
  EXPECT_EQ(find_entry(plain, 0xD)->ecx, 576U);
  EXPECT_EQ(find_entry(plain, 0xD, 2), nullptr);
  EXPECT_NE(find_entry(plain, 0xD, 8), nullptr) << "XSAVES is still there";
}

TEST(CpuTemplateFile, LeavesEndWhereItSays) {
  const CpuidTable table =
      applied(R"(, "drop_leaves": ["0x7/2", "0xa"], "max_leaf": "0xc", "max_extended_leaf": "0x80000008")");
  EXPECT_EQ(find_entry(table, 0)->eax, 0xCU);
  EXPECT_EQ(find_entry(table, 0x80000000)->eax, 0x80000008U);
  EXPECT_EQ(find_entry(table, 7)->eax, 1U) << "the last index that is left";
  EXPECT_NE(find_entry(table, 7, 1), nullptr);
  for (const std::uint32_t gone : {0xAU, 0xDU, 0x80000021U}) EXPECT_EQ(find_entry(table, gone), nullptr) << gone;
  EXPECT_NE(find_entry(table, 0x40000001), nullptr) << "KVM's own leaves are beyond both ends";
}

TEST(CpuTemplateFile, RequiredFeatureThatIsMissingIsNamed) {
  CpuidTable table = avx_host();
  EXPECT_TRUE(apply_cpu_template(parsed(R"(, "require": ["avx2", "kvm_clock"])"), table).ok());
  const Status refused = apply_cpu_template(parsed(R"(, "require": ["avx2", "avx512f"])"), table);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  for (const auto* part : {"mine", "avx512f"}) EXPECT_NE(refused.error().message().find(part), std::string::npos);
}

TEST(CpuTemplateFile, WhatIsGivenNeedsNoHost) {
  CpuidTable table = avx_host();
  table.push_back(entry(0x80000008, 0, 0, 0, 0, 0));
  ASSERT_TRUE(apply_cpu_template(parsed(R"(, "give": ["xsaveerptr"])"), table).ok());
  EXPECT_EQ(find_entry(table, 0x80000008)->ebx, 4U);
  EXPECT_NE(refusal(R"({"version": 1, "give": ["avx"]})").find("avx"), std::string::npos);
}

TEST(CpuTemplateFile, WrongOnesSayWhatIsWrong) {
  const struct {
    std::string text, part;
  } all[] = {
      {"", "mine"},
      {"{", "mine"},
      {R"({"version": 2})", "version"},
      {"{}", "version"},
      {R"({"version": 1, "colour": "red"})", "colour"},
      {R"({"version": 1, "name": "other"})", "other"},
      {R"({"version": 1, "without": ["fpu2"]})", "fpu2"},
      {R"({"version": 1, "without": [""]})", "without"},
      {R"({"version": 1, "without": ["1.ecx:32"]})", "1.ecx:32"},
      {R"({"version": 1, "without": ["-"]})", "without"},
      {R"({"version": 1, "only": [{"word": "1.eax", "features": ""}]})", "1.eax"},
      {R"({"version": 1, "only": [{"word": "1.ecx", "features": "avx2"}]})", "7.ebx"},
      {R"({"version": 1, "only": [{"word": "1.ecx", "features": "0xfffffffff"}]})", "0xfffffffff"},
      {R"({"version": 1, "require": ["avx"], "without": ["avx"]})", "both"},
      {R"({"version": 1, "drop_leaves": ["7"]})", "\"7\""},
      {R"({"version": 1, "drop_leaves": ["0x1"]})", "0x1"},
      {R"({"version": 1, "drop_leaves": ["0x7/x"]})", "0x7/x"},
      {R"({"version": 1, "max_leaf": "0x0"})", "max_leaf"},
      {R"({"version": 1, "max_leaf": "0x40000000"})", "max_leaf"},
      {R"({"version": 1, "max_extended_leaf": "8"})", "max_extended_leaf"},
  };
  for (const auto& [text, part] : all) {
    const std::string said = refusal(text);
    EXPECT_NE(said.find(part), std::string::npos) << text << ": " << said;
  }
  EXPECT_NE(refusal(std::string(kCpuTemplateBytesMax + 1, ' ')).find("65537"), std::string::npos);
}

TEST(CpuTemplateFile, EachNameStandsForOneBitAndBackAgain) {
  std::set<std::string_view> names;
  for (const FeatureWord& word : feature_words()) {
    for (unsigned bit = 0; bit < 32; ++bit) {
      const std::string_view name = feature_name(word.name, bit);
      if (name.empty()) continue;
      EXPECT_TRUE(names.insert(name).second) << name;
      const auto found = find_feature(name);
      ASSERT_TRUE(found.has_value()) << name;
      EXPECT_EQ(found->word, word.name);
      EXPECT_EQ(found->bit, bit);
    }
  }
  EXPECT_GT(names.size(), 200U);
}

TEST(CpuTemplateFile, NamedFeaturesReadBackAsTheSameBits) {
  for (const v1::CpuFeatures& word : name_features(avx_host())) {
    CpuidTable table = avx_host();
    const std::uint32_t before = word_bits(table, *find_word(word.word()));
    const std::string body =
        fmt::format(R"(, "only": [{{"word": "{}", "features": "{}"}}])", word.word(), word.features());
    ASSERT_TRUE(apply_cpu_template(parsed(body), table).ok());
    EXPECT_EQ(word_bits(table, *find_word(word.word())), before) << word.word();
  }
}

}  // namespace
}  // namespace fvmm::vmm
