// What a load run measured, and the table and JSON of it. Rows and words are those of `vllm bench
// serve`, so that results can be laid side by side.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace cluster {

// One finished request; times in seconds since the run began.
struct BenchSample {
  bool ok = false;
  std::string error;
  double sent = 0, first = 0, last = 0;
  std::vector<double> gaps;  // between token events, seconds
  uint32_t input_tokens = 0, output_tokens = 0;
};

struct BenchResult {
  std::vector<BenchSample> samples;
  double duration = 0;
  std::string url, model;
  uint32_t concurrency = 0;
};

struct Summary {
  double mean = 0, median = 0, p99 = 0;
};
Summary summarise(std::vector<double> values);  // zeros for none

std::string bench_table(const BenchResult& result);
std::string bench_json(const BenchResult& result);

}  // namespace cluster
