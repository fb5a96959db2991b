// bench_products: float products of the local engine beside OpenBLAS, memory and the multiply-add
// units, all by turns in one loop, so that a busy machine slows them alike. One thread, per second
// of its CPU time. Ratios are medians of ratios of neighbouring turns.
#include <cblas.h>
#include <hwy/targets.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/rng.h"
#include "bench/model/probes.h"
#include "model/multiply.h"

namespace {

using model::PackedMatrix;
using model::WeightFormat;

struct Options {
  std::vector<uint32_t> rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  std::vector<std::string> shapes = {"2048x1024"};  // inputs x outputs
  std::string kernels = "best";
  int turns = 15;
};

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::vector<float> values(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> out(n);
  for (float& value : out) value = static_cast<float>(rng.uniform() - 0.5);
  return out;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// Matrices of one shape, together larger than any cache.
class Weights {
 public:
  Weights(uint32_t inputs, uint32_t outputs, WeightFormat format) : inputs_(inputs) {
    const size_t bytes = size_t{inputs} * outputs * (format == WeightFormat::kBf16 ? 2 : 4);
    const std::vector<float> row = values(size_t{16} * inputs, 1);
    for (size_t i = 0; i < std::max<size_t>(2, (size_t{160} << 20) / bytes); ++i) {
      PackedMatrix& w = all_.emplace_back(outputs, inputs, format);
      for (uint32_t j = 0; j < outputs; j += 16)
        w.set_rows(j, std::min(16u, outputs - j), row.data());
      w.seal();
    }
  }
  // GFLOP/s of `times` products, each over another matrix.
  double measure(const model::Compute& compute, const float* x, uint32_t rows, float* y,
                 int times) {
    const uint32_t outputs = all_[0].outputs();
    const double begin = thread_seconds();
    for (int i = 0; i < times; ++i)
      model::multiply(compute, {&all_[next_++ % all_.size()], x, inputs_, rows, y, outputs});
    return 2e-9 * inputs_ * outputs * rows * times / (thread_seconds() - begin);
  }

 private:
  const uint32_t inputs_;
  std::vector<PackedMatrix> all_;
  size_t next_ = 0;
};

double measure_sgemm(const std::vector<float>& w, const std::vector<float>& x, uint32_t inputs,
                     uint32_t outputs, uint32_t rows, std::vector<float>& y, int times) {
  const auto blas = [](uint32_t n) { return static_cast<blasint>(n); };
  const double begin = thread_seconds();
  for (int i = 0; i < times; ++i)
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas(rows), blas(outputs), blas(inputs),
                1.0f, x.data(), blas(inputs), w.data(), blas(inputs), 0.0f, y.data(),
                blas(outputs));
  return 2e-9 * inputs * outputs * rows * times / (thread_seconds() - begin);
}

void run_shape(const Options& options, uint32_t inputs, uint32_t outputs,
               const bench::ReadProbe& memory) {
  std::printf("\n%u inputs, %u outputs\n", inputs, outputs);
  std::printf(
      "rows  read GB/s  FMA | f32 GF/s  GB/s %%read %%FMA  check | bf16 GF/s  GB/s %%read"
      " %%FMA  check | sgemm GF/s  f32/sgemm\n");
  model::ThreadPool one(1);
  model::Integrity on(true), off(false);
  const model::Compute verified{one, on}, bare{one, off};
  Weights weights[2] = {{inputs, outputs, WeightFormat::kF32},
                        {inputs, outputs, WeightFormat::kBf16}};
  const std::vector<float> stored = values(size_t{inputs} * outputs, 3);
  for (uint32_t rows : options.rows) {
    const std::vector<float> x = values(size_t{rows} * inputs, 2);
    std::vector<float> y(size_t{rows} * outputs);
    const double work = 2.0 * inputs * outputs * std::max(rows, 6u);
    const int times = std::max(1, static_cast<int>(2e8 / work));
    std::vector<double> read, fma, blas, ratio, speed[2], share[2], peak[2], cost[2];
    for (int turn = 0; turn < options.turns; ++turn) {
      read.push_back(memory.measure(1) * 1e-9);
      fma.push_back(bench::measure_fma(1) * 1e-9);
      for (int f = 0; f < 2; ++f) {
        const double bytes = f == 0 ? 4 : 2;
        double with = 0, without = 0;
        for (int i = 0; i < 2; ++i) {
          const bool check = (turn + i) % 2 == 0;
          (check ? with : without) =
              weights[f].measure(check ? verified : bare, x.data(), rows, y.data(), times);
        }
        speed[f].push_back(with);
        share[f].push_back(with / 2 / rows * bytes / read.back());
        peak[f].push_back(with / fma.back());
        cost[f].push_back(without / with - 1);
      }
      blas.push_back(measure_sgemm(stored, x, inputs, outputs, rows, y,
                                   std::max(1, rows < 8 ? times / 8 : times)));
      ratio.push_back(speed[0].back() / blas.back());
    }
    std::printf("%4u  %9.1f %4.0f", rows, median(read), median(fma));
    for (int f = 0; f < 2; ++f)
      std::printf(" | %8.1f %5.1f  %3.0f%%  %3.0f%% %+5.1f%%", median(speed[f]),
                  median(speed[f]) / 2 / rows * (f == 0 ? 4 : 2), 100 * median(share[f]),
                  100 * median(peak[f]), 100 * median(cost[f]));
    std::printf(" | %10.1f  %8.2f\n", median(blas), median(ratio));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Float products beside OpenBLAS, memory and multiply-add units");
  app.add_option("--rows", options.rows, "row counts")->delimiter(',');
  app.add_option("--shapes", options.shapes, "inputs x outputs, as 2048x1024")->delimiter(',');
  app.add_option("--turns", options.turns, "turns a figure is the median of");
  app.add_option("--kernels", options.kernels, "best, or what a machine without AVX-512 runs: avx2")
      ->check(CLI::IsMember({"best", "avx2"}));
  CLI11_PARSE(app, argc, argv);
  openblas_set_num_threads(1);
  if (options.kernels == "avx2") hwy::DisableTargets(HWY_AVX3 | HWY_AVX3_DL);
  std::printf(
      "kernels %s, OpenBLAS %s; weights of multiply from memory, of sgemm warm; check: what"
      " verification adds\n",
      model::kernel_target(), openblas_get_corename());
  const bench::ReadProbe memory(size_t{128} << 20);
  for (const std::string& shape : options.shapes) {
    unsigned inputs = 0, outputs = 0;
    if (std::sscanf(shape.c_str(), "%ux%u", &inputs, &outputs) != 2) {
      std::fprintf(stderr, "bench_products: \"%s\" is no shape; write 2048x1024\n", shape.c_str());
      return 2;
    }
    run_shape(options, inputs, outputs, memory);
  }
  return 0;
}
