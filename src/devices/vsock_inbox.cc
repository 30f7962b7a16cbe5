#include "devices/vsock_inbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/check.h"

namespace fvmm::devices {

VsockInbox::VsockInbox() : doorbell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  FVMM_CHECK(doorbell_.get() >= 0, "eventfd");
}

void VsockInbox::serve_here() {
  const std::lock_guard lock(mutex_);
  server_ = std::this_thread::get_id();
}

void VsockInbox::put(Item item) {
  {
    const std::lock_guard lock(mutex_);
    items_.push_back(std::move(item));
    if (server_ == std::this_thread::get_id()) return;
  }
  ring();
}

std::optional<VsockInbox::Item> VsockInbox::take() {
  const std::lock_guard lock(mutex_);
  if (items_.empty()) return std::nullopt;
  Item item = std::move(items_.front());
  items_.pop_front();
  return item;
}

void VsockInbox::ring() const {
  const std::uint64_t one = 1;
  FVMM_CHECK(::write(doorbell_.get(), &one, sizeof one) == sizeof one || errno == EAGAIN, "an eventfd takes a 1");
}

void VsockInbox::silence() const {
  std::uint64_t count = 0;
  (void)!::read(doorbell_.get(), &count, sizeof count);
}

}  // namespace fvmm::devices
