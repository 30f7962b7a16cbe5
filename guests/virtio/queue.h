// Queue 0 of one virtio-mmio device (virtio 1.2, sections 2.7 and 4.2), one request at a time.
#ifndef FVMM_GUESTS_VIRTIO_QUEUE_H_
#define FVMM_GUESTS_VIRTIO_QUEUE_H_

#include "lib/cpu.h"

struct used_element {
  u32 id, length;
};

/// A part of one request; those that the device reads come first.
struct queue_part {
  u64 address;
  u32 bytes;
  bool device_writes;
};

/// Finds the first device of this type, negotiates, and starts it; its slot. FATAL when there is none or it refuses.
u64 queue_start(u32 type, bool event_idx);
/// Makes one device-writable buffer available and notifies, if the device wants to be told.
void queue_offer(u64 address, u32 bytes);
/// Makes one chain of 1 to 16 parts available and notifies, if the device wants to be told.
void queue_offer_chain(const struct queue_part* parts, u32 count);
bool queue_answered(void);
/// Until the device has answered; false after so many ticks of the TSC.
bool queue_wait(u64 ticks);
struct used_element queue_take(void);
/// The descriptor of the last request.
u32 queue_last_head(void);
/// Eight bytes of the configuration space of the device that was started.
u64 queue_config(u64 offset);
/// Four bytes of it.
void queue_config_write(u64 offset, u32 value);
/// Whatever the device has interrupted for.
void queue_acknowledge(void);
/// InterruptStatus must show used buffers, and nothing once it is acknowledged.
void queue_check_interrupt(void (*report)(const char* kind, u64 found, u64 expected));

#endif  // FVMM_GUESTS_VIRTIO_QUEUE_H_
