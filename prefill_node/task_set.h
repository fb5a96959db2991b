// TaskSet: running tasks that end with their owner. Destroying the set destroys the tasks that
// still wait; it must not happen from within one of them.
#pragma once
#include <algorithm>
#include <list>

#include "base/task.h"

namespace prefill {

class TaskSet {
 public:
  // Runs the task up to its first wait.
  void start(base::Task<void> task) {
    tasks_.remove_if([](const base::Future<void>& future) { return future.done(); });
    base::Future<void> running = base::start(std::move(task));
    if (!running.done()) tasks_.push_back(std::move(running));
  }

 private:
  std::list<base::Future<void>> tasks_;
};

}  // namespace prefill
