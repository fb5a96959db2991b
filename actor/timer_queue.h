// TimerQueue: closures by due time, for a host's one thread. Timers of equal time run in the order
// in which they were set.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "base/time.h"

namespace actor {

class TimerQueue {
 public:
  using Key = std::pair<base::Time, uint64_t>;

  Key add(base::Time due, std::function<void()> run);
  void cancel(const Key& key) { timers_.erase(key); }
  std::optional<base::Time> next() const;
  // Runs what is due at `now`, at most `most` of it. A closure may add and cancel timers.
  void run_due(base::Time now, size_t most);
  size_t size() const { return timers_.size(); }

 private:
  std::map<Key, std::function<void()>> timers_;
  uint64_t serial_ = 0;
};

// One timer in the queue at a time; gone from it when the Timer goes. A coroutine that waits keeps
// it in its frame, so a destroyed frame is never resumed.
class Timer {
 public:
  explicit Timer(TimerQueue& queue) : queue_(queue) {}
  ~Timer() { cancel(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  void set(base::Time due, std::function<void()> run);  // replaces the one set before
  void cancel();

 private:
  TimerQueue& queue_;
  std::optional<TimerQueue::Key> key_;
};

}  // namespace actor
