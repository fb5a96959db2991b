#include "bench/model/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace bench {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::string name_of(const Cell& cell) {
  if (cell.prefill) return fmt::format("prefill {}", cell.tokens);
  return fmt::format("decode b{} d{}", cell.batch, cell.depth);
}

void print_table(const Result& result) {
  fmt::print("\n{}: {} elements, {} active a token; kernels {}, load average {:.1f}\n",
             result.checkpoint, result.elements, result.active, result.kernels,
             result.load_average);
  for (const Machine& machine : result.machines)
    fmt::print("{} thread{}: reads {:.1f} GB/s, {:.1f} GFLOP/s of f32 multiply-adds\n",
               machine.threads, machine.threads == 1 ? "" : "s", machine.bandwidth / 1e9,
               machine.peak / 1e9);
  fmt::print("{:<6}{:<11}{:>3}  {:<18}{:>11}{:>11}{:>11}{:>9}{:>8}\n", "", "mode", "thr", "",
             "tok/s", "best", "bandwidth", "peak", "CPU");
  for (const Row& row : result.rows) {
    fmt::print("{:<6}{:<11}{:>3}  {:<18}", row.weights, row.mode, row.threads, name_of(row.cell));
    if (!row.skipped.empty()) {
      fmt::print("  {}\n", row.skipped);
      continue;
    }
    fmt::print("{:>11.1f}{:>11.1f}{:>9.0f} %{:>7.0f} %{:>6.0f} %\n", row.rate, row.best,
               100 * row.of_bandwidth, 100 * row.of_peak, 100 * row.cpu_share);
  }
  fmt::print(
      "KV at a depth is random rows, not prefilled. Bandwidth: weights and KV that the pass must "
      "read, over what the probe read\nin the same run; peak: its operations over f32 "
      "multiply-adds, integer ones too. CPU: the share of the threads'\ntime that they ran; on one "
      "thread bandwidth and peak are of CPU time, tok/s always of the clock.\n");
}

base::Status write_json(const Result& result, const std::string& file) {
  using nlohmann::json;
  json out = {{"checkpoint", result.checkpoint},
              {"elements", result.elements},
              {"active", result.active},
              {"kernels", result.kernels},
              {"load_average", result.load_average},
              {"kv", "random rows"}};
  for (const Machine& machine : result.machines)
    out["machine"].push_back({{"threads", machine.threads},
                              {"read_bytes_per_second", machine.bandwidth},
                              {"fma_operations_per_second", machine.peak}});
  out["rows"] = json::array();
  for (const Row& row : result.rows) {
    json item = {{"name", name_of(row.cell)}, {"weights", row.weights},
                 {"mode", row.mode},          {"threads", row.threads},
                 {"batch", row.cell.batch},   {"depth", row.cell.depth},
                 {"tokens", row.cell.tokens}, {"prefill", row.cell.prefill}};
    if (row.skipped.empty()) {
      item["tokens_per_second"] = row.rate;
      item["samples"] = row.rates;
      item["of_read_bandwidth"] = row.of_bandwidth;
      item["of_fma_peak"] = row.of_peak;
      item["cpu_share"] = row.cpu_share;
    } else {
      item["skipped"] = row.skipped;
    }
    out["rows"].push_back(std::move(item));
  }
  std::ofstream stream(file);
  stream << out.dump(1) << "\n";
  if (!stream.good()) return base::fail(base::Code::kIo, "{}: cannot be written", file);
  return {};
}

}  // namespace bench
