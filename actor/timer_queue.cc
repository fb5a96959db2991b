#include "actor/timer_queue.h"

namespace actor {

TimerQueue::Key TimerQueue::add(base::Time due, std::function<void()> run) {
  const Key key{due, ++serial_};
  timers_.emplace(key, std::move(run));
  return key;
}

std::optional<base::Time> TimerQueue::next() const {
  if (timers_.empty()) return std::nullopt;
  return timers_.begin()->first.first;
}

void TimerQueue::run_due(base::Time now, size_t most) {
  for (; most > 0 && !timers_.empty() && timers_.begin()->first.first <= now; --most) {
    // Taken out first: the closure may destroy its Timer and the frame around it.
    const auto node = timers_.extract(timers_.begin());
    node.mapped()();
  }
}

void Timer::set(base::Time due, std::function<void()> run) {
  cancel();
  key_ = queue_.add(due, std::move(run));
}

void Timer::cancel() {
  if (key_) queue_.cancel(*key_);
  key_.reset();
}

}  // namespace actor
