// vmm::Vm as the protocol's Machine.
#pragma once

#include <memory>
#include <string>

#include "migration/machine.h"
#include "vmm/vm.h"

namespace fvmm::migration {

class VmMachine final : public Machine {
 public:
  VmMachine(std::shared_ptr<vmm::Vm> vm, std::string boot_id) : vm_(std::move(vm)), boot_id_(std::move(boot_id)) {}
  memory::GuestMemory& memory() override { return vm_->memory(); }
  memory::DirtyTracker& dirty() override { return vm_->dirty(); }
  [[nodiscard]] bool paused() const override { return vm_->paused(); }
  Status pause() override { return vm_->pause(); }
  Status resume() override { return vm_->resume(); }
  Status fence(const std::string& why) override { return vm_->fence(why); }
  [[nodiscard]] Status fenced() const override { return vm_->fenced(); }
  void throttle(unsigned percent) override { vm_->throttle(percent); }
  Result<v1::MachineState> save_state() override { return vm_->save_state(); }
  Status load_state(const v1::MachineState& state) override { return vm_->load_state(state); }
  Status flush_disks() override { return vm_->flush_disks(); }
  Status prepare_disk_cut() override { return vm_->disks().prepare_cut(); }
  Status cut_disks() override { return vm_->cut_disks(); }
  Result<std::vector<memory::DiskCut>> seal_disk_cut() override { return vm_->disks().seal_cut(); }
  void drop_disk_cut() override { vm_->disks().drop_cut(); }
  void let_go_of_disks() override { vm_->let_go_of_disks(); }
  Status take_disks() override { return vm_->take_disks(); }
  [[nodiscard]] v1::CpuIdentity cpu() const override {
    v1::CpuIdentity cpu;
    cpu.set_cpuid(vmm::pack_cpuid(vm_->cpuid()));
    cpu.set_tsc_khz(vm_->tsc_khz());
    cpu.set_boot_id(boot_id_);
    return cpu;
  }
  [[nodiscard]] vmm::Vm& vm() { return *vm_; }

 private:
  std::shared_ptr<vmm::Vm> vm_;  // shared with whoever serves its serial port
  std::string boot_id_;
};

}  // namespace fvmm::migration
