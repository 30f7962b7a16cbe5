// A guest of ours that answers on its network: over a unix socket, over a TAP device, across save, load and migrations.
#include <thread>

#include "support/net_peer.h"
#include "support/tap_network.h"
#include "support/temp_dir.h"
#include "support/vm_migration.h"
#include "vmm/net_config.h"

namespace fvmm {
namespace {

using migration::Mode;

constexpr std::uint64_t kBytes = 64 * kMiB;
constexpr const char* kGuestAddress = "10.0.0.2";  // what echo.elf has by default

v1::VmConfig config_with(const v1::NetConfig& net) {
  v1::VmConfig config = test::vm_config(kBytes);
  config.mutable_virtio()->Add()->mutable_rng();  // so that the network is not in slot 0
  *config.add_nets() = net;
  vmm::give_macs(config);
  return config;
}

v1::NetConfig over_socket(const std::string& path) {
  v1::NetConfig net;
  net.set_socket(path);
  return net;
}

/// Running, and its driver is up.
Result<std::unique_ptr<migration::Guest>> running_net(const v1::NetConfig& net, const std::string& options = "") {
  const v1::VmConfig config = config_with(net);
  auto vm = FVMM_TRY(test::make_vm(kBytes));
  vm->give_nets(FVMM_TRY(vmm::open_nets(config)));
  FVMM_TRY(vm->attach_virtio(config, {}));
  FVMM_TRY(vm->memory().map_zero());
  FVMM_TRY(vm->boot({.kernel = test::guest("echo.elf"), .initrd = "", .cmdline = test::cmdline_for(*vm, options)}));
  auto guest = test::guest_of(std::move(vm), config);
  FVMM_TRY(guest->machine->resume());
  (void)test::wait_for_output(test::vm_of(*guest), "FVMM echo slot=1");
  return guest;
}

void expect_no_complaint(vmm::Vm& vm) {
  const std::string line = test::wait_for_next(vm, "NET ");
  EXPECT_EQ(test::field(line, "errors"), 0U) << vm.serial_output()->recent();
}

class Net : public ::testing::Test {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }
  testing::TempDir directory_;
  testing::NetPeer peer_{(directory_.path() / "net").string()};
};

TEST_F(Net, FramesComeBackOverAUnixSocket) {
  for (const char* options : {"event_idx=0", "event_idx=1"}) {
    auto guest = running_net(over_socket(peer_.path()), options);
    ASSERT_TRUE(guest.ok()) << guest.error().message();
    ASSERT_TRUE(peer_.accept());
    EXPECT_TRUE(testing::echoes(peer_, 2000)) << options;
    expect_no_complaint(test::vm_of(**guest));
    const auto counters = test::vm_of(**guest).nets().at(0)->counters();
    EXPECT_EQ(counters.received_frames, 2000U);
    EXPECT_EQ(counters.sent_frames, 2000U);
    EXPECT_EQ(counters.receive_dropped + counters.send_dropped, 0U);
  }
}

TEST_F(Net, ItAnswersAfterEveryKindOfMigrationAndTheSourceIsSilent) {
  auto guest = running_net(over_socket(peer_.path()));
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  ASSERT_TRUE(peer_.accept());
  memory::TemplateStore store = memory::TemplateStore::open(directory_.path() / "store").value();
  ASSERT_TRUE(testing::echoes(peer_, 100));
  ASSERT_TRUE(test::put_on_template(**guest, store, "golden").ok());
  for (const Mode mode : {Mode::kSuspend, Mode::kLive, Mode::kPrecopy}) {
    EXPECT_TRUE(testing::echoes(peer_, 100));
    const auto result = test::migrate_by_pipe(*guest, mode, &store);
    ASSERT_EQ(result.result(), "completed") << result.error();
    EXPECT_EQ(peer_.receive(), std::nullopt) << "the source says nothing more, and hangs up";
    ASSERT_TRUE(peer_.accept()) << "the destination has connected";
    test::vm_of(**guest).announce_nets();
    const auto rarp = peer_.receive();
    ASSERT_TRUE(rarp.has_value());
    EXPECT_EQ(rarp->at(12), std::byte{0x80});
    for (unsigned i = 1; i < devices::kNetAnnounceRounds; ++i) EXPECT_EQ(peer_.receive(), rarp);
    EXPECT_TRUE(testing::echoes(peer_, 500));
    expect_no_complaint(test::vm_of(**guest));
  }
}

TEST_F(Net, ADestinationThatCannotConnectRefusesAndTheSourceGoesOn) {
  auto guest = running_net(over_socket(peer_.path()));
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  ASSERT_TRUE(peer_.accept());
  (*guest)->config.mutable_nets(0)->set_socket("/nonexistent/net");  // as the destination is told
  const auto result = test::migrate_by_pipe(*guest, Mode::kPrecopy);
  EXPECT_NE(result.result(), "completed");
  EXPECT_NE(result.error().find("/nonexistent/net does not exist"), std::string::npos) << result.error();
  EXPECT_TRUE(testing::echoes(peer_, 100));
}

/// UDP datagrams to the guest and back; how many of `count` have come back as they were.
unsigned datagrams_back(const char* to, unsigned count) {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(7);
  EXPECT_EQ(::inet_pton(AF_INET, to, &address.sin_addr), 1);
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  unsigned back = 0;
  for (unsigned i = 0; i < count; ++i) {
    const auto sent = testing::echo_frame(100 + (i * 97) % 1300, i);
    if (::send(socket.get(), sent.data(), sent.size(), 0) < 0) break;
    pollfd wanted{.fd = socket.get(), .events = POLLIN, .revents = 0};
    if (::poll(&wanted, 1, 60'000) != 1) break;
    std::vector<std::byte> got(2000);
    const ssize_t bytes = ::recv(socket.get(), got.data(), got.size(), 0);
    got.resize(bytes < 0 ? 0 : static_cast<std::size_t>(bytes));
    if (got == sent) ++back;
  }
  return back;
}

TEST(NetTap, TheHostTalksToTheGuestOverATap) {
  FVMM_NEEDS_KVM();
  FVMM_NEEDS_OWN_NETWORK();
  testing::make_tap("fvmm0");
  testing::set_address("fvmm0", "10.0.0.1");
  v1::NetConfig net;
  net.set_tap("fvmm0");
  auto guest = running_net(net);
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  EXPECT_EQ(datagrams_back(kGuestAddress, 200), 200U);
  expect_no_complaint(test::vm_of(**guest));
}

// Two "hosts" with a tap each on one bridge, the guest's peer behind a port of its own.
TEST(NetTap, ABridgeFindsTheGuestAtItsNewPlace) {
  FVMM_NEEDS_KVM();
  FVMM_NEEDS_OWN_NETWORK();
  testing::make_bridge("fvmmbr");
  for (const char* tap : {"fvmm0", "fvmm1"}) {
    testing::make_tap(tap);
    testing::join_bridge("fvmmbr", tap);
  }
  testing::set_address("fvmmbr", "10.0.0.1");
  v1::NetConfig net;
  net.set_tap("fvmm0");
  auto guest = running_net(net);
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  EXPECT_EQ(datagrams_back(kGuestAddress, 50), 50U);
  (*guest)->config.mutable_nets(0)->set_tap("fvmm1");  // as `migrate --net net0:tap=fvmm1` says
  const auto result = test::migrate_by_pipe(*guest, Mode::kLive);
  ASSERT_EQ(result.result(), "completed") << result.error();
  test::vm_of(**guest).announce_nets();
  // Until the bridge has heard of the move, what is sent to the guest goes to its old place.
  const devices::VirtioNet& moved = *test::vm_of(**guest).nets().at(0);
  const Deadline deadline = Deadline::after(std::chrono::seconds(20));
  while (moved.counters().announced == 0 && !deadline.passed()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_GT(moved.counters().announced, 0U);
  EXPECT_EQ(datagrams_back(kGuestAddress, 50), 50U);
  EXPECT_GT(test::vm_of(**guest).nets().at(0)->counters().received_frames, 0U);
  expect_no_complaint(test::vm_of(**guest));
}

}  // namespace
}  // namespace fvmm
