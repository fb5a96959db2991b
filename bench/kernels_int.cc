// bench_kernels: products with integer weights, cold, verified and not. The label says what part of
// the read bandwidth of this machine, measured in the same run, the weights came in at.
#include "model/kernels_int.h"

#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/rng.h"
#include "model/multiply.h"

namespace {

using benchmark::Counter;
using benchmark::State;

constexpr uint32_t kInputs = 2048, kOutputs = 1024, kGroup = 64;
// Together larger than any cache: every product reads its weights from memory.
constexpr size_t kColdBytes = 192u << 20;

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// GB/s of plain reads, prefetched: the best of a few tries.
double read_bandwidth() {
  static const double best = [] {
    model::AlignedBuffer memory(kColdBytes);
    const auto* words = memory.as<uint64_t>();
    double rate = 0;
    for (int i = 0; i < 8; ++i) {
      const double start = thread_seconds();
      uint64_t sums[8] = {};
      for (size_t at = 0; at < kColdBytes / sizeof(uint64_t); at += 8) {
        __builtin_prefetch(words + at + 512);
        for (size_t j = 0; j < 8; ++j) sums[j] += words[at + j];
      }
      benchmark::DoNotOptimize(sums);
      rate = std::max(rate, 1e-9 * double{kColdBytes} / (thread_seconds() - start));
    }
    return rate;
  }();
  return best;
}

model::PackedMatrix packed(model::WeightFormat format, uint64_t seed) {
  const bool int4 = format == model::WeightFormat::kInt4;
  model::PackedMatrix w(kOutputs, kInputs, format, int4 ? kGroup : 0);
  base::Rng rng(seed);
  std::vector<int8_t> codes(kInputs);
  for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(rng.below(16)) - 8);
  const std::vector<float> scales(int4 ? kInputs / kGroup : 1, 0.01f);
  for (uint32_t j = 0; j < kOutputs; ++j) w.set_codes(j, 1, codes.data(), scales.data());
  w.seal();
  return w;
}

// Another matrix each time.
void multiply_cold(State& state, model::WeightFormat format, bool verify) {
  const auto rows = static_cast<uint32_t>(state.range(0));
  model::ThreadPool threads(1);
  model::Integrity integrity(verify);
  const model::Compute compute{threads, integrity};
  std::vector<model::PackedMatrix> w;
  const double bytes = double{kInputs} * kOutputs *
                       (format == model::WeightFormat::kInt8 ? 1.0 : 0.5 + 4.0 / kGroup);
  while (static_cast<double>(w.size()) * bytes < kColdBytes) w.push_back(packed(format, 1));
  base::Rng rng(2);
  std::vector<float> x(size_t{rows} * kInputs), y(size_t{rows} * kOutputs);
  for (float& v : x) v = static_cast<float>(rng.uniform()) - 0.5f;
  size_t next = 0;
  const double start = thread_seconds();
  for (auto _ : state) {
    model::multiply(compute, {&w[next++ % w.size()], x.data(), kInputs, rows, y.data(), kOutputs});
    benchmark::ClobberMemory();
  }
  const double rate =
      1e-9 * bytes * static_cast<double>(state.iterations()) / (thread_seconds() - start);
  state.counters["GFLOP/s"] =
      Counter(2e-9 * kInputs * kOutputs * rows, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(1e-9 * bytes, Counter::kIsIterationInvariantRate);
  state.SetLabel(std::to_string(static_cast<int>(100 * rate / read_bandwidth() + 0.5)) +
                 " % of read bandwidth, " + model::int_kernels().name);
}

[[maybe_unused]] const bool kRegistered = [] {
  using model::WeightFormat;
  for (const int64_t rows : {1, 4, 8, 16, 32, 64, 256, 1024}) {
    benchmark::RegisterBenchmark("multiply_int8_cold", multiply_cold, WeightFormat::kInt8, true)
        ->Arg(rows);
    benchmark::RegisterBenchmark("multiply_int8_cold_unverified", multiply_cold,
                                 WeightFormat::kInt8, false)
        ->Arg(rows);
    benchmark::RegisterBenchmark("multiply_int4_cold", multiply_cold, WeightFormat::kInt4, true)
        ->Arg(rows);
  }
  return true;
}();

}  // namespace
