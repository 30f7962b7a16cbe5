// A template from one store to another: whole and equal, or not at all.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <thread>

#include "migration/template_push.h"
#include "migration/transport.h"
#include "net/frame.h"
#include "net/pipe_stream.h"
#include "support/stored_template.h"

namespace fvmm::migration {
namespace {

using testing::entries_of;
using testing::kTestMemoryBytes;
using testing::kTestMemoryPages;
using testing::store_template;
using testing::TempDir;
using testing::test_memory;
using testing::wanted_template;

Deadline soon() {
  return Deadline::after(std::chrono::seconds(30));
}

/// Inverts one byte on its way to the receiver.
class TamperedStream final : public net::Stream {
 public:
  TamperedStream(std::unique_ptr<net::Stream> inner, std::uint64_t at) : inner_(std::move(inner)), at_(at) {}
  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override {
    return inner_->start_send(parts, deadline);
  }
  Status finish_send(const Deadline& deadline) override { return inner_->finish_send(deadline); }
  Status receive(std::span<const iovec> parts, const Deadline& deadline) override {
    FVMM_TRY(inner_->receive(parts, deadline));
    for (const iovec& part : parts) {
      if (at_ >= received_ && at_ < received_ + part.iov_len) {
        static_cast<std::byte*>(part.iov_base)[at_ - received_] ^= std::byte{0xff};
      }
      received_ += part.iov_len;
    }
    return {};
  }
  [[nodiscard]] bool closed_by_peer() const override { return inner_->closed_by_peer(); }
  void cancel() override { inner_->cancel(); }

 private:
  std::unique_ptr<net::Stream> inner_;
  const std::uint64_t at_;
  std::uint64_t received_ = 0;
};

struct Script {
  net::PipeScript forward{};
  net::PipeScript backward{};
  std::uint64_t tamper_at = ~std::uint64_t{0};
  std::function<bool(const PushProgress&)> progress{};
};
struct Outcome {
  Result<PushStats> pushed;
  Status received;
  std::uint64_t bytes_forward = 0;
};

/// Two stores, with a template in the first.
class TemplatePush : public ::testing::Test {
 protected:
  void SetUp() override {
    spdlog::default_logger_raw()->set_level(spdlog::level::off);
    const auto stored = store_template(here_, wanted_template("base"), test_memory(1));
    ASSERT_TRUE(stored.ok()) << stored.error().message();
    info_ = *stored;
  }

  Outcome push(const Script& script = {}) {
    auto opened = memory::OpenTemplate::open(info_.directory);
    EXPECT_TRUE(opened.ok());
    auto [source, end] = net::PipeStream::make(script.forward, script.backward);
    Status received;
    std::thread thread([&, stream = std::unique_ptr<net::Stream>(std::move(end))]() mutable {
      stream = std::make_unique<TamperedStream>(std::move(stream), script.tamper_at);
      v1::PeerHello hello;
      received = net::receive_message(*stream, net::FrameType::kHello, hello, soon());
      if (received) received = receive_template(*stream, hello, *target_, soon());
      stream.reset();
    });
    Result<PushStats> pushed = push_template(*opened, *source, soon(), script.progress);
    const std::uint64_t sent = source->sent_bytes();
    source.reset();
    thread.join();
    return {std::move(pushed), std::move(received), sent};
  }

  TempDir here_directory_;
  TempDir there_directory_;
  memory::TemplateStore here_ = *memory::TemplateStore::open(here_directory_.path());
  memory::TemplateStore there_ = *memory::TemplateStore::open(there_directory_.path());
  memory::TemplateStore* target_ = &there_;
  memory::TemplateInfo info_;
};

TEST_F(TemplatePush, ArrivesWholeWithTheSameIdentity) {
  const Outcome outcome = push();
  ASSERT_TRUE(outcome.pushed.ok()) << outcome.pushed.error().message();
  ASSERT_TRUE(outcome.received.ok()) << outcome.received.error().message();
  EXPECT_FALSE(outcome.pushed->already_there);
  EXPECT_GE(outcome.pushed->bytes_sent, kTestMemoryPages * kPageBytes);
  EXPECT_LT(outcome.pushed->bytes_sent, kTestMemoryBytes / 2) << "holes do not travel";
  const auto copy = there_.find("base");
  ASSERT_TRUE(copy.ok());
  EXPECT_EQ(copy->id, info_.id);
  EXPECT_EQ(copy->digest, info_.digest);
  EXPECT_EQ(copy->generation, info_.generation);
  EXPECT_EQ(copy->pages, kTestMemoryPages);
  EXPECT_EQ(copy->memory_bytes, info_.memory_bytes);
  EXPECT_EQ(copy->config.name(), info_.config.name());
  const auto report = there_.verify("base");
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->detail.empty()) << report->detail;
  const auto opened = memory::OpenTemplate::open(copy->directory);
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(opened->machine_state()->SerializeAsString(), testing::test_machine_state().SerializeAsString());
}

TEST_F(TemplatePush, SecondPushSendsNoPages) {
  ASSERT_TRUE(push().pushed.ok());
  const Outcome again = push();
  ASSERT_TRUE(again.pushed.ok()) << again.pushed.error().message();
  EXPECT_TRUE(again.pushed->already_there);
  EXPECT_EQ(again.pushed->bytes_sent, 0U);
  EXPECT_TRUE(again.received.ok());
  EXPECT_EQ(there_.list()->size(), 1U);
}

TEST_F(TemplatePush, OtherTemplateOfThatNameIsRefused) {
  const auto other = store_template(there_, wanted_template("base"), test_memory(2));
  ASSERT_TRUE(other.ok());
  const Outcome outcome = push();
  ASSERT_FALSE(outcome.pushed.ok());
  EXPECT_EQ(outcome.pushed.error().code(), Errc::kAlreadyExists) << outcome.pushed.error().message();
  EXPECT_EQ(there_.find("base")->digest, other->digest) << "what was there stays";
}

TEST_F(TemplatePush, SameIdWithOtherContentIsRefused) {
  auto wanted = wanted_template("other");
  wanted.id = info_.id;
  ASSERT_TRUE(store_template(there_, wanted, test_memory(2)).ok());
  const Outcome outcome = push();
  ASSERT_FALSE(outcome.pushed.ok());
  EXPECT_EQ(outcome.pushed.error().code(), Errc::kFailedPrecondition) << outcome.pushed.error().message();
}

TEST_F(TemplatePush, AlteredPageIsFoundByTheDigest) {
  std::uint64_t hello_bytes = 0;
  {
    net::PipeScript refused;
    refused.cut_after_bytes = 0;
    Script script;
    script.backward = refused;  // nobody answers: only the Hello was sent
    hello_bytes = push(script).bytes_forward;
  }
  Script script;
  script.tamper_at = hello_bytes + net::kFrameHeaderBytes + 64 + 8 * kPageBytes / 4;  // within a page's bytes
  const Outcome outcome = push(script);
  ASSERT_FALSE(outcome.pushed.ok());
  EXPECT_EQ(outcome.pushed.error().code(), Errc::kDataLoss) << outcome.pushed.error().message();
  EXPECT_FALSE(outcome.received.ok());
  EXPECT_TRUE(entries_of(there_directory_.path()).empty());
}

TEST_F(TemplatePush, CutAnywhereLeavesNothing) {
  TempDir elsewhere_directory;
  auto elsewhere = *memory::TemplateStore::open(elsewhere_directory.path());
  target_ = &elsewhere;
  const std::uint64_t whole = push().bytes_forward;
  target_ = &there_;
  ASSERT_TRUE(elsewhere.find("base").ok());
  std::vector<std::uint64_t> offsets = {0,         1,         31,          32,         33,       200,
                                        whole / 4, whole / 2, whole - 200, whole - 33, whole - 1};
  for (const std::uint64_t at : offsets) {
    Script script;
    script.forward.cut_after_bytes = at;
    const Outcome outcome = push(script);
    EXPECT_FALSE(outcome.pushed.ok()) << at;
    EXPECT_FALSE(outcome.received.ok()) << at;
    EXPECT_TRUE(entries_of(there_directory_.path()).empty()) << "cut after " << at << " of " << whole;
  }
}

TEST_F(TemplatePush, SealedThoughTheAnswerWasLostIsThereTheNextTime) {
  Script script;
  script.backward.cut_after_bytes = 40;  // READY passes, SEALED does not
  EXPECT_FALSE(push(script).pushed.ok());
  const Outcome again = push();
  ASSERT_TRUE(again.pushed.ok()) << again.pushed.error().message();
  EXPECT_TRUE(again.pushed->already_there);
}

TEST_F(TemplatePush, CancelledPushLeavesNothing) {
  Script script;
  script.progress = [](const PushProgress&) { return false; };
  const Outcome outcome = push(script);
  ASSERT_FALSE(outcome.pushed.ok());
  EXPECT_EQ(outcome.pushed.error().code(), Errc::kCancelled);
  EXPECT_TRUE(entries_of(there_directory_.path()).empty());
}

// What a failing disk does to who reads: fvmmd itself pushes, so this must be an error and no signal.
TEST_F(TemplatePush, PageThatCannotBeReadEndsThePushWithItsName) {
  const Outcome outcome = push({.progress = [&](const PushProgress&) {
    std::filesystem::resize_file(info_.directory / "memory", kPageBytes);
    return true;
  }});
  ASSERT_FALSE(outcome.pushed.ok());
  EXPECT_EQ(outcome.pushed.error().code(), Errc::kDataLoss);
  for (const auto* part : {"push base", "pages from", "template verify"}) {
    EXPECT_NE(outcome.pushed.error().message().find(part), std::string::npos) << outcome.pushed.error().message();
  }
  EXPECT_FALSE(outcome.received.ok());
  EXPECT_TRUE(entries_of(there_directory_.path()).empty());
}

TEST_F(TemplatePush, ProgressEndsAtTheTotal) {
  PushProgress last;
  Script script;
  script.progress = [&](const PushProgress& progress) {
    EXPECT_GE(progress.bytes_done, last.bytes_done);
    last = progress;
    return true;
  };
  ASSERT_TRUE(push(script).pushed.ok());
  EXPECT_EQ(last.bytes_total, kTestMemoryPages * kPageBytes);
  EXPECT_GE(last.bytes_done, last.bytes_total) << "headers count, too";
}

/// What the receiver says to this Hello.
Errc refused_hello(memory::TemplateStore& store, const v1::PeerHello& hello) {
  auto [ours, theirs] = net::PipeStream::make();
  const Status status = receive_template(*theirs, hello, store, soon());
  v1::PeerMessage message;
  EXPECT_TRUE(net::receive_message(*ours, net::FrameType::kControl, message, soon()).ok());
  EXPECT_EQ(message.kind(), v1::PEER_REJECTED);
  EXPECT_EQ(message.code(), static_cast<std::uint32_t>(status.error().code()));
  return status.error().code();
}

TEST_F(TemplatePush, HelloThatMakesNoSenseIsRejected) {
  v1::PeerHello hello;
  hello.mutable_template_()->set_id(Id::random().raw());
  hello.mutable_template_()->set_digest(Id::random().raw());
  hello.mutable_template_()->set_name("good");
  hello.mutable_template_()->set_memory_bytes(kTestMemoryBytes);
  v1::PeerHello bad = hello;
  bad.mutable_template_()->set_id("short");
  EXPECT_EQ(refused_hello(there_, bad), Errc::kInvalidArgument);
  bad = hello;
  bad.mutable_template_()->set_digest("");
  EXPECT_EQ(refused_hello(there_, bad), Errc::kInvalidArgument);
  bad = hello;
  bad.mutable_template_()->set_name("../escape");
  EXPECT_EQ(refused_hello(there_, bad), Errc::kInvalidArgument);
  for (const std::uint64_t bytes : {std::uint64_t{0}, kTestMemoryBytes - 1, ~std::uint64_t{0}}) {
    bad = hello;
    bad.mutable_template_()->set_memory_bytes(bytes);
    EXPECT_EQ(refused_hello(there_, bad), Errc::kInvalidArgument) << bytes;
  }
  EXPECT_TRUE(entries_of(there_directory_.path()).empty());
}

TEST_F(TemplatePush, AnswerOfAnotherKindEndsThePush) {
  const auto opened = memory::OpenTemplate::open(info_.directory);
  ASSERT_TRUE(opened.ok());
  auto [ours, theirs] = net::PipeStream::make();
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  ASSERT_TRUE(net::send_message(*theirs, net::FrameType::kControl, message, soon()).ok());
  const auto pushed = push_template(*opened, *ours, soon(), {});
  ASSERT_FALSE(pushed.ok());
  EXPECT_EQ(pushed.error().code(), Errc::kDataLoss);
}

}  // namespace
}  // namespace fvmm::migration
