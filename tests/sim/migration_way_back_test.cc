// The way back: after a migration the destination, whose guest runs on, and the source, whose memory lies frozen, agree
// on the same pages; one that differs, and a message that makes no sense, are found.
#include "migration/way_back.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <random>

#include "support/fake_migration.h"
#include "support/stored_template.h"

namespace fvmm::testing {
namespace {

using migration::Mode;
using migration::WayBack;

/// A finished migration on a template, and both sides' view of what travelled.
class WayBackTest : public ::testing::TestWithParam<std::tuple<Mode, unsigned>> {
 protected:
  void SetUp() override {
    spdlog::default_logger_raw()->set_level(spdlog::level::off);
    auto store = *memory::TemplateStore::open(directory_.path());
    const auto info = *store_template(store, wanted_template("base"), test_memory(7));
    opened_.emplace(*memory::OpenTemplate::open(info.directory));
    Scenario scenario;
    scenario.seed = sim_seed();
    std::tie(scenario.mode, scenario.connections) = GetParam();
    scenario.steps_before = 40;
    scenario.template_file = opened_->memory_file();
    scenario.base.set_id(info.id.raw());
    scenario.base.set_digest(info.digest.raw());
    base_ = info.digest;
    migration_.emplace(std::move(scenario));
    migration_->run();
    ASSERT_EQ(migration_->state(), migration::SourceState::kDone) << migration_->result().error();
  }
  migration::Guest& destination() { return *migration_->destination(); }
  /// To the end, the guest writing between any two looks.
  Result<v1::PeerMessage> compare() {
    const auto session = migration_->peer().session();
    migration::ArrivedPages arrived(session->arrived(), session->base_digest(), kFakeRamBytes);
    while (FVMM_TRY(arrived.next(destination()))) continue;
    return arrived.message();
  }
  Status check(const v1::PeerMessage& message) {
    const auto& sent = migration_->source().since_base->pending();
    return migration::check_way_back(message, migration_->source().machine->memory(), sent, base_);
  }
  /// A page that came, and that nobody has written since.
  memory::PageIndex untouched() {
    const memory::Bitmap arrived = migration_->peer().session()->arrived();
    EXPECT_TRUE(destination().machine->dirty().harvest().ok());
    for (memory::PageIndex page = kFakePages; page-- > 0;) {
      if (arrived.test(page) && !destination().way_back->since->pending().test(page)) return page;
    }
    ADD_FAILURE() << "every page was written";
    return 0;
  }
  void spoil(memory::PageIndex page) {
    destination().machine->memory().pages_for_load({page, 1})[77] ^= std::byte{1};  // and no log knows
  }

  TempDir directory_;
  std::optional<memory::OpenTemplate> opened_;
  memory::Digest base_;
  std::optional<FakeMigration> migration_;
};

TEST_P(WayBackTest, BothAgreeWhileTheGuestRunsOn) {
  EXPECT_EQ(destination().way_back->agreed, WayBack::Agreed::kOpen);
  EXPECT_TRUE(fake(destination()).running());
  fake(destination()).step();
  const auto message = compare();
  ASSERT_TRUE(message.ok()) << message.error().message();
  EXPECT_GT(message->written_size(), 0) << "it has written what arrived";
  const Status same = check(*message);
  EXPECT_TRUE(same.ok()) << same.error().message();
}

TEST_P(WayBackTest, OnePageThatDiffersIsFound) {
  ASSERT_TRUE(destination().machine->pause().ok());
  spoil(untouched());
  const auto message = compare();
  ASSERT_TRUE(message.ok());
  const Status same = check(*message);
  ASSERT_FALSE(same.ok());
  EXPECT_EQ(same.error().code(), Errc::kDataLoss);
  EXPECT_NE(same.error().message().find("the peer has others"), std::string::npos) << same.error().message();
}

TEST_P(WayBackTest, OnePageThatDiffersAtTheSourceIsFoundToo) {
  const auto message = compare();
  ASSERT_TRUE(message.ok());
  const memory::PageIndex page = untouched();
  migration_->source().machine->memory().pages_for_load({page, 1})[0] ^= std::byte{1};
  EXPECT_FALSE(check(*message).ok());
}

TEST_P(WayBackTest, PagesWrittenSinceNeedNotAgreeBecauseTheyTravel) {
  ASSERT_TRUE(destination().machine->pause().ok());
  const memory::PageIndex page = untouched();
  spoil(page);
  destination().machine->memory().device_marks().set(page);
  const auto message = compare();
  ASSERT_TRUE(message.ok());
  const Status same = check(*message);
  EXPECT_TRUE(same.ok()) << same.error().message();
}

TEST_P(WayBackTest, AnotherBaseIsAnotherDigest) {
  const auto message = compare();
  ASSERT_TRUE(message.ok());
  base_ = memory::hash_bytes({});
  EXPECT_FALSE(check(*message).ok());
}

TEST_P(WayBackTest, ReturnIsAgainstWhatThePeerKeptOnceThatIsAgreed) {
  migration::Guest& guest = destination();
  EXPECT_FALSE(migration::may_go_by_way_back(guest, "source:7000")) << "open";
  guest.way_back->agreed = WayBack::Agreed::kYes;
  EXPECT_TRUE(migration::may_go_by_way_back(guest, "source:7000"));
  EXPECT_FALSE(migration::may_go_by_way_back(guest, "elsewhere:7000"));
  guest.way_back->agreed = WayBack::Agreed::kByIdAlone;
  EXPECT_TRUE(migration::may_go_by_way_back(guest, "source:7000")) << "an older peer agrees on nothing";
  guest.way_back.reset();
  EXPECT_FALSE(migration::may_go_by_way_back(guest, "source:7000"));
}

INSTANTIATE_TEST_SUITE_P(Modes, WayBackTest,
                         ::testing::Combine(::testing::Values(Mode::kSuspend, Mode::kLive), ::testing::Values(1U, 3U)),
                         [](const auto& tested) {
                           return std::string(migration::to_string(std::get<0>(tested.param))) +
                                  std::to_string(std::get<1>(tested.param));
                         });

TEST(WayBackMessage, RangesUpToTheLimitAndNotOneMore) {
  memory::Bitmap written(2 * migration::kWrittenRangesMax + 2);
  for (std::uint64_t i = 0; i < migration::kWrittenRangesMax; ++i) written.set(2 * i);
  const auto at = migration::way_back_message(Id::random(), written);
  ASSERT_TRUE(at.ok());
  EXPECT_EQ(at->written_size(), 2 * static_cast<int>(migration::kWrittenRangesMax));
  written.set(2 * migration::kWrittenRangesMax);
  const auto past = migration::way_back_message(Id::random(), written);
  ASSERT_FALSE(past.ok());
  EXPECT_EQ(past.error().code(), Errc::kResourceExhausted);
}

Error refused(const std::vector<std::uint64_t>& written, v1::PeerKind kind = v1::PEER_WAY_BACK) {
  const auto memory = *memory::GuestMemory::reserve(kFakeRamBytes);
  EXPECT_TRUE(memory->map_zero().ok());
  v1::PeerMessage message;
  message.set_kind(kind);
  message.set_reason("because");
  for (const std::uint64_t number : written) message.add_written(number);
  const Status status = migration::check_way_back(message, *memory, memory::Bitmap(kFakePages), {});
  EXPECT_FALSE(status.ok());
  return status ? Error(Errc::kUnknown, "accepted") : status.error();
}

TEST(WayBackMessage, RangesThatMakeNoSenseAreRefused) {
  const auto says = [](const Error& error, const std::string& part) {
    EXPECT_EQ(error.code(), Errc::kDataLoss);
    EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
  };
  says(refused({1}), "1 numbers");
  says(refused({5, 0}), "0 pages from 5");
  says(refused({kFakePages, 1}), "1 pages from 4096");
  says(refused({kFakePages - 1, 2}), "2 pages from 4095");
  says(refused({1, ~0ULL}), "pages from 1");
  says(refused({5, 2, 6, 1}), "1 pages from 6");
  says(refused({9, 1, 2, 1}), "1 pages from 2");
  says(refused(std::vector<std::uint64_t>(2 * migration::kWrittenRangesMax, 0)), "0 pages from 0");
  says(refused(std::vector<std::uint64_t>(2 * migration::kWrittenRangesMax + 2, 0)), "numbers for ranges");
  says(refused({}), "the peer has others");
  says(refused({}, v1::PEER_REJECTED), "because");
}

TEST(WayBackMessage, AnyRangesAreRefusedOrLieInsideTheGuest) {
  std::mt19937_64 random(sim_seed());
  const auto memory = *memory::GuestMemory::reserve(kFakeRamBytes);
  ASSERT_TRUE(memory->map_zero().ok());
  memory::Bitmap sent(kFakePages);
  for (int i = 0; i < 20; ++i) sent.set(random() % kFakePages);
  for (int round = 0; round < 20'000; ++round) {
    v1::PeerMessage message;
    message.set_kind(v1::PEER_WAY_BACK);
    std::uint64_t at = 0;
    for (std::uint64_t i = random() % 7; i > 0; --i) {
      at = random() % 8 == 0 ? random() : at + random() % 900;
      message.add_written(at);
    }
    message.set_digest(Id::random().raw());
    const Status status = migration::check_way_back(message, *memory, sent, {});
    ASSERT_FALSE(status.ok()) << "no random digest is the right one";
    ASSERT_EQ(status.error().code(), Errc::kDataLoss);
  }
}

}  // namespace
}  // namespace fvmm::testing
