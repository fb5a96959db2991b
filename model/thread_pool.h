// ThreadPool: the compute threads of one process. A region of n independent tasks is claimed task
// by task from one counter, so a thread that loses its core to a neighbour costs the share it had,
// not the region. Threads spin shortly for the next region, then sleep.
//
// Results never depend on it: tasks of a region write disjoint memory and every reduction happens
// inside one task.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace model {

class ThreadPool {
 public:
  // `threads` ≥ 1 compute, the caller of run() being one of them: 1 starts none.
  explicit ThreadPool(uint32_t threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  uint32_t threads() const { return threads_; }

  // task(i) for every i in [0, n), each once; returns when all are done and their writes visible.
  // Called inside a task, or while another thread's region runs, the caller does all n itself.
  // Tasks must not throw.
  template <class Task>
  void run(uint32_t n, Task&& task) {
    if (threads_ == 1 || n <= 1) {
      for (uint32_t i = 0; i < n; ++i) task(i);
      return;
    }
    using Body = std::remove_reference_t<Task>;
    run_region(
        n, [](void* body, uint32_t i) { (*static_cast<Body*>(body))(i); },
        const_cast<std::remove_const_t<Body>*>(&task));
  }

 private:
  using Call = void (*)(void*, uint32_t);
  struct Shared;
  void run_region(uint32_t n, Call call, void* body);

  const uint32_t threads_;
  std::unique_ptr<Shared> shared_;  // null with one thread
};

// f(begin, count) for bands of rows: element-wise work, too little a row for a task of its own.
template <class F>
void for_rows(ThreadPool& threads, uint32_t rows, F&& f) {
  constexpr uint32_t kBand = 16;
  threads.run((rows + kBand - 1) / kBand, [&](uint32_t band) {
    const uint32_t begin = band * kBand;
    f(begin, rows - begin < kBand ? rows - begin : kBand);
  });
}

}  // namespace model
