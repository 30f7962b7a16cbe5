#include "cli/doctor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

namespace fvmm::cli {
namespace {

HostFacts good_host() {
  HostFacts facts;
  facts.kvm_api_version = 12;
  for (const NeededCapability& needed : needed_capabilities()) facts.capabilities[needed.name] = needed.least;
  facts.pvm = true;
  facts.kernel = "6.1.0-13-amd64";
  facts.thp = "madvise";
  facts.memory_available_bytes = 1ULL << 30;
  facts.open_files_max = 4096;
  facts.locked_bytes_max = 64ULL << 20;
  facts.state_directory = "/var/lib";
  return facts;
}

Check find(const std::vector<Check>& checks, std::string_view item) {
  const auto found = std::find_if(checks.begin(), checks.end(), [&](const Check& check) { return check.item == item; });
  EXPECT_NE(found, checks.end()) << item;
  return found == checks.end() ? Check{} : *found;
}

void expect(const HostFacts& facts, std::string_view item, Verdict verdict) {
  const Check check = find(judge(facts), item);
  EXPECT_EQ(check.verdict, verdict) << item;
  EXPECT_EQ(check.fix.empty(), verdict == Verdict::kOk) << item << ": whatever is wrong has a fix";
  EXPECT_EQ(can_run(judge(facts)), verdict != Verdict::kFail);
}

TEST(CliDoctor, GoodHostPassesEverything) {
  for (const Check& check : judge(good_host())) EXPECT_EQ(check.verdict, Verdict::kOk) << check.item << check.detail;
  EXPECT_TRUE(can_run(judge(good_host())));
}

TEST(CliDoctor, EachCapabilityIsNeededOrItIsSaidWhatIsLost) {
  for (const NeededCapability& needed : needed_capabilities()) {
    HostFacts facts = good_host();
    facts.capabilities[needed.name] = needed.least - 1;
    expect(facts, needed.name, needed.otherwise.empty() ? Verdict::kFail : Verdict::kWarn);
    EXPECT_NE(find(judge(facts), needed.name).fix.find(needed.otherwise), std::string::npos) << needed.name;
  }
}

TEST(CliDoctor, WithoutSeccompItSaysHowToRunAllTheSame) {
  HostFacts facts = good_host();
  facts.seccomp_error = ENOSYS;
  expect(facts, "seccomp", Verdict::kFail);
  EXPECT_NE(find(judge(facts), "seccomp").fix.find("--seccomp off"), std::string::npos);
}

TEST(CliDoctor, KvmThatDoesNotOpenSaysWhy) {
  HostFacts facts = good_host();
  facts.kvm_open_error = ENOENT;
  expect(facts, "/dev/kvm", Verdict::kFail);
  EXPECT_NE(find(judge(facts), "/dev/kvm").fix.find("modprobe"), std::string::npos);
  facts.kvm_open_error = EACCES;
  EXPECT_NE(find(judge(facts), "/dev/kvm").fix.find("kvm"), std::string::npos);
  facts.kvm_open_error = EBUSY;
  expect(facts, "/dev/kvm", Verdict::kFail);
}

TEST(CliDoctor, KvmApiOfAnotherVersionFails) {
  for (const int version : {11, 13, -1}) {
    HostFacts facts = good_host();
    facts.kvm_api_version = version;
    expect(facts, "KVM API", Verdict::kFail);
  }
}

TEST(CliDoctor, KernelMustBe6Dot1OrLater) {
  for (const char* old : {"6.0.19", "5.10.0-26-amd64", "", "garbage"}) {
    HostFacts facts = good_host();
    facts.kernel = old;
    expect(facts, "kernel", Verdict::kFail);
  }
  for (const char* enough : {"6.1", "6.1.0", "6.18.44", "7.0.1"}) {
    HostFacts facts = good_host();
    facts.kernel = enough;
    expect(facts, "kernel", Verdict::kOk);
  }
}

TEST(CliDoctor, IoUringThatIsSwitchedOffNamesTheSwitch) {
  HostFacts facts = good_host();
  facts.io_uring_error = EPERM;
  facts.io_uring_disabled = 2;
  expect(facts, "io_uring", Verdict::kFail);
  EXPECT_NE(find(judge(facts), "io_uring").fix.find("kernel.io_uring_disabled=0"), std::string::npos);
  facts.io_uring_disabled = -1;
  EXPECT_NE(find(judge(facts), "io_uring").fix.find("seccomp"), std::string::npos);
}

TEST(CliDoctor, WhatIsOptionalOnlyWarns) {
  HostFacts facts = good_host();
  facts.pvm = false;
  expect(facts, "virtualisation", Verdict::kWarn);
  facts = good_host();
  facts.thp = "never";
  expect(facts, "huge pages", Verdict::kWarn);
  facts = good_host();
  facts.memory_available_bytes = (512ULL << 20) - 1;
  expect(facts, "memory", Verdict::kWarn);
  facts = good_host();
  facts.overcommit = 2;
  expect(facts, "overcommit", Verdict::kWarn);
  facts = good_host();
  facts.userfaultfd_error = EACCES;
  expect(facts, "userfaultfd", Verdict::kWarn);
  facts = good_host();
  facts.open_files_max = 4095;
  expect(facts, "open files", Verdict::kWarn);
  facts = good_host();
  facts.locked_bytes_max = (64ULL << 20) - 1;
  expect(facts, "locked memory", Verdict::kWarn);
  facts = good_host();
  facts.fifo_error = EPERM;
  expect(facts, "real time", Verdict::kWarn);
  facts = good_host();
  facts.reflink_error = EOPNOTSUPP;
  expect(facts, "reflink", Verdict::kWarn);
}

TEST(CliDoctor, JsonHasThisShape) {
  EXPECT_EQ(doctor_json({{"a", Verdict::kOk, "1", ""}, {"b", Verdict::kFail, "none", "buy one"}}),
            "{\"can_run\":false,\"checks\":[{\"item\":\"a\",\"verdict\":\"ok\",\"detail\":\"1\",\"fix\":\"\"},"
            "{\"item\":\"b\",\"verdict\":\"fail\",\"detail\":\"none\",\"fix\":\"buy one\"}]}\n");
  EXPECT_NE(doctor_table({{"b", Verdict::kFail, "none", "buy one"}}).find("cannot run"), std::string::npos);
}

TEST(CliDoctor, ProbeLooksAtThisHost) {
  const HostFacts facts = probe_host("/nonexistent/state/directory");
  EXPECT_FALSE(facts.kernel.empty());
  EXPECT_GT(facts.memory_available_bytes, 0U);
  EXPECT_GT(facts.open_files_max, 0U);
  EXPECT_EQ(facts.state_directory, "/");
  if (facts.kvm_open_error == 0) {
    EXPECT_EQ(facts.capabilities.size(), needed_capabilities().size());
  }
}

}  // namespace
}  // namespace fvmm::cli
