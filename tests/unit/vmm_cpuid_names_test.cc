#include <gtest/gtest.h>

#include "vmm/cpuid_names.h"

namespace fvmm::vmm {
namespace {

TEST(FeatureName, KnowsFirstAndLastBitOfAWord) {
  EXPECT_EQ(feature_name("1.ecx", 0), "sse3");
  EXPECT_EQ(feature_name("1.ecx", 31), "hypervisor");
  EXPECT_EQ(feature_name("1.edx", 31), "pbe");
  EXPECT_EQ(feature_name("7.ebx", 31), "avx512vl");
  EXPECT_EQ(feature_name("7.ecx", 31), "pks");
  EXPECT_EQ(feature_name("7.edx", 31), "spec_ctrl_ssbd");
  EXPECT_EQ(feature_name("0x80000001.edx", 31), "3dnow");
}

TEST(FeatureName, KnowsBitsInTheMiddle) {
  EXPECT_EQ(feature_name("1.ecx", 13), "cx16");
  EXPECT_EQ(feature_name("1.ecx", 28), "avx");
  EXPECT_EQ(feature_name("7.ebx", 5), "avx2");
  EXPECT_EQ(feature_name("7.ebx", 16), "avx512f");
  EXPECT_EQ(feature_name("0x80000001.edx", 20), "nx");
  EXPECT_EQ(feature_name("0x80000001.edx", 29), "lm");
}

TEST(FeatureName, IsEmptyForReservedBitsAndUnknownWords) {
  EXPECT_EQ(feature_name("1.ecx", 16), "");
  EXPECT_EQ(feature_name("7.edx", 0), "");
  EXPECT_EQ(feature_name("0x80000001.ecx", 31), "");
  EXPECT_EQ(feature_name("0x8000000a.edx", 3), "");
}

}  // namespace
}  // namespace fvmm::vmm
