// ComputePool: threads that run offloaded jobs, first come first served.
//
// Thread safety: every method on the reactor thread; `done` is called on a compute thread after the
// job has run and its closure is destroyed.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace actor {

class ComputePool {
 public:
  ComputePool(uint32_t threads, std::function<void(uint64_t id)> done);
  ~ComputePool() { stop(); }
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  void submit(uint64_t id, std::function<void()> job);
  // When this returns the job does not run and will not: what it refers to may be destroyed. Waits
  // for the end of a job that has begun.
  void withdraw(uint64_t id);
  // Finishes the jobs that have begun, forgets the others and joins the threads.
  void stop();

 private:
  struct Job {
    uint64_t id;
    std::function<void()> run;
  };
  void work(size_t worker);

  const std::function<void(uint64_t)> done_;
  std::mutex mutex_;
  std::condition_variable wake_;      // there is a job, or the end
  std::condition_variable finished_;  // an entry of running_ changed
  std::deque<Job> queue_;             // guarded by mutex_
  std::vector<uint64_t> running_;     // guarded by mutex_; one a thread, 0: idle
  bool stopping_ = false;             // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace actor
