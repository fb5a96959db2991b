#include "actor/inbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>

namespace actor {

Inbox::Inbox() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(fd_ >= 0, "eventfd: {}", std::strerror(errno));
}

Inbox& Inbox::create() {
  static std::mutex guard;
  static auto* const kept = new std::vector<Inbox*>;
  const std::scoped_lock lock(guard);
  return *kept->emplace_back(new Inbox);
}

void Inbox::post(std::function<void()> run) {
  const std::scoped_lock lock(mutex_);
  if (closed_) return;
  queue_.push_back(std::move(run));
  const uint64_t one = 1;
  CHECK(::write(fd_, &one, sizeof one) == sizeof one, "eventfd: {}", std::strerror(errno));
}

std::vector<std::function<void()>> Inbox::take() {
  std::vector<std::function<void()>> taken;
  const std::scoped_lock lock(mutex_);
  uint64_t count = 0;
  // Nothing to read is EAGAIN and means an empty queue.
  if (::read(fd_, &count, sizeof count) == sizeof count) taken.swap(queue_);
  return taken;
}

void Inbox::close() {
  std::vector<std::function<void()>> dropped;  // destroyed outside the lock
  const std::scoped_lock lock(mutex_);
  dropped.swap(queue_);
  if (!closed_) ::close(fd_);
  closed_ = true;
}

}  // namespace actor
