// bench_local: the load of `serval bench` on the local engine in one process, and with --against
// what a cluster's figures for the same load are in relation to it.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "bench/local_run.h"
#include "model/checkpoint.h"
#include "model/kernels.h"

namespace {

using nlohmann::json;

struct Arguments {
  cluster::BenchOptions load;
  bench::LocalLimits limits;
  std::string against;
};

base::Result<cluster::BenchResult> run(const Arguments& arguments) {
  const model::Checkpoint checkpoint = TRY(model::Checkpoint::open(arguments.load.model));
  const auto engine = TRY(model::make_local_engine(checkpoint, {}));
  const model::Shape& shape = engine->shape();
  std::vector<uint16_t> experts(shape.experts);
  std::iota(experts.begin(), experts.end(), uint16_t{0});
  engine->prepare_experts({0, shape.layers}, experts);  // as a decode rank does before it is ready
  cluster::BenchResult result = TRY(bench::run_local(*engine, arguments.load, arguments.limits));
  result.url = fmt::format("in one process, {}", model::kernel_target());
  result.model = arguments.load.model;
  return result;
}

// Cluster figures divided by ours. Refuses what was measured under another load.
base::Result<std::string> cost(const std::string& file, const json& local) {
  std::ifstream in(file);
  const json theirs = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!theirs.is_object()) {
    return base::fail(base::Code::kNotFound, "{} is not what serval bench --json writes", file);
  }
  for (const char* key :
       {"concurrency", "completed", "failed", "total_input_tokens", "total_output_tokens"}) {
    const json value = theirs.value(key, json());
    if (value == local.at(key)) continue;
    return base::fail(base::Code::kInvalidArgument,
                      "{} was another load: {} is {} there and {} here", file, key, value.dump(),
                      local.at(key).dump());
  }
  const auto ratio = [&](const char* path) {
    const json::json_pointer at(path);
    const json value = theirs.contains(at) ? theirs.at(at) : json();
    return value.is_number() ? value.get<double>() / local.at(at).get<double>() : 0.0;
  };
  std::string text = fmt::format("{:-^50}\n", "Cost of distribution (cluster / local)");
  text += fmt::format("{:<40} {:<10.2f}\n", "Median TTFT:", ratio("/ttft/median_ms"));
  text += fmt::format("{:<40} {:<10.2f}\n", "Median TPOT:", ratio("/tpot/median_ms"));
  text +=
      fmt::format("{:<40} {:<10.2f}\n", "Output token throughput:", ratio("/output_throughput"));
  return text + std::string(50, '=') + "\n";
}

base::Status report(const Arguments& arguments) {
  const cluster::BenchResult result = TRY(run(arguments));
  const std::string text = cluster::bench_json(result);
  fmt::print("{}", cluster::bench_table(result));
  if (!arguments.load.json.empty()) {
    std::ofstream out(arguments.load.json);
    out << text;
    out.flush();
    if (!out) return base::fail(base::Code::kIo, "cannot write {}", arguments.load.json);
  }
  if (!arguments.against.empty()) fmt::print("{}", TRY(cost(arguments.against, json::parse(text))));
  return {};
}

void add_options(CLI::App& app, Arguments& arguments) {
  const auto number = [&](const char* name, uint32_t& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str()->check(CLI::Range(1, 1000000));
  };
  arguments.load.model = "models/serval-tiny";
  app.add_option("--model", arguments.load.model, "the checkpoint folder")->capture_default_str();
  number("--requests", arguments.load.requests, "how many requests");
  number("--concurrency", arguments.load.concurrency, "requests in flight");
  number("--input-tokens", arguments.load.input_tokens, "tokens of each prompt");
  number("--output-tokens", arguments.load.output_tokens, "tokens of each answer");
  app.add_option("--seed", arguments.load.seed, "of the random prompts")->capture_default_str();
  number("--chunk", arguments.limits.chunk, "prompt tokens of one pass");
  number("--max-batch", arguments.limits.max_batch, "sequences that run at once");
  app.add_option("--json", arguments.load.json, "also write the result to this file");
  app.add_option("--against", arguments.against,
                 "a file of serval bench --json for the same load: print the ratios");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"The load of `serval bench` on the local engine in one process and one thread"};
  Arguments arguments;
  add_options(app, arguments);
  CLI11_PARSE(app, argc, argv);
  if (const base::Status done = report(arguments); !done) {
    fmt::print(stderr, "bench_local: {}\n", done.error().what);
    return 1;
  }
  return 0;
}
