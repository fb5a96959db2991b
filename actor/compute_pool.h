// ComputePool: threads that run offloaded jobs; a thread that is free takes the next of the queue
// (job_queue.h) by itself.
//
// Thread safety: every method on the reactor thread; `done` is called on a compute thread after
// jobs have run, together, and their closures are destroyed.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "actor/job_queue.h"

namespace actor {

class ComputePool {
 public:
  using Ids = std::vector<uint64_t>;
  ComputePool(uint32_t threads, std::function<void(Ids ids)> done);
  ~ComputePool() { stop(); }
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  void submit(ComputeJob job);
  // When this returns the job does not run and will not: what it refers to may be destroyed. Waits
  // for the end of a job that has begun.
  void withdraw(uint64_t id);
  // Finishes the jobs that have begun, forgets the others and joins the threads.
  void stop();

 private:
  void work(size_t worker);

  const std::function<void(Ids)> done_;
  std::mutex mutex_;
  std::condition_variable wake_;      // there is a job, or the end
  std::condition_variable finished_;  // an entry of running_ changed
  JobQueue queue_;                    // guarded by mutex_
  std::vector<Ids> running_;          // guarded by mutex_; one a thread, empty: idle
  bool stopping_ = false;             // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace actor
