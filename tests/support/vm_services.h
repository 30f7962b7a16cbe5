// What the tests of fvmmd's services stand on: VMs with a real registry, store and pool, and fake workers in this
// process.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "daemon/supervisor.h"
#include "daemon/vm_service.h"
#include "support/daemon_fakes.h"

namespace fvmm::test {

class VmServices : public ::testing::Test {
 protected:
  void SetUp() override {
    ledger_ = *daemon::SessionLedger::open(scratch_.path() / "sessions", 100);
    registry_ = *daemon::Registry::open(scratch_.path(), *ledger_);
    store_ = std::make_unique<memory::TemplateStore>(*memory::TemplateStore::open(scratch_.path() / "templates"));
    pool_ = *daemon::WorkerPool::open(spawner_, {.per_recent_shape = 0});
    supervisor_ = std::make_unique<daemon::Supervisor>(*registry_, stop_);
    vms_ = std::make_unique<daemon::VmService>(*registry_, *pool_, *supervisor_, *store_, cpus_, false);
  }
  void TearDown() override {
    stop_.fire();
    registry_->stop();
    supervisor_->join();
  }

  ScratchDirectory scratch_;
  daemon::StopSignal stop_;
  FakeSpawner spawner_{scratch_.path() / "workers"};
  std::unique_ptr<daemon::SessionLedger> ledger_;
  std::unique_ptr<daemon::Registry> registry_;
  std::unique_ptr<memory::TemplateStore> store_;
  std::unique_ptr<daemon::WorkerPool> pool_;
  std::unique_ptr<daemon::Supervisor> supervisor_;
  daemon::CpuTemplates cpus_{scratch_.path() / "cpu-templates"};
  std::unique_ptr<daemon::VmService> vms_;
};

}  // namespace fvmm::test
