// Programs of a host and of a guest reach each other, with real daemons and under seccomp: before and after migrations,
// on clones, through pauses and hand-overs that fail. The guest verifies itself what comes back to it.
#include <signal.h>

#include "support/daemons.h"
#include "support/vsock_program.h"

namespace fvmm::test {
namespace {

namespace fs = std::filesystem;
using testing::Program;
using testing::Service;

constexpr unsigned kEchoPort = 5000;
constexpr unsigned kServicePort = 80;

class DaemonVsock : public TwoHosts {
 protected:
  void create(const std::string& option, const std::string& words = "") {
    std::vector<std::string> create{"vm",       "create",           "web",       "--memory",         "64M",
                                    "--kernel", guest("vsock.elf"), "--cmdline", "beat=50 " + words, "--vsock"};
    if (!option.empty()) create.push_back(option);
    const Ctl created = a_->ctl(create);
    ASSERT_EQ(created.code, 0) << created;
  }
  void boot(const std::string& option = "cid=7", const std::string& words = "") {
    ASSERT_NO_FATAL_FAILURE(create(option, words));
    ASSERT_EQ(a_->ctl({"vm", "start", "web"}).code, 0);
    ASSERT_TRUE(a_->serial_contains("web", "FVMM vsock slot="));
  }
  static boost::json::object vsock_of(Host& host, const std::string& vm) {
    const Ctl shown = host.ctl({"vm", "show", vm});
    const auto* vsock = shown.at("vsock").if_object();
    if (vsock != nullptr) return *vsock;
    ADD_FAILURE() << shown;
    return {};
  }
  static fs::path path_of(Host& host, const std::string& vm) { return Host::text(vsock_of(host, vm), "path"); }
  static Program call(Host& host, const std::string& vm) {
    Program program = Program::calls(path_of(host, vm), kEchoPort);
    EXPECT_TRUE(program.taken()) << vm << " on " << host.name();
    return program;
  }
  /// What a program says comes back as it was.
  static void expect_echo(const Program& program, std::size_t bytes, char first) {
    std::string said(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) said[i] = static_cast<char>(first + i * 7 % 251);
    constexpr std::size_t kPiece = 8192;  // what both ends have room for, so that neither waits for the other
    for (std::size_t at = 0; at < bytes; at += kPiece) {
      const std::string piece = said.substr(at, kPiece);
      program.send(piece);
      ASSERT_EQ(program.receive(piece.size()), piece) << "at " << at;
    }
  }
  static void expect_good(Host& host, const std::string& vm) {
    const std::string all = host.serial(vm);
    EXPECT_EQ(all.find("ERR "), std::string::npos) << all;
  }
  /// Gives the guest its pattern back until it has verified some of it.
  static void serve_guest(Host& host, const std::string& vm, const Program& guest) {
    const std::size_t from = host.serial(vm).size();
    std::size_t served = 0;
    while (served < 100'000) {
      const std::string some = guest.receive(512);
      ASSERT_FALSE(some.empty());
      guest.send(some);
      served += some.size();
    }
    EXPECT_TRUE(wait_until([&] { return verified(host.serial(vm).substr(from)) > 0; })) << host.serial(vm);
  }
  static unsigned long verified(const std::string& lines) {
    const auto at = lines.rfind(" verified=");
    return at == std::string::npos ? 0 : std::strtoul(lines.c_str() + at + std::strlen(" verified="), nullptr, 10);
  }
};

TEST_F(DaemonVsock, ProgramsReachAGuestThatMovesAndComesBack) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const fs::path here = path_of(*a_, "web");
  EXPECT_TRUE(here.string().ends_with("/vsock.sock")) << here;
  EXPECT_NE(a_->serial("web").find("cid=7"), std::string::npos);
#ifndef FVMM_SANITIZED
  EXPECT_EQ(a_->ctl({"vm", "show", "web"}).text("seccomp"), "on");
#endif
  const Program before = call(*a_, "web");
  ASSERT_NO_FATAL_FAILURE(expect_echo(before, 100'000, 'a'));
  EXPECT_TRUE(Program::calls(here, kEchoPort + 1).at_end()) << "nobody listens there";
  EXPECT_EQ(vsock_of(*a_, "web").at("connections").to_number<int>(), 1);
  EXPECT_EQ(vsock_of(*a_, "web").at("sent_bytes").to_number<int>(), 100'000);

  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  ASSERT_NO_FATAL_FAILURE(expect_echo(before, 10'000, 'b'));  // a template takes nothing from it
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen(), "--mode", "suspend"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_TRUE(before.at_end());
  EXPECT_TRUE(wait_until([&] { return !fs::exists(here); })) << "nobody is to look for it here";
  ASSERT_TRUE(b_->serial_contains("web", "VS reset cid=7"));
  const fs::path there = path_of(*b_, "web");
  EXPECT_NE(there, here);
  const Program after = call(*b_, "web");
  ASSERT_NO_FATAL_FAILURE(expect_echo(after, 100'000, 'c'));

  const Ctl back = b_->ctl({"migrate", "web", "--to", a_->listen(), "--mode", "live", "--max-downtime", "50ms"});
  ASSERT_EQ(back.code, 0) << back;
  EXPECT_TRUE(after.at_end());
  ASSERT_NO_FATAL_FAILURE(expect_echo(call(*a_, "web"), 100'000, 'd'));
  expect_good(*a_, "web");
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_FALSE(fs::exists(here)) << "nothing stays behind";
}

TEST_F(DaemonVsock, AGuestReachesAProgramWhereverItRuns) {
  ASSERT_NO_FATAL_FAILURE(create("", "out=80"));
  const auto service_of = [](Host& host) { return path_of(host, "web").string() + "_" + std::to_string(kServicePort); };
  Service here(service_of(*a_));  // before it starts: the path is known
  ASSERT_EQ(a_->ctl({"vm", "start", "web"}).code, 0);
  {
    const Program guest = here.accept();
    ASSERT_NO_FATAL_FAILURE(serve_guest(*a_, "web", guest));
  }
  const Program again = here.accept();  // it comes back by itself
  ASSERT_NO_FATAL_FAILURE(serve_guest(*a_, "web", again));
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen()});
  ASSERT_EQ(moved.code, 0) << moved;
  Service there(service_of(*b_));
  const Program guest = there.accept();
  ASSERT_NO_FATAL_FAILURE(serve_guest(*b_, "web", guest));
  expect_good(*b_, "web");
}

TEST_F(DaemonVsock, EachCloneHasASocketOfItsOwn) {
  ASSERT_NO_FATAL_FAILURE(boot("path=" + (cluster_.root() / "web.vsock").string()));
  const Program original = call(*a_, "web");
  ASSERT_NO_FATAL_FAILURE(expect_echo(original, 5'000, 'a'));
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  const Ctl cloned = a_->ctl({"vm", "clone", "copy", "--template", "base", "--count", "2", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  std::vector<Program> programs;
  for (const std::string vm : {"copy-1", "copy-2"}) {
    EXPECT_TRUE(a_->serial_contains(vm, "VS reset")) << "the connections of its original are not its own";
    programs.push_back(call(*a_, vm));
  }
  EXPECT_NE(path_of(*a_, "copy-1"), path_of(*a_, "copy-2"));
  for (char first = 'a'; first < 'e'; ++first) {
    for (const Program& program : programs) ASSERT_NO_FATAL_FAILURE(expect_echo(program, 5'000, first));
    ASSERT_NO_FATAL_FAILURE(expect_echo(original, 5'000, first));
  }
  for (const std::string vm : {"copy-1", "copy-2", "web"}) expect_good(*a_, vm);
}

TEST_F(DaemonVsock, ARecoveredGuestIsReachedWhereItRuns) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const Program before = call(*a_, "web");
  const Ctl started = a_->ctl({"replicate", "start", "web", "--to", b_->listen(), "--interval", "20ms"});
  ASSERT_EQ(started.code, 0) << started;
  ASSERT_TRUE(wait_until([&] { return a_->ctl({"replicate", "status", "web"}).number("generation_sealed") >= 3; }));
  ASSERT_NO_FATAL_FAILURE(expect_echo(before, 20'000, 'a'));  // captures take nothing from it
  a_->kill_daemon();
  for (const pid_t worker : a_->workers()) ::kill(worker, SIGKILL);
  ASSERT_TRUE(wait_until([&] { return a_->workers().empty(); }));
  const Ctl recovered = b_->ctl({"replicate", "recover", "web", "--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  ASSERT_TRUE(b_->serial_contains("web", "VS reset cid=7"));
  ASSERT_NO_FATAL_FAILURE(expect_echo(call(*b_, "web"), 20'000, 'b'));
  expect_good(*b_, "web");
  const fs::path left = a_->state_directory() / "vms";
  a_->start();
  for (const auto& one : fs::recursive_directory_iterator(left)) EXPECT_FALSE(one.is_socket()) << one.path();
}

TEST_F(DaemonVsock, APauseAndAHandOverThatFailsKeepConnections) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const Program program = call(*a_, "web");
  ASSERT_EQ(a_->ctl({"vm", "pause", "web"}).code, 0);
  program.send("during a pause");
  ASSERT_EQ(a_->ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_EQ(program.receive(14), "during a pause");

  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  for (const std::string hook :
       {"fail:state", "fail:prepared", "peer-fail:load", "peer-fail:prepared", "peer-fail:run"}) {
    const Ctl failed = a_->ctl({"migrate", "web", "--to", b_->listen(), "--mode", "suspend", "--test-hook", hook});
    EXPECT_EQ(failed.code, 1) << failed;
    ASSERT_NO_FATAL_FAILURE(expect_echo(program, 20'000, 'a')) << hook;
  }
  EXPECT_EQ(a_->serial("web").find("VS reset"), std::string::npos);
  expect_good(*a_, "web");
}

// The path belongs to whoever listens there: another host's VM does not get it, and is not moved to where it is taken.
TEST_F(DaemonVsock, APathThatIsTakenIsARefusalBeforeAnyPause) {
  const fs::path path = cluster_.root() / "web.vsock";
  ASSERT_NO_FATAL_FAILURE(boot("path=" + path.string()));
  const Program program = call(*a_, "web");
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen()});  // the same file system
  EXPECT_EQ(moved.code, 1) << moved;
  EXPECT_NE(moved.err.find(path.string()), std::string::npos) << moved;
  ASSERT_NO_FATAL_FAILURE(expect_echo(program, 20'000, 'a'));
  ASSERT_NO_FATAL_FAILURE(expect_echo(call(*a_, "web"), 20'000, 'b'));
}

TEST_F(DaemonVsock, AWorkerThatDiesLeavesNoSocket) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const fs::path path = path_of(*a_, "web");
  const Program program = call(*a_, "web");
  for (const pid_t worker : a_->workers()) ::kill(worker, SIGKILL);
  EXPECT_TRUE(program.at_end());
  EXPECT_TRUE(wait_until([&] { return a_->state("web") == "lost"; })) << a_->state("web");
  EXPECT_TRUE(wait_until([&] { return !fs::exists(path); }));
}

TEST_F(DaemonVsock, WhatCannotBeIsRefusedWithAReason) {
  const auto create = [&](const std::string& option) {
    return a_->ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("idle.elf"), "--vsock", option});
  };
  EXPECT_EQ(create("cid=2").code, 2);
  EXPECT_EQ(create("port=1").code, 2);
  const Ctl long_path = create("path=/" + std::string(120, 'p'));
  EXPECT_EQ(long_path.code, 1) << long_path;
  EXPECT_NE(long_path.err.find("with a port behind it"), std::string::npos) << long_path;
}

}  // namespace
}  // namespace fvmm::test
