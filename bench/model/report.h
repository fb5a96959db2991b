// The table and the JSON of bench_model.
#pragma once
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/model/cells.h"

namespace bench {

// One cell in one precision on so many threads: the medians of its samples.
struct Row {
  std::string weights;  // "int8"
  std::string mode;     // "invariant" or "fast"
  uint32_t threads = 1;
  Cell cell;
  std::string skipped = {};        // why there are no samples
  std::vector<double> rates = {};  // tokens a second, in the order measured
  double rate = 0, best = 0;
  double of_bandwidth = 0, of_peak = 0;  // shares of what the probes gave in the same run
  double cpu_share = 0;                  // CPU time had, of wall time · threads
};
struct Machine {
  uint32_t threads = 1;
  double bandwidth = 0, peak = 0;  // medians of the probes: bytes and operations a second
};
struct Result {
  std::string checkpoint;
  uint64_t elements = 0, active = 0;
  double load_average = 0;
  std::string kernels;  // instruction set
  std::vector<Machine> machines;
  std::vector<Row> rows;
};

double median(std::vector<double> values);
std::string name_of(const Cell& cell);  // "decode b8 d4096", "prefill 256"
void print_table(const Result& result);
base::Status write_json(const Result& result, const std::string& file);

}  // namespace bench
