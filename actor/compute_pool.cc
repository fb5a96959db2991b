#include "actor/compute_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"

namespace actor {

namespace {

// Without the closures.
ComputePool::Ids run(std::vector<ComputeJob> jobs) {
  const auto begin = std::chrono::steady_clock::now();
  run_together(jobs);
  if (JointJob* first = jobs.front().joint) first->took = std::chrono::steady_clock::now() - begin;
  ComputePool::Ids ids;
  for (const ComputeJob& job : jobs) ids.push_back(job.id);
  return ids;
}

}  // namespace

ComputePool::ComputePool(uint32_t threads, std::function<void(Ids)> done)
    : done_(std::move(done)), running_(threads) {
  CHECK(threads > 0, "a pool of no threads never finishes a job");
  for (uint32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this, i] { work(i); });
    ::pthread_setname_np(threads_.back().native_handle(), "compute");
  }
}

void ComputePool::submit(ComputeJob job) {
  {
    const std::scoped_lock lock(mutex_);
    CHECK(!stopping_, "a job after the end");
    queue_.add(std::move(job));
  }
  wake_.notify_one();
}

void ComputePool::withdraw(uint64_t id) {
  std::unique_lock lock(mutex_);
  queue_.erase(id);
  const auto runs_it = [id](const Ids& ids) { return std::ranges::find(ids, id) != ids.end(); };
  finished_.wait(lock, [&] { return std::ranges::none_of(running_, runs_it); });
}

void ComputePool::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    queue_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void ComputePool::work(size_t worker) {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    std::vector<ComputeJob> jobs = queue_.take();
    for (const ComputeJob& job : jobs) running_[worker].push_back(job.id);
    lock.unlock();
    Ids ids = run(std::move(jobs));
    lock.lock();
    running_[worker].clear();
    finished_.notify_all();
    lock.unlock();
    done_(std::move(ids));
    lock.lock();
  }
}

}  // namespace actor
