// bench_kernels: the kernels of the local engine beside OpenBLAS in one run, one thread. Rates are
// per second of this thread's CPU time, so that a busy neighbour costs caches and clock, not
// turns.
#include "model/kernels.h"

#include <benchmark/benchmark.h>
#include <cblas.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "model/kernels_attention.h"
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

// A tile of 128 cached positions in bf16 against one group of rows: score, softmax, weigh.
// Arguments: rows, kv_lora (the rope key has 64 values more).
void attention_tile(State& state) {
  const auto rows = static_cast<uint32_t>(state.range(0));
  const auto width = static_cast<uint32_t>(state.range(1));
  const uint32_t latent = width + 64, lanes = model::lanes_for(rows);
  const std::vector<float> cached = values(size_t{model::kTile} * latent, 3);
  std::vector<uint16_t> bits(cached.size());
  std::transform(cached.begin(), cached.end(), bits.begin(), model::to_bf16);
  std::vector<const std::byte*> at(model::kTile);
  for (size_t s = 0; s < at.size(); ++s)
    at[s] = reinterpret_cast<const std::byte*>(bits.data() + s * latent);
  const model::CachedRows tile_rows{at.data(), model::kTile, latent, /*bf16=*/true};
  model::AlignedBuffer queries(size_t{latent} * lanes * sizeof(float));
  model::AlignedBuffer scores(model::kTileRows * lanes * sizeof(float));
  model::AlignedBuffer out(size_t{rows} * width * sizeof(float));
  const std::vector<float> q = values(size_t{latent} * lanes, 4);
  std::copy(q.begin(), q.end(), queries.as<float>());
  model::GroupState group;
  group.reset();
  for (auto _ : state) {
    model::score_tile({tile_rows, nullptr}, model::kTile, queries.as<float>(), lanes, {},
                      scores.as<float>());
    model::softmax_tile(scores.as<float>(), model::kTile, lanes, nullptr, 0.01f, group);
    model::weigh_tile({.first = 0,
                       .count = rows,
                       .n = model::kTile,
                       .lanes = lanes,
                       .width = width,
                       .o_stride = width},
                      {tile_rows, nullptr}, scores.as<float>(), group.alpha, out.as<float>());
    benchmark::ClobberMemory();
  }
  const double kValues = double{model::kTile} * (latent + width);
  set_rates(state, 2 * rows * kValues, 2.0 * model::kTile * latent);
}

// 64 index keys against one query: 128 values, as LongCat uses.
void index_keys(State& state) {
  const auto heads = static_cast<uint32_t>(state.range(0));
  constexpr uint32_t kDim = 128;
  const std::vector<float> keys = values(size_t{model::kKeyPanel} * kDim, 5);
  std::vector<uint16_t> panel(keys.size());
  std::transform(keys.begin(), keys.end(), panel.begin(), model::to_bf16);
  const std::vector<float> q = values(size_t{heads} * kDim, 6), w = values(heads, 7);
  std::vector<float> out(model::kKeyPanel);
  for (auto _ : state) {
    model::score_keys({q.data(), w.data(), heads, kDim}, panel.data(), out.data());
    benchmark::ClobberMemory();
  }
  set_rates(state, 2.0 * heads * kDim * model::kKeyPanel, 2.0 * kDim * model::kKeyPanel);
}

// The 1008 highest of many scores.
void select_highest(State& state) {
  const std::vector<float> scores = values(static_cast<size_t>(state.range(0)), 8);
  std::vector<uint32_t> out;
  for (auto _ : state) {
    out.clear();
    model::select_highest_fast(scores, 1008, out);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
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
  for (int64_t width : {256, 512})
    for (int64_t rows : {4, 8, 16})
      benchmark::RegisterBenchmark("attention_tile", attention_tile)->Args({rows, width});
  for (int64_t heads : {4, 32}) benchmark::RegisterBenchmark("index_keys", index_keys)->Arg(heads);
  for (int64_t n : {8192, 131072})
    benchmark::RegisterBenchmark("select_highest", select_highest)->Arg(n);
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
