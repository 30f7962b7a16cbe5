// The disks of one VM: made from their configuration, and held (locked) for as long as the VM may run here.
//
//   attach ─► take() ─► guest runs ─► paused: flush() ─► let_go() ─► another host's take()
//                ▲                                          │
//                └────────── the hand-over is refused ──────┘
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "devices/output_gate.h"
#include "devices/virtio_blk.h"
#include "disk/lock.h"
#include "proto/config.pb.h"

namespace fvmm::vmm {

/// Owner and thread: the Vm's. The devices live in the VM's slots; they are used here only through calls of the owner.
class Disks {
 public:
  /// Opens the disk's files and makes its device, which the caller adds to the VM. What is only read is locked for
  /// readers at once; what is written to waits for take(). Errors name the file: disk::open_disk(), disk::FileLock.
  Result<std::unique_ptr<devices::VirtioDevice>> attach(const v1::DiskConfig& config, devices::OutputGate& gate);

  /// The right to write, of all disks or of none; what another host wrote since is seen. Held already: nothing. While
  /// the VM is paused. kFailedPrecondition while somebody else has a file, or has put another in its place.
  Status take();
  /// All that the guest was told is written is on the files. The VM is paused. kDeadlineExceeded, kIo.
  Status flush(const Deadline& deadline);
  /// The same for what the kernel has by now, while the VM runs, so that little is left for flush(). kIo.
  Status flush_ahead();
  /// The VM is paused, and flushed if another host goes on with the files.
  void let_go();

  [[nodiscard]] std::size_t size() const { return disks_.size(); }

 private:
  struct Disk {
    devices::VirtioBlk* device = nullptr;
    int write_fd = -1;  // the device's
    bool written = false;
    disk::FileLock file;
    std::optional<disk::FileLock> base;  // held from attach() on
  };
  std::vector<Disk> disks_;
  bool held_ = false;
};

}  // namespace fvmm::vmm
