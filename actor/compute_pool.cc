#include "actor/compute_pool.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace actor {

ComputePool::ComputePool(uint32_t threads, std::function<void(uint64_t)> done)
    : done_(std::move(done)), running_(threads, 0) {
  CHECK(threads > 0, "a pool of no threads never finishes a job");
  for (uint32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this, i] { work(i); });
    ::pthread_setname_np(threads_.back().native_handle(), "compute");
  }
}

void ComputePool::submit(uint64_t id, std::function<void()> job) {
  {
    const std::scoped_lock lock(mutex_);
    CHECK(!stopping_, "a job after the end");
    queue_.push_back({id, std::move(job)});
  }
  wake_.notify_one();
}

void ComputePool::withdraw(uint64_t id) {
  std::unique_lock lock(mutex_);
  std::erase_if(queue_, [id](const Job& job) { return job.id == id; });
  finished_.wait(lock, [&] { return std::ranges::find(running_, id) == running_.end(); });
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
    Job job = std::move(queue_.front());
    queue_.pop_front();
    running_[worker] = job.id;
    lock.unlock();
    job.run();
    job.run = nullptr;
    lock.lock();
    running_[worker] = 0;
    finished_.notify_all();
    lock.unlock();
    done_(job.id);
    lock.lock();
  }
}

}  // namespace actor
