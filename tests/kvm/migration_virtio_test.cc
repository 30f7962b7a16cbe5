// Virtio devices in real VMs: a guest of ours that drives them by polling, saved and loaded, migrated, held back.
#include "support/stored_template.h"
#include "support/threaded_device.h"
#include "support/vm_migration.h"

namespace fvmm {
namespace {

using migration::Mode;

constexpr std::uint64_t kBytes = 64 * kMiB;

v1::VmConfig config_with_rng() {
  v1::VmConfig config = test::vm_config(kBytes);
  config.add_virtio()->mutable_console();  // so that the generator is not in slot 0
  config.add_virtio()->mutable_rng();
  return config;
}

/// The guest, paused before its first instruction.
Result<std::unique_ptr<vmm::Vm>> boot_virtio(const v1::VmConfig& config, const std::string& options) {
  auto vm = FVMM_TRY(test::make_vm(kBytes));
  FVMM_TRY(vm->attach_virtio(config, {}));
  FVMM_TRY(vm->memory().map_zero());
  FVMM_TRY(vm->boot(
      {.kernel = test::guest("virtio.elf"), .initrd = "", .cmdline = test::cmdline_for(*vm, "beat=50 " + options)}));
  return vm;
}

Result<std::unique_ptr<migration::Guest>> running_rng(const std::string& options = "") {
  const v1::VmConfig config = config_with_rng();
  auto guest = test::guest_of(FVMM_TRY(boot_virtio(config, options)), config);
  FVMM_TRY(guest->machine->resume());
  test::wait_for_output(test::vm_of(*guest), "VQ n=3 ");
  return guest;
}

/// What the guest says next: the number of answered requests, once it has looked over every page since this call. A
/// failure when it complains.
std::uint64_t good_requests(vmm::Vm& vm) {
  (void)test::wait_for_next(vm, "VQ ");
  const std::string line = test::wait_for_next(vm, "VQ ");
  EXPECT_EQ(test::field(line, "errors"), 0U) << vm.serial_output()->recent();
  return test::field(line, "requests").value_or(0);
}

class Virtio : public ::testing::Test {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }
};

TEST_F(Virtio, AGuestAtCpl3DrivesTheGenerator) {
  for (const char* event_idx : {"event_idx=0", "event_idx=1"}) {
    auto guest = running_rng(event_idx);
    ASSERT_TRUE(guest.ok()) << guest.error().message();
    const std::uint64_t before = good_requests(test::vm_of(**guest));
    EXPECT_GT(good_requests(test::vm_of(**guest)), before);
    EXPECT_NE(test::vm_of(**guest).serial_output()->recent().find("FVMM virtio slot=1 "), std::string::npos);
  }
}

TEST_F(Virtio, ItGoesOnInAnotherVmAfterSaveAndLoad) {
  auto guest = running_rng();
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  vmm::Vm& from = test::vm_of(**guest);
  const std::uint64_t before = good_requests(from);
  ASSERT_TRUE(from.pause().ok());
  v1::MachineState state;
  ASSERT_TRUE(state.ParseFromString(from.save_state().value().SerializeAsString()));
  auto to = test::make_sibling(from);
  ASSERT_TRUE(to.ok()) << to.error().message();
  ASSERT_TRUE((*to)->attach_virtio(config_with_rng(), {}).ok());
  ASSERT_TRUE(test::copy_memory(from, **to).ok());
  const Status loaded = (*to)->load_state(state);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message();
  EXPECT_EQ((*to)->save_state().value().devices(3).bytes(), state.devices(3).bytes());
  ASSERT_TRUE((*to)->resume().ok());
  EXPECT_GT(good_requests(**to), before);
}

TEST_F(Virtio, ItGoesOnAfterEveryKindOfMigration) {
  auto guest = running_rng("rate=1000");
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  const testing::TempDir directory;
  memory::TemplateStore store = memory::TemplateStore::open(directory.path() / "store").value();
  ASSERT_TRUE(test::put_on_template(**guest, store, "golden").ok());
  std::uint64_t requests = good_requests(test::vm_of(**guest));
  for (const Mode mode : {Mode::kSuspend, Mode::kLive, Mode::kPrecopy}) {
    const auto result = test::migrate_by_pipe(*guest, mode, &store);
    ASSERT_EQ(result.result(), "completed") << result.error();
    const std::uint64_t now = good_requests(test::vm_of(**guest));
    EXPECT_GT(now, requests);
    requests = now;
  }
}

TEST_F(Virtio, ADestinationWithoutTheDeviceRefusesAndTheSourceGoesOn) {
  auto guest = running_rng();
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  (*guest)->config.clear_virtio();  // what the destination will be told
  const auto result = test::migrate_by_pipe(*guest, Mode::kPrecopy);
  EXPECT_NE(result.result(), "completed");
  EXPECT_NE(result.error().find("virtio0"), std::string::npos) << result.error();
  (void)good_requests(test::vm_of(**guest));
}

TEST_F(Virtio, ADeviceWithAThreadIsWokenWithoutAnExit) {
  auto vm = boot_virtio(v1::VmConfig(), "type=42 same=1");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->virtio().add(std::make_unique<testing::ThreadedDevice>()).ok());
  ASSERT_TRUE((*vm)->resume().ok());
  EXPECT_GT(good_requests(**vm), 0U);
  ASSERT_TRUE((*vm)->pause().ok());
  auto& device = dynamic_cast<testing::ThreadedDevice&>((*vm)->virtio().device(0).device());
  EXPECT_EQ(device.notified, 0) << "KVM_IOEVENTFD takes the notifications";
  ASSERT_TRUE((*vm)->resume().ok());
  (void)good_requests(**vm);
}

TEST_F(Virtio, ADeviceThatDoesNotComeToRestKeepsTheVmRunning) {
  auto vm = boot_virtio(v1::VmConfig(), "type=42 same=1");
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->virtio().add(std::make_unique<testing::ThreadedDevice>()).ok());
  ASSERT_TRUE((*vm)->resume().ok());
  (void)good_requests(**vm);
  auto& device = dynamic_cast<testing::ThreadedDevice&>((*vm)->virtio().device(0).device());
  std::promise<void> held;
  std::promise<void> enough;
  std::thread busy([&] {
    const auto lock = device.busy();
    held.set_value();
    enough.get_future().wait();
  });
  held.get_future().wait();
  const Status paused = (*vm)->pause();
  enough.set_value();
  busy.join();
  ASSERT_FALSE(paused.ok());
  EXPECT_EQ(paused.error().code(), Errc::kDeadlineExceeded);
  EXPECT_FALSE((*vm)->paused());
  (void)good_requests(**vm);
  EXPECT_TRUE((*vm)->pause().ok());
}

TEST_F(Virtio, SerialOutputWaitsBehindTheGate) {
  auto guest = running_rng();
  ASSERT_TRUE(guest.ok()) << guest.error().message();
  vmm::Vm& vm = test::vm_of(**guest);
  ASSERT_TRUE(vm.pause().ok());
  vm.gate().hold(1);
  const std::uint64_t before = vm.serial_output()->total_bytes();
  ASSERT_TRUE(vm.resume().ok());
  const Deadline deadline = Deadline::after(std::chrono::seconds(60));
  while (vm.gate().counts().held_bytes == 0 && !deadline.passed()) std::this_thread::yield();
  EXPECT_GT(vm.gate().counts().held_bytes, 0U);
  EXPECT_EQ(vm.serial_output()->total_bytes(), before);
  vm.gate().open();
  EXPECT_GT(vm.serial_output()->total_bytes(), before);
  (void)good_requests(vm);
}

TEST_F(Virtio, ThereAreSoManySlotsAndNoMore) {
  auto vm = test::make_vm(kBytes);
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  EXPECT_EQ((*vm)->virtio().cmdline(), "");
  for (unsigned i = 0; i < vmm::kVirtioSlotsMax; ++i) {
    ASSERT_TRUE((*vm)->virtio().add(std::make_unique<testing::ThreadedDevice>()).ok()) << i;
  }
  const Status more = (*vm)->virtio().add(std::make_unique<testing::ThreadedDevice>());
  ASSERT_FALSE(more.ok());
  EXPECT_EQ(more.error().code(), Errc::kResourceExhausted);
  const std::string words = (*vm)->virtio().cmdline();
  EXPECT_TRUE(words.starts_with(" virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 ")) << words;
  EXPECT_TRUE(words.ends_with(" virtio_mmio.device=4K@0xd0011000:22")) << words;
}

}  // namespace
}  // namespace fvmm
