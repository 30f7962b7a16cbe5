// The disks of one VM: made from their configuration, and held (locked) for as long as the VM may run here.
//
//   attach ─► take() ─► guest runs ─► paused: flush() ─► let_go() ─► another host's take()
//                ▲                                          │
//                └────────── the hand-over is refused ──────┘
//
// For a template: prepare_cut() ─► paused: cut() ─► guest runs, in the next layers ─► seal_cut()
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "devices/output_gate.h"
#include "devices/virtio_blk.h"
#include "disk/lock.h"
#include "disk/next_layer.h"
#include "memory/template_info.h"
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

  /// What each disk is written to from the next cut on is made ready, while the guest runs; what an earlier one left
  /// unsealed is sealed. kFailedPrecondition names a disk that is written to and is no layer; errors of NextLayer.
  Status prepare_cut();
  /// The instant, in a pause: flushed, and from here on nothing changes what the disks held. Not prepared: nothing.
  /// kDeadlineExceeded, kIo.
  Status cut(const Deadline& deadline);
  /// After the instant, while the guest runs: seals what was cut, and names all layers of the disks that are written
  /// to. kIo.
  Result<std::vector<memory::DiskCut>> seal_cut();
  /// What was prepared and not cut is taken back.
  void drop_cut();

  [[nodiscard]] std::size_t size() const { return disks_.size(); }

 private:
  struct Disk {
    devices::VirtioBlk* device = nullptr;
    int write_fd = -1;  // the device's
    bool written = false;
    bool layered = false;
    disk::FileLock file;
    std::optional<disk::FileLock> base;                   // held from attach() on
    std::vector<disk::FileLock> lower_locks;              // the same
    disk::LowerLayers lower;                              // the highest first
    std::optional<disk::NextLayer> next = std::nullopt;   // from prepare_cut() to cut()
    std::shared_ptr<const disk::Layer> merged = nullptr;  // the same, in place of all of `lower`
    disk::LowerLayers replaced = {};                      // by it, until seal_cut()
    std::shared_ptr<disk::Layer> to_seal = nullptr;       // from cut() to seal_cut()
  };
  static Status seal_left(const Disk& disk);
  static Status prepare_one(Disk& disk);
  static Status go_on_merged(Disk& disk);
  static Status cut_one(Disk& disk);
  static Status seal_one(Disk& disk);
  std::vector<Disk> disks_;
  bool held_ = false;
};

}  // namespace fvmm::vmm
