// Linux's own driver: programs of the host reach a server in the guest, also after it has migrated, and on a clone.
#include "support/daemons.h"
#include "support/linux_guest.h"
#include "support/vsock_program.h"

namespace fvmm::test {
namespace {

using testing::Program;

constexpr unsigned kPort = 5000;

class DaemonLinuxVsock : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_LINUX("up", kernel);
    a_ = &cluster_.add("A");
    b_ = &cluster_.add("B");
    const Ctl created =
        a_->ctl({"vm", "create", "tux", "--memory", "64M", "--kernel", kernel, "--initrd", guest("linux-init.cpio"),
                 "--cmdline", linux_cmdline(1) + " vsock=" + std::to_string(kPort), "--vsock", "cid=9", "--start"});
    ASSERT_EQ(created.code, 0) << created;
    ASSERT_TRUE(wait_until([&] { return a_->serial("tux").find("BEAT ") != std::string::npos; }, kLinuxBootWait))
        << a_->serial("tux");
  }
  static Program call(Host& host, const std::string& vm) {
    const Ctl shown = host.ctl({"vm", "show", vm});
    const std::filesystem::path path(std::string(shown.at("vsock").at("path").as_string()));
    Program program;
    // It listens a moment after its first beat, and again a moment after it has arrived.
    const bool taken = wait_until([&] {
      program = Program::calls(path, kPort);
      return program.taken();
    });
    EXPECT_TRUE(taken) << vm << " on " << host.name();
    return program;
  }
  static ::testing::AssertionResult echoes(const Program& program, std::size_t bytes) {
    std::string said(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) said[i] = static_cast<char>(i * 31 % 251);
    constexpr std::size_t kPiece = 16384;
    for (std::size_t at = 0; at < bytes; at += kPiece) {
      const std::string piece = said.substr(at, kPiece);
      program.send(piece);
      if (program.receive(piece.size()) != piece) return ::testing::AssertionFailure() << "at " << at;
    }
    return ::testing::AssertionSuccess();
  }

  Cluster cluster_;
  Host* a_ = nullptr;
  Host* b_ = nullptr;
};

TEST_F(DaemonLinuxVsock, ProgramsReachAServerWhereverItsGuestIs) {
  {
    const Program program = call(*a_, "tux");
    EXPECT_TRUE(echoes(program, 256 * 1024));
    program.shut_sending();
    EXPECT_TRUE(program.at_end()) << "the server closes";
  }
  const Program before = call(*a_, "tux");
  EXPECT_TRUE(echoes(before, 16 * 1024));
  ASSERT_EQ(a_->ctl({"template", "create", "gold", "--from", "tux"}).code, 0);
  EXPECT_TRUE(echoes(before, 16 * 1024)) << "a template takes nothing from it";
  const Ctl cloned = a_->ctl({"vm", "clone", "twin", "--template", "gold", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  EXPECT_TRUE(echoes(call(*a_, "twin"), 64 * 1024));

  const Ctl moved = a_->ctl({"migrate", "tux", "--to", b_->listen(), "--max-downtime", "500ms"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_TRUE(before.at_end());
  EXPECT_TRUE(echoes(call(*b_, "tux"), 64 * 1024));
  EXPECT_TRUE(linux_goes_on(*b_, "tux", 1, 1));
}

}  // namespace
}  // namespace fvmm::test
