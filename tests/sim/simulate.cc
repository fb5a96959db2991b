// simulate: runs scenarios from seeds. The command that a failure prints replays it.
//   simulate --scenario faults --seed 81            one run       (--log prints every line)
//   simulate --scenario faults --seeds 200          seeds 1..200, two of each ten run twice for an
//   equal trace simulate --without-retry kv.layer …             that call is sent once only; must
//   fail somewhere
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "tests/sim/scenario.h"

namespace {

void print_failure(const simulation::RunOptions& options, const simulation::RunResult& result) {
  fmt::print("{}\n", result.log);
  fmt::print("check FAILED {} seed {}: {}\n", options.scenario, options.seed, result.why);
  std::string without;
  for (const std::string& label : options.without_retry) without += " --without-retry " + label;
  fmt::print("replay: build/bin/simulate --scenario {} --seed {}{} --log\n", options.scenario,
             options.seed, without);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Runs the whole cluster in one thread from a seed, with faults, and checks every promise."};
  simulation::RunOptions options;
  uint64_t seeds = 0;
  std::vector<std::string> without;
  std::string known;
  for (const auto& info : simulation::scenarios())
    known += fmt::format("\n  {:<9} {}", info.name, info.what);
  app.footer("Scenarios:" + known);
  app.add_option("--scenario", options.scenario, "which")->capture_default_str();
  app.add_option("--seed", options.seed, "the first or only seed")->capture_default_str();
  app.add_option("--seeds", seeds, "how many seeds, from --seed on");
  app.add_option("--without-retry", without, "labels of calls that are not repeated");
  app.add_flag("--log", options.print_log, "print every log line");
  CLI11_PARSE(app, argc, argv);
  options.without_retry.insert(without.begin(), without.end());
  bool exists = false;
  for (const auto& info : simulation::scenarios()) exists = exists || options.scenario == info.name;
  if (!exists) {
    fmt::print(stderr, "no scenario '{}'; there are:{}\n", options.scenario, known);
    return 2;
  }
  const uint64_t last = options.seed + (seeds == 0 ? 1 : seeds);
  int code = 0;
  for (; options.seed < last; ++options.seed) {
    simulation::RunResult result = simulation::run(options);
    const bool twice = seeds == 0 || options.seed % 10 < 2;
    if (result.verdict == simulation::Verdict::kOk && twice &&
        simulation::run(options).trace != result.trace) {
      result.verdict = simulation::Verdict::kCorrectness;
      result.why = "the same seed gave another trace";
    }
    if (result.verdict != simulation::Verdict::kOk) {
      print_failure(options, result);
      if (code == 0) code = static_cast<int>(result.verdict);
      if (seeds != 0) continue;
      return code;
    }
    fmt::print(
        "check ok {} seed {}: {} requests, {} tokens, {} cached, {} attempts, {} preempted, {} "
        "plans, {} held, slowest {:.1f} s, {:.1f} virtual s, trace {}\n",
        options.scenario, options.seed, result.requests, result.tokens, result.cached,
        result.attempts, result.preemptions, result.plans, result.held, result.slowest_seconds,
        result.virtual_seconds, result.trace.hex());
  }
  return code;
}
