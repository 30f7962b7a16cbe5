#include <gtest/gtest.h>

#include "base/units.h"
#include "daemon/admission.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

class AdmissionTest : public testing::Test {
 protected:
  void SetUp() override {
    hello_.set_session(Id::random().raw());
    hello_.set_mode("suspend");
    hello_.set_fencing_token(5);
    *hello_.mutable_vm() = test::vm_record("web1", v1::VM_RUNNING, kGiB).config();
    host_.memory = {8 * kGiB, 4 * kGiB};
    host_.state_free_bytes = kGiB;
  }
  AdmissionVm same_vm(v1::VmState state, std::uint64_t token) {
    return {*Id::from_bytes(hello_.vm().id()), "web1", state, token, ""};
  }
  Errc refusal() { return admit(hello_, host_).error().code(); }

  v1::PeerHello hello_;
  AdmissionSnapshot host_;
};

TEST_F(AdmissionTest, NewVmIsAdmitted) {
  const auto admission = admit(hello_, host_);
  ASSERT_TRUE(admission) << admission.error().message();
  EXPECT_FALSE(admission->returns);
}

TEST_F(AdmissionTest, AnotherVmOfThatNameIsNamedWhateverItsState) {
  for (const auto state : {v1::VM_RUNNING, v1::VM_MOVED, v1::VM_UNSETTLED}) {
    host_.vms = {{Id::random(), "web1", state, 1, ""}};
    const auto admission = admit(hello_, host_);
    ASSERT_FALSE(admission);
    EXPECT_EQ(admission.error().code(), Errc::kAlreadyExists);
    EXPECT_NE(admission.error().message().find("web1"), std::string::npos);
  }
}

TEST_F(AdmissionTest, SameVmComesBackOnlyWhereItMovedAway) {
  for (int number = v1::VM_CREATED; number <= v1::VM_LOST; ++number) {
    const auto state = static_cast<v1::VmState>(number);
    host_.vms = {same_vm(state, 4)};
    const auto admission = admit(hello_, host_);
    EXPECT_EQ(admission.ok(), state == v1::VM_MOVED) << number;
    EXPECT_EQ(admission && admission->returns, state == v1::VM_MOVED);
    if (state == v1::VM_UNSETTLED) {
      EXPECT_EQ(admission.error().code(), Errc::kFailedPrecondition);
    }
  }
}

TEST_F(AdmissionTest, FencingTokenMustGrow) {
  host_.vms = {same_vm(v1::VM_MOVED, 4)};
  EXPECT_TRUE(admit(hello_, host_));
  host_.vms = {same_vm(v1::VM_MOVED, 5)};
  EXPECT_EQ(refusal(), Errc::kFailedPrecondition);
  host_.vms.clear();
  hello_.set_fencing_token(0);
  EXPECT_EQ(refusal(), Errc::kInvalidArgument);
}

TEST_F(AdmissionTest, ReturningVmKeepsItsName) {
  host_.vms = {same_vm(v1::VM_MOVED, 4)};
  hello_.mutable_vm()->set_name("web2");
  EXPECT_EQ(refusal(), Errc::kFailedPrecondition);
}

TEST_F(AdmissionTest, MemoryPromisedToOthersCounts) {
  host_.memory.available = 2 * kGiB;
  host_.incoming_bytes = kGiB;
  EXPECT_TRUE(admit(hello_, host_));
  host_.incoming_bytes = kGiB + 1;
  EXPECT_EQ(refusal(), Errc::kResourceExhausted);
  host_.incoming_bytes = 100 * kGiB;  // more than there is
  EXPECT_EQ(refusal(), Errc::kResourceExhausted);
}

TEST_F(AdmissionTest, FullStateDirectoryRefuses) {
  host_.state_free_bytes = kStateFreeBytesMin;
  EXPECT_TRUE(admit(hello_, host_));
  host_.state_free_bytes = kStateFreeBytesMin - 1;
  EXPECT_EQ(refusal(), Errc::kResourceExhausted);
}

TEST_F(AdmissionTest, MissingTemplateIsPassedOn) {
  host_.base = Error(Errc::kNotFound, "template t1 is not here: push it first");
  EXPECT_EQ(refusal(), Errc::kNotFound);
}

TEST_F(AdmissionTest, ClocksThatDifferAreNamedOnlyPastTheLimit) {
  constexpr std::int64_t kNow = 1'700'000'000'000'000'000;
  constexpr std::int64_t kMost = std::chrono::nanoseconds(kClockSkewMax).count();
  hello_.set_from("10.0.0.1:7080");
  EXPECT_EQ(clock_skew(hello_, kNow), "") << "a peer that does not say";
  for (const std::int64_t difference : {std::int64_t{0}, kMost, -kMost}) {
    hello_.set_realtime_ns(static_cast<std::uint64_t>(kNow + difference));
    EXPECT_EQ(clock_skew(hello_, kNow), "") << difference;
  }
  hello_.set_realtime_ns(static_cast<std::uint64_t>(kNow + kMost + 100'000));
  const std::string ahead = clock_skew(hello_, kNow);
  for (const auto* part : {"10.0.0.1:7080", "web1", "10.1 ms ahead", "chrony"}) {
    EXPECT_NE(ahead.find(part), std::string::npos) << ahead;
  }
  hello_.set_realtime_ns(static_cast<std::uint64_t>(kNow - kMost - 100'000));
  EXPECT_NE(clock_skew(hello_, kNow).find("10.1 ms behind"), std::string::npos);
}

TEST_F(AdmissionTest, MalformedHellosAreRefused) {
  const auto good = hello_;
  hello_.set_session("short");
  EXPECT_EQ(refusal(), Errc::kInvalidArgument);
  hello_ = good;
  hello_.mutable_vm()->set_id(Id{}.raw());
  EXPECT_EQ(refusal(), Errc::kInvalidArgument);
  hello_ = good;
  hello_.set_mode("teleport");
  EXPECT_EQ(refusal(), Errc::kInvalidArgument);
  hello_ = good;
  hello_.mutable_vm()->set_name("../../etc");
  EXPECT_EQ(refusal(), Errc::kInvalidArgument);
  hello_ = good;
  hello_.mutable_vm()->set_memory_bytes(1);
  EXPECT_EQ(refusal(), Errc::kInvalidArgument);
}

class CheckBaseTest : public testing::Test {
 protected:
  void SetUp() override {
    store_ = std::make_unique<memory::TemplateStore>(*memory::TemplateStore::open(scratch_.path() / "templates"));
    auto writer = store_->begin({.id = Id{}, .name = "t1", .generation = 1, .memory_bytes = 16 * kMiB, .config = {}});
    ASSERT_TRUE(writer);
    v1::MachineState state;
    state.set_version(1);
    ASSERT_TRUE(writer->set_machine_state(state));
    const auto info = writer->seal();
    ASSERT_TRUE(info) << info.error().message();
    ref_.set_id(info->id.raw());
    ref_.set_name("t1");
    ref_.set_digest(info->digest.raw());
  }
  test::ScratchDirectory scratch_;
  std::unique_ptr<memory::TemplateStore> store_;
  v1::TemplateRef ref_;
};

TEST_F(CheckBaseTest, HeldTemplateAndZeroTemplateAreFine) {
  EXPECT_TRUE(check_base(ref_, 16 * kMiB, *store_));
  EXPECT_TRUE(check_base(v1::TemplateRef(), 16 * kMiB, *store_));
}

TEST_F(CheckBaseTest, AbsentTemplateNamesThePush) {
  ref_.set_id(Id::random().raw());
  ref_.set_name("t2");
  const auto base = check_base(ref_, 16 * kMiB, *store_);
  EXPECT_EQ(base.error().code(), Errc::kNotFound);
  EXPECT_NE(base.error().message().find("fvmmctl template push t2"), std::string::npos);
}

TEST_F(CheckBaseTest, SameNameWithAnotherIdentityIsRefused) {
  ref_.set_id(Id::random().raw());
  EXPECT_EQ(check_base(ref_, 16 * kMiB, *store_).error().code(), Errc::kFailedPrecondition);
}

TEST_F(CheckBaseTest, SameIdWithAnotherContentIsRefused) {
  ref_.set_digest(Id::random().raw());
  EXPECT_EQ(check_base(ref_, 16 * kMiB, *store_).error().code(), Errc::kFailedPrecondition);
}

TEST_F(CheckBaseTest, OtherSizeIsRefused) {
  EXPECT_EQ(check_base(ref_, 32 * kMiB, *store_).error().code(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace fvmm::daemon
