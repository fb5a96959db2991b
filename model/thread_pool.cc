#include "model/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace model {

namespace {

// About 20 µs: regions of one pass follow each other faster than a sleeper wakes.
constexpr int kSpins = 2000;
constexpr uint32_t kClosed = UINT32_MAX;  // as a task: the region takes no more claims

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// One region at a time. `ticket` names the region and the next task in one word, so that a thread
// which comes late can neither claim a task of a region it has not seen nor touch one that is over:
// the high 32 bits count regions, the low 32 bits tasks.
struct ThreadPool::Shared {
  std::atomic<uint64_t> ticket{0};
  std::atomic<uint32_t> finished{0};  // tasks of the region at hand
  std::atomic<uint32_t> tasks{0};
  std::atomic<Call> call{nullptr};
  std::atomic<void*> body{nullptr};
  std::atomic<bool> stopping{false};
  std::atomic<uint32_t> sleepers{0};

  std::mutex owner;  // whoever runs a region
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  // Claims and does tasks of `region` until none is left.
  void work(uint32_t region) {
    uint64_t at = ticket.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(at >> 32) == region) {
      const auto task = static_cast<uint32_t>(at);
      // Read before the claim and valid if it succeeds: whoever changes them has closed the region
      // before, and the claim of a closed region fails.
      const uint32_t n = tasks.load(std::memory_order_acquire);
      const Call run = call.load(std::memory_order_acquire);
      void* const on = body.load(std::memory_order_acquire);
      if (task == kClosed || task >= n) return;
      if (!ticket.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel)) continue;
      run(on, task);
      finished.fetch_add(1, std::memory_order_release);
      at = ticket.load(std::memory_order_acquire);
    }
  }

  void serve() {
    uint32_t seen = 0;
    while (true) {
      auto region = static_cast<uint32_t>(ticket.load(std::memory_order_acquire) >> 32);
      for (int spin = 0; region == seen && spin < kSpins; ++spin) {
        if (stopping.load(std::memory_order_relaxed)) return;
        relax();
        region = static_cast<uint32_t>(ticket.load(std::memory_order_acquire) >> 32);
      }
      if (region == seen) {
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] {
          region = static_cast<uint32_t>(ticket.load(std::memory_order_seq_cst) >> 32);
          return stopping.load() || region != seen;
        });
        sleepers.fetch_sub(1, std::memory_order_relaxed);
      }
      if (stopping.load()) return;
      seen = region;
      work(region);
    }
  }
};

ThreadPool::ThreadPool(uint32_t threads) : threads_(threads) {
  CHECK(threads >= 1, "a pool of no threads");
  if (threads == 1) return;
  shared_ = std::make_unique<Shared>();
  for (uint32_t i = 1; i < threads; ++i)
    shared_->workers.emplace_back([this] { shared_->serve(); });
}

ThreadPool::~ThreadPool() {
  if (!shared_) return;
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stopping = true;
  }
  shared_->wake.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
}

void ThreadPool::run_region(uint32_t n, Call call, void* body) {
  thread_local bool inside = false;
  Shared& s = *shared_;
  std::unique_lock<std::mutex> mine;
  if (!inside) mine = std::unique_lock(s.owner, std::try_to_lock);
  if (inside || !mine.owns_lock()) {
    for (uint32_t i = 0; i < n; ++i) call(body, i);
    return;
  }
  inside = true;
  const auto last = static_cast<uint32_t>(s.ticket.load(std::memory_order_relaxed) >> 32);
  const uint32_t region = last + 1;
  s.ticket.store(uint64_t{last} << 32 | kClosed, std::memory_order_seq_cst);
  s.finished.store(0, std::memory_order_relaxed);
  s.tasks.store(n, std::memory_order_release);
  s.call.store(call, std::memory_order_release);
  s.body.store(body, std::memory_order_release);
  s.ticket.store(uint64_t{region} << 32, std::memory_order_seq_cst);
  if (s.sleepers.load(std::memory_order_seq_cst) > 0) {
    { const std::lock_guard lock(s.mutex); }  // whoever counted itself now waits
    s.wake.notify_all();
  }
  s.work(region);
  for (int spin = 0; s.finished.load(std::memory_order_acquire) != n; ++spin) {
    if (spin < kSpins)
      relax();
    else
      std::this_thread::yield();  // a worker holds a task and lost its core
  }
  inside = false;
}

}  // namespace model
