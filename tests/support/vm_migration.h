// Migrations of real VMs inside one process: a host that receives over pipes or loopback TCP, and the guest it gets.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "migration/source.h"
#include "migration/vm_machine.h"
#include "net/frame.h"
#include "support/fake_journal.h"
#include "support/fake_peer.h"
#include "support/guest_vm.h"
#include "vmm/clock.h"
#include "vmm/net_config.h"

namespace fvmm::test {

inline vmm::Vm& vm_of(migration::Guest& guest) {
  return static_cast<migration::VmMachine&>(*guest.machine).vm();
}

/// A VM on its base (none: the zero template), as a migration takes it.
inline std::unique_ptr<migration::Guest> guest_of(std::unique_ptr<vmm::Vm> vm, const v1::VmConfig& config,
                                                  std::optional<memory::OpenTemplate> pin = std::nullopt) {
  auto guest = std::make_unique<migration::Guest>();
  guest->config = config;
  if (pin) {
    guest->base.set_id(pin->info().id.raw());
    guest->base.set_name(pin->info().name);
    guest->base.set_digest(pin->info().digest.raw());
    guest->base.set_memory_bytes(pin->info().memory_bytes);
  }
  guest->pin = std::move(pin);
  guest->machine = std::make_unique<migration::VmMachine>(std::move(vm), vmm::read_boot_id().value());
  guest->since_base = guest->machine->dirty().add_reader();
  return guest;
}

inline v1::VmConfig vm_config(std::uint64_t memory_bytes) {
  v1::VmConfig config;
  config.set_id(Id::random().raw());
  config.set_name("web1");
  config.set_memory_bytes(memory_bytes);
  config.set_vcpus(1);
  return config;
}

/// Boots one of our guests, logged from its first page unless `tracking` says otherwise, and runs it.
inline Result<std::unique_ptr<migration::Guest>> running_guest(const std::string& name, std::uint64_t memory_bytes,
                                                               const std::string& options,
                                                               memory::Tracking tracking = memory::Tracking::kLog) {
  auto vm = FVMM_TRY(make_vm(memory_bytes));
  FVMM_TRY(vm->set_tracking(tracking));
  FVMM_TRY(vm->memory().map_zero());
  FVMM_TRY(vm->boot({.kernel = test::guest(name), .initrd = "", .cmdline = cmdline_for(*vm, options)}));
  auto guest = guest_of(std::move(vm), vm_config(memory_bytes));
  guest->config.set_tracking(std::string(to_string(tracking)));
  FVMM_TRY(guest->machine->resume());
  return guest;
}

/// Pauses the guest, stores it as a template, and goes on upon it: from here on its delta is small.
inline Status put_on_template(migration::Guest& guest, memory::TemplateStore& store, const std::string& name) {
  FVMM_TRY(guest.machine->pause());
  memory::TemplateStore::NewTemplate wanted;
  wanted.name = name;
  wanted.memory_bytes = guest.config.memory_bytes();
  wanted.config = guest.config;
  auto writer = FVMM_TRY(store.begin(wanted));
  FVMM_TRY(writer.set_machine_state(FVMM_TRY(guest.machine->save_state())));
  FVMM_TRY(guest.machine->dirty().harvest());
  for (const memory::PageRange& range : guest.since_base->pending().ranges(1024)) {
    FVMM_TRY(writer.add_pages(range.first, guest.machine->memory().pages(range)));
  }
  const memory::TemplateInfo info = FVMM_TRY(writer.seal());
  auto pin = FVMM_TRY(memory::OpenTemplate::open(info.directory));
  FVMM_TRY(guest.machine->memory().map_private(pin.memory_file()));
  FVMM_TRY(guest.machine->dirty().harvest());
  guest.since_base->reset();
  guest.base.set_id(info.id.raw());
  guest.base.set_name(info.name);
  guest.base.set_digest(info.digest.raw());
  guest.base.set_memory_bytes(info.memory_bytes);
  guest.pin = std::move(pin);
  return guest.machine->resume();
}

/// Everything slow of a migration to here, as a worker does it. `store` holds the templates of "this host".
inline migration::MakeGuest replica_maker(const memory::TemplateStore* store) {
  return [store](const v1::PeerHello& hello) -> Result<std::unique_ptr<migration::Guest>> {
    auto vm = FVMM_TRY(vmm::Vm::create({.memory_bytes = hello.vm().memory_bytes(), .vcpus = 1},
                                       [](const vmm::VcpuStop& stop) { ADD_FAILURE() << "stopped: " << stop.report; }));
    FVMM_TRY(vm->set_tracking(FVMM_TRY(memory::parse_tracking(hello.vm().tracking()))));
    FVMM_TRY(vm->set_tsc_khz(hello.cpu().tsc_khz()));
    FVMM_TRY(vm->attach_devices({}));
    vm->give_nets(FVMM_TRY(vmm::open_nets(hello.vm())));
    FVMM_TRY(vm->attach_virtio(hello.vm(), {}));
    FVMM_TRY(vm->set_cpu(FVMM_TRY(vmm::unpack_cpuid(hello.cpu().cpuid()))));
    std::optional<memory::OpenTemplate> pin;
    if (hello.template_().id().empty()) {
      FVMM_TRY(vm->memory().map_zero());
    } else {
      const auto info = FVMM_TRY(store->find(hello.template_().name()));
      if (info.digest.raw() != hello.template_().digest()) return Error(Errc::kFailedPrecondition, "another content");
      pin = FVMM_TRY(memory::OpenTemplate::open(info.directory));
      FVMM_TRY(vm->memory().map_private(pin->memory_file()));
    }
    return guest_of(std::move(vm), hello.vm(), std::move(pin));
  };
}

/// One migration, to its end on both sides. Afterwards `guest` is the one that runs, wherever that is.
inline v1::MigrateResult migrate(std::unique_ptr<migration::Guest>& guest, migration::Mode mode,
                                 migration::Transport& to,
                                 const std::function<std::unique_ptr<migration::Guest>()>& arrived,
                                 unsigned connections = 1, migration::StepHook on_step = {}) {
  migration::SourceOptions options;
  options.mode = mode;
  options.peer = "here:1";
  options.from = "here:0";
  options.connections = connections;
  options.max_downtime = std::chrono::milliseconds(50);
  options.allow_throttle = true;  // a slow host ends too
  options.on_step = std::move(on_step);
  testing::FakeJournal journal(std::make_shared<testing::FakeDisk>());
  v1::MigrateResult result;
  {
    migration::SourceSession session(*guest, std::move(options), to, journal);
    result = session.run();
  }
  auto there = arrived();
  if (result.result() == "completed") {
    EXPECT_NE(there, nullptr);
    EXPECT_TRUE(guest->machine->paused()) << "it runs in one place";
    if (there) guest = std::move(there);
  }
  return result;
}

/// Over pipes.
inline v1::MigrateResult migrate_by_pipe(std::unique_ptr<migration::Guest>& guest, migration::Mode mode,
                                         const memory::TemplateStore* store = nullptr, unsigned connections = 1,
                                         migration::StepHook on_step = {}) {
  testing::FakePeer::Options options;
  options.make_guest = replica_maker(store);
  testing::FakePeer peer(std::move(options));
  return migrate(
      guest, mode, peer,
      [&] {
        peer.join();
        return peer.take_guest();
      },
      connections, std::move(on_step));
}

}  // namespace fvmm::test
