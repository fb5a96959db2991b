#include "cluster/bench_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace cluster {

namespace {

// The metrics of api.md's table, in milliseconds.
struct Latencies {
  Summary ttft, tpot, itl, e2e;
  uint64_t input = 0, output = 0;
  uint32_t succeeded = 0, failed = 0;
};

Latencies measure(const BenchResult& result) {
  std::vector<double> ttft, tpot, itl, e2e;
  Latencies all;
  for (const BenchSample& sample : result.samples) {
    if (!sample.ok) {
      ++all.failed;
      continue;
    }
    ++all.succeeded;
    all.input += sample.input_tokens;
    all.output += sample.output_tokens;
    ttft.push_back(1e3 * (sample.first - sample.sent));
    e2e.push_back(1e3 * (sample.last - sample.sent));
    if (sample.output_tokens > 1)
      tpot.push_back(1e3 * (sample.last - sample.first) / (sample.output_tokens - 1));
    for (double gap : sample.gaps) itl.push_back(1e3 * gap);
  }
  all.ttft = summarise(std::move(ttft));
  all.tpot = summarise(std::move(tpot));
  all.itl = summarise(std::move(itl));
  all.e2e = summarise(std::move(e2e));
  return all;
}

std::string row(const std::string& name, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", name, value);
}
std::string row(const std::string& name, uint64_t value) {
  return fmt::format("{:<40} {:<10}\n", name, value);
}

std::string section(const std::string& title, const std::string& name, const Summary& summary) {
  return fmt::format("{:-^50}\n", title) + row("Mean " + name + " (ms):", summary.mean) +
         row("Median " + name + " (ms):", summary.median) +
         row("P99 " + name + " (ms):", summary.p99);
}

nlohmann::json as_json(const Summary& summary) {
  return {{"mean_ms", summary.mean}, {"median_ms", summary.median}, {"p99_ms", summary.p99}};
}

}  // namespace

Summary summarise(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double part) {  // linear between neighbours, as numpy.percentile
    const double place = part * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (values[above] - values[below]) * (place - std::floor(place));
  };
  double sum = 0;
  for (double value : values) sum += value;
  return {sum / static_cast<double>(values.size()), at(0.5), at(0.99)};
}

std::string bench_table(const BenchResult& result) {
  const Latencies all = measure(result);
  const double seconds = std::max(result.duration, 1e-9);
  std::string table = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  table += row("Successful requests:", uint64_t{all.succeeded});
  table += row("Failed requests:", uint64_t{all.failed});
  table += row("Maximum request concurrency:", uint64_t{result.concurrency});
  table += row("Benchmark duration (s):", result.duration);
  table += row("Total input tokens:", all.input);
  table += row("Total generated tokens:", all.output);
  table += row("Request throughput (req/s):", all.succeeded / seconds);
  table += row("Output token throughput (tok/s):", static_cast<double>(all.output) / seconds);
  table +=
      row("Total Token throughput (tok/s):", static_cast<double>(all.input + all.output) / seconds);
  table += section("Time to First Token", "TTFT", all.ttft);
  table += section("Time per Output Token (excl. 1st token)", "TPOT", all.tpot);
  table += section("Inter-token Latency", "ITL", all.itl);
  table += section("End-to-end Latency", "E2EL", all.e2e);
  return table + std::string(50, '=') + "\n";
}

std::string bench_json(const BenchResult& result) {
  const Latencies all = measure(result);
  const double seconds = std::max(result.duration, 1e-9);
  nlohmann::json json = {
      {"url", result.url},
      {"model", result.model},
      {"concurrency", result.concurrency},
      {"completed", all.succeeded},
      {"failed", all.failed},
      {"duration_s", result.duration},
      {"total_input_tokens", all.input},
      {"total_output_tokens", all.output},
      {"request_throughput", all.succeeded / seconds},
      {"output_throughput", static_cast<double>(all.output) / seconds},
      {"total_token_throughput", static_cast<double>(all.input + all.output) / seconds},
      {"ttft", as_json(all.ttft)},
      {"tpot", as_json(all.tpot)},
      {"itl", as_json(all.itl)},
      {"e2el", as_json(all.e2e)}};
  nlohmann::json errors = nlohmann::json::array();
  for (const BenchSample& sample : result.samples) {
    if (!sample.ok && errors.size() < 10) errors.push_back(sample.error);
  }
  json["errors"] = errors;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace cluster
