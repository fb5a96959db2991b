// bench_kernels: the kernels of the local engine beside OpenBLAS in one run, one thread. Rates are
// per second of this thread's CPU time, so that a busy neighbour costs caches and clock, not
// turns.
#include "model/kernels.h"

#include <benchmark/benchmark.h>
#include <cblas.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "model/multiply.h"

namespace {

using benchmark::Counter;
using benchmark::State;

constexpr uint32_t kInputs = 2048, kOutputs = 1024;
// Together larger than any cache: one row over these reads its weights from memory.
constexpr size_t kColdBytes = 192u << 20;

std::vector<float> values(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> out(n);
  for (float& value : out) value = static_cast<float>(rng.uniform() - 0.5);
  return out;
}

model::PackedMatrix packed(bool bf16) {
  model::PackedMatrix w(kOutputs, kInputs,
                        bf16 ? model::WeightFormat::kBf16 : model::WeightFormat::kF32);
  const std::vector<float> row = values(kInputs, 1);
  for (uint32_t j = 0; j < kOutputs; ++j) w.set_rows(j, 1, row.data());
  w.seal();
  return w;
}

// One thread, verified: as an engine with one thread has it.
model::ThreadPool one_thread(1);
model::Integrity integrity;
const model::Compute compute{one_thread, integrity};

// What one iteration did. Every benchmark sets the same counters: the library's CSV writer aborts
// the run where they differ.
void set_rates(State& state, double operations, double bytes) {
  state.counters["GFLOP/s"] = Counter(1e-9 * operations, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(1e-9 * bytes, Counter::kIsIterationInvariantRate);
}

// `rows` times all weights; bytes: each weight once.
void set_product_rates(State& state, size_t rows, size_t weight_bytes) {
  const double weights = double{kInputs} * kOutputs;
  set_rates(state, 2 * weights * static_cast<double>(rows),
            weights * static_cast<double>(weight_bytes));
}

// The weights stay in the caches as far as they fit.
void multiply_warm(State& state, bool bf16) {
  const auto rows = static_cast<uint32_t>(state.range(0));
  const model::PackedMatrix w = packed(bf16);
  const std::vector<float> x = values(size_t{rows} * kInputs, 2);
  std::vector<float> y(size_t{rows} * kOutputs);
  for (auto _ : state) {
    model::multiply(compute, {&w, x.data(), kInputs, rows, y.data(), kOutputs});
    benchmark::ClobberMemory();
  }
  set_product_rates(state, rows, bf16 ? 2 : 4);
}

// Another matrix each time.
void multiply_cold(State& state, bool bf16) {
  const auto rows = static_cast<uint32_t>(state.range(0));
  std::vector<model::PackedMatrix> w;
  const size_t count = kColdBytes / (size_t{kInputs} * kOutputs * (bf16 ? 2 : 4));
  for (size_t i = 0; i < count; ++i) w.push_back(packed(bf16));
  const std::vector<float> x = values(size_t{rows} * kInputs, 2);
  std::vector<float> y(size_t{rows} * kOutputs);
  size_t next = 0;
  for (auto _ : state) {
    model::multiply(compute, {&w[next++ % count], x.data(), kInputs, rows, y.data(), kOutputs});
    benchmark::ClobberMemory();
  }
  set_product_rates(state, rows, bf16 ? 2 : 4);
}

// The same product on OpenBLAS, weights [outputs, inputs] as a checkpoint stores them.
void openblas_sgemm(State& state) {
  const auto rows = static_cast<blasint>(state.range(0));
  const std::vector<float> w = values(size_t{kOutputs} * kInputs, 1);
  const std::vector<float> x = values(static_cast<size_t>(rows) * kInputs, 2);
  std::vector<float> y(static_cast<size_t>(rows) * kOutputs);
  for (auto _ : state) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, kOutputs, kInputs, 1.0f, x.data(),
                kInputs, w.data(), kInputs, 0.0f, y.data(), kOutputs);
    benchmark::ClobberMemory();
  }
  set_product_rates(state, static_cast<size_t>(rows), 4);
}

// What a caller of OpenBLAS uses for a single row.
void openblas_sgemv(State& state) {
  const std::vector<float> w = values(size_t{kOutputs} * kInputs, 1);
  const std::vector<float> x = values(kInputs, 2);
  std::vector<float> y(kOutputs);
  for (auto _ : state) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, kOutputs, kInputs, 1.0f, w.data(), kInputs, x.data(),
                1, 0.0f, y.data(), 1);
    benchmark::ClobberMemory();
  }
  set_product_rates(state, 1, 4);
}

// One tile of 128 positions, the latent of 512 that LongCat uses.
void absorb_tile(State& state) {
  const auto heads = static_cast<uint32_t>(state.range(0));
  constexpr uint32_t kTile = 128, kLatent = 512;
  const model::TileShape shape{
      .heads = heads, .n = kTile, .width = kLatent, .score_stride = kTile, .stride = kLatent};
  const std::vector<float> latents = values(size_t{kTile} * kLatent, 3);
  const std::vector<float> fresh = values(size_t{heads} * kTile, 4);
  std::vector<float> scores(fresh.size());
  std::vector<model::Partial> partials(heads);
  for (model::Partial& partial : partials) partial.o.assign(kLatent, 0.0f);
  for (auto _ : state) {
    std::copy(fresh.begin(), fresh.end(), scores.begin());
    model::absorb_tile_heads(shape, scores.data(), latents.data(), partials.data());
    benchmark::ClobberMemory();
  }
  constexpr double kValues = double{kTile} * kLatent;
  set_rates(state, 2 * heads * kValues, 4 * kValues);  // of the weighing; the latents once
}

void exp_values(State& state) {
  const std::vector<float> fresh = values(4096, 5);
  std::vector<float> x(fresh.size());
  for (auto _ : state) {
    std::copy(fresh.begin(), fresh.end(), x.begin());
    model::exp_in_place(x);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * 4096);
  set_rates(state, 4096 * (9 * 2 + 3), 4096 * 4);  // 9 fused, 3 products
}

void register_all() {
  for (int64_t rows : {1, 4, 16, 64, 256}) {
    benchmark::RegisterBenchmark("multiply_f32", multiply_warm, false)->Arg(rows);
    benchmark::RegisterBenchmark("multiply_bf16", multiply_warm, true)->Arg(rows);
    benchmark::RegisterBenchmark("openblas_sgemm", openblas_sgemm)->Arg(rows);
    if (rows == 1) benchmark::RegisterBenchmark("openblas_sgemv", openblas_sgemv);
  }
  for (int64_t rows : {1, 8, 32}) {
    benchmark::RegisterBenchmark("multiply_f32_cold", multiply_cold, false)->Arg(rows);
    benchmark::RegisterBenchmark("multiply_bf16_cold", multiply_cold, true)->Arg(rows);
  }
  for (int64_t heads : {4, 64})
    benchmark::RegisterBenchmark("absorb_tile_heads", absorb_tile)->Arg(heads);
  benchmark::RegisterBenchmark("exp", exp_values);
}

}  // namespace

int main(int argc, char** argv) {
  openblas_set_num_threads(1);
  register_all();
  benchmark::AddCustomContext("kernels", model::kernel_target());
  benchmark::AddCustomContext("openblas", openblas_get_corename());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
