// Compiled once per instruction set (foreach_target); what runs is chosen at run time.
#include "bench/model/probes.h"

#include <sys/mman.h>
#include <time.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/model/probes.cc"
// after HWY_TARGET_INCLUDE
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Several streams at once, as the kernels read. bytes: a multiple of 64 KiB.
uint64_t read_all(const std::byte* from, size_t bytes) {
  const hn::ScalableTag<uint64_t> d;
  constexpr size_t kStreams = 4;
  const size_t lanes = hn::Lanes(d), words = bytes / sizeof(uint64_t) / kStreams;
  const auto* at = reinterpret_cast<const uint64_t*>(from);
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (size_t i = 0; i + lanes <= words; i += lanes) {
    a = hn::Xor(a, hn::Load(d, at + i));
    b = hn::Xor(b, hn::Load(d, at + words + i));
    c = hn::Xor(c, hn::Load(d, at + 2 * words + i));
    e = hn::Xor(e, hn::Load(d, at + 3 * words + i));
  }
  return hn::GetLane(hn::Xor(hn::Xor(a, b), hn::Xor(c, e)));
}

// Twelve independent chains hide the latency of one. They start from different values, which the
// compiler cannot know: equal chains would be one. Returns the operations done.
double multiply_add(uint64_t rounds, const float* starts, float* sink) {
  const hn::ScalableTag<float> d;
  const auto x = hn::Set(d, starts[12]), y = hn::Set(d, starts[13]);
  auto a = hn::Set(d, starts[0]), b = hn::Set(d, starts[1]), c = hn::Set(d, starts[2]);
  auto e = hn::Set(d, starts[3]), f = hn::Set(d, starts[4]), g = hn::Set(d, starts[5]);
  auto h = hn::Set(d, starts[6]), i = hn::Set(d, starts[7]), j = hn::Set(d, starts[8]);
  auto k = hn::Set(d, starts[9]), l = hn::Set(d, starts[10]), m = hn::Set(d, starts[11]);
  for (uint64_t r = 0; r < rounds; ++r) {
    a = hn::MulAdd(a, x, y), b = hn::MulAdd(b, x, y), c = hn::MulAdd(c, x, y);
    e = hn::MulAdd(e, x, y), f = hn::MulAdd(f, x, y), g = hn::MulAdd(g, x, y);
    h = hn::MulAdd(h, x, y), i = hn::MulAdd(i, x, y), j = hn::MulAdd(j, x, y);
    k = hn::MulAdd(k, x, y), l = hn::MulAdd(l, x, y), m = hn::MulAdd(m, x, y);
  }
  const auto all = hn::Add(
      hn::Add(hn::Add(a, b), hn::Add(c, e)),
      hn::Add(hn::Add(hn::Add(f, g), hn::Add(h, i)), hn::Add(hn::Add(j, k), hn::Add(l, m))));
  *sink = hn::GetLane(all);
  return 2.0 * 12 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

}  // namespace bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bench {
namespace {

HWY_EXPORT(read_all);
HWY_EXPORT(multiply_add);

constexpr size_t kPart = 64 << 10;

double seconds_since(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

double thread_cpu() {
  timespec now = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// task(i) on `threads` threads at once; the seconds until the last is done.
template <class Task>
double timed(uint32_t threads, const Task& task) {
  if (threads == 1) {
    const double begun = thread_cpu();
    task(0);
    return thread_cpu() - begun;
  }
  std::vector<std::thread> others;
  const auto begun = std::chrono::steady_clock::now();
  for (uint32_t i = 1; i < threads; ++i) others.emplace_back([&task, i] { task(i); });
  task(0);
  for (std::thread& other : others) other.join();
  return seconds_since(begun);
}

}  // namespace

ReadProbe::ReadProbe(size_t bytes) : bytes_(bytes / kPart * kPart) {
  void* at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    bytes_ = 0;
    return;
  }
  ::madvise(at, bytes_, MADV_HUGEPAGE);
  memory_ = static_cast<std::byte*>(at);
  std::memset(memory_, 1, bytes_);
}

ReadProbe::~ReadProbe() {
  if (memory_ != nullptr) ::munmap(memory_, bytes_);
}

double ReadProbe::measure(uint32_t threads) const {
  if (memory_ == nullptr) return 0;
  const size_t each = bytes_ / kPart / threads * kPart;
  std::vector<uint64_t> sums(threads);
  const double took = timed(threads, [&](uint32_t i) {
    sums[i] = HWY_DYNAMIC_DISPATCH(read_all)(memory_ + i * each, each);
  });
  return sums[0] == 1 ? 0 : static_cast<double>(each) * threads / took;  // uses the sum
}

double measure_fma(uint32_t threads) {
  constexpr uint64_t kRounds = 4'000'000;  // 25 to 50 ms
  float starts[14];
  for (int i = 0; i < 14; ++i) starts[i] = 0.5f + 0.03f * static_cast<float>(i);
  volatile float hidden = 0;  // so that the values are not known when this is compiled
  for (float& start : starts) start += hidden;
  std::vector<float> sinks(threads);
  std::vector<double> operations(threads);
  const double took = timed(threads, [&](uint32_t i) {
    operations[i] = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, starts, &sinks[i]);
  });
  return sinks[0] == 0 ? 0 : operations[0] * threads / took;
}

}  // namespace bench
#endif
