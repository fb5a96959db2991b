// bench_model: how fast the local engine runs a checkpoint, in every weight format, beside what the
// machine's memory and multipliers give in the same run.
#include <fmt/core.h>
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>

#include "bench/model/cells.h"
#include "bench/model/probes.h"
#include "bench/model/report.h"
#include "model/kernels.h"

namespace bench {
namespace {

struct Options {
  std::string checkpoint, json;
  std::vector<std::string> weights = {"f32", "bf16", "int8", "int4"};
  std::string kv = "bf16";
  std::vector<std::string> modes = {"invariant"};
  std::vector<uint32_t> batches = {1, 4, 8, 16, 32}, depths = {0, 4096, 32768};
  std::vector<uint32_t> prefills = {256, 2048}, threads = {1, 2};
  std::vector<std::string> cells;  // "b8d4096", "p256"; in place of the three lists above
  uint32_t repeats = 5, steps = 32, chunk = 512;
  double seconds = 0.3, kv_gigabytes = 8;
  bool verify = true;
};

const std::map<std::string, model::WeightChoice> kWeights = {
    {"as-stored", model::WeightChoice::kAsStored},
    {"f32", model::WeightChoice::kF32},
    {"bf16", model::WeightChoice::kBf16},
    {"int8", model::WeightChoice::kInt8},
    {"int4", model::WeightChoice::kInt4}};

const std::map<std::string, model::KvType> kKvTypes = {
    {"bf16", model::KvType::kBf16}, {"f32", model::KvType::kF32}, {"int8", model::KvType::kInt8}};

// "b8d4096" or "p256".
std::optional<Cell> parse_cell(const std::string& text, uint32_t steps) {
  unsigned batch = 0, depth = 0, tokens = 0;
  int used = 0;
  if (std::sscanf(text.c_str(), "b%ud%u%n", &batch, &depth, &used) == 2 && batch > 0 &&
      text.size() == static_cast<size_t>(used))
    return Cell{.prefill = false, .batch = batch, .depth = depth, .tokens = steps};
  if (std::sscanf(text.c_str(), "p%u%n", &tokens, &used) == 1 && tokens > 0 &&
      text.size() == static_cast<size_t>(used))
    return Cell{.prefill = true, .batch = 1, .depth = 0, .tokens = tokens};
  return std::nullopt;
}

std::vector<Cell> cells_of(const Options& options) {
  std::vector<Cell> cells;
  for (const std::string& text : options.cells) cells.push_back(*parse_cell(text, options.steps));
  if (!cells.empty()) return cells;
  for (const uint32_t depth : options.depths)
    for (const uint32_t batch : options.batches)
      cells.push_back({.prefill = false, .batch = batch, .depth = depth, .tokens = options.steps});
  for (const uint32_t tokens : options.prefills)
    cells.push_back({.prefill = true, .batch = 1, .depth = 0, .tokens = tokens});
  return cells;
}

// The KV memory of the largest cell that fits; all others use its first blocks.
struct Memory {
  std::optional<Sequences> sequences;
  uint32_t batch = 0, positions = 0;
};

uint32_t positions_of(const Cell& cell) { return cell.depth + cell.tokens; }

std::string why_not(const Cell& cell, const model::Shape& shape, const Options& options) {
  if (positions_of(cell) > shape.max_context)
    return fmt::format("skipped: beyond the model's context of {}", shape.max_context);
  const auto most = static_cast<uint64_t>(options.kv_gigabytes * 1e9);
  const uint64_t bytes = Sequences::bytes_for(shape, cell.batch, positions_of(cell));
  if (bytes > most)
    return fmt::format("skipped: {:.1f} GB of KV, --kv-gigabytes allows {:.1f}",
                       static_cast<double>(bytes) / 1e9, options.kv_gigabytes);
  return {};
}

// One pool a cell size, made when first needed: cells come grouped by depth.
Sequences& memory_for(const Cell& cell, const model::Shape& shape, Memory* memory) {
  const bool fits =
      memory->sequences && memory->batch >= cell.batch && memory->positions >= positions_of(cell);
  if (!fits) {
    memory->sequences.reset();  // before the next is made: both would not fit
    memory->batch = cell.batch;
    memory->positions = positions_of(cell);
    memory->sequences.emplace(shape, memory->batch, memory->positions);
  }
  return *memory->sequences;
}

// Samples of all rows of one engine: every repeat goes through all cells once, so that a
// disturbance hits many cells a little rather than one a lot.
class EngineBench {
 public:
  EngineBench(const Options& options, const Costs& costs, const ReadProbe& probe)
      : options_(options), costs_(costs), probe_(probe) {}

  void run(model::Engine& engine, uint32_t threads, std::span<Row> rows, Machine* machine) {
    Runner runner(engine, costs_, options_.chunk);
    prepare(engine);
    std::vector<Sums> sums(rows.size());
    std::vector<double> bandwidths, peaks;
    // Largest first, so that one pool serves all where it may.
    std::vector<size_t> order(rows.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return positions_of(rows[a].cell) > positions_of(rows[b].cell);
    });
    for (uint32_t repeat = 0; repeat < options_.repeats; ++repeat) {
      bandwidths.push_back(probe_.measure(threads));
      peaks.push_back(measure_fma(threads));
      for (const size_t i : order) {
        Row& row = rows[i];
        if (row.skipped.empty()) row.skipped = why_not(row.cell, engine.shape(), options_);
        if (!row.skipped.empty()) continue;
        Sequences& sequences = memory_for(row.cell, engine.shape(), &memory_);
        const Sample sample = runner.measure(row.cell, sequences, options_.seconds);
        row.rates.push_back(static_cast<double>(sample.tokens) / sample.seconds);
        // As the probes: a neighbour's turns do not count on one thread.
        const double seconds = threads == 1 ? sample.cpu_seconds : sample.seconds;
        sums[i].bandwidth.push_back(sample.bytes / seconds);
        sums[i].peak.push_back(sample.operations / seconds);
        sums[i].cpu.push_back(sample.cpu_seconds / sample.seconds / threads);
      }
      fmt::print(stderr, "bench_model: {} {} on {} thread(s), repeat {} of {}\n", rows[0].weights,
                 rows[0].mode, threads, repeat + 1, options_.repeats);
    }
    *machine = {threads, median(bandwidths), median(peaks)};
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!rows[i].skipped.empty()) continue;
      rows[i].rate = median(rows[i].rates);
      rows[i].best = *std::max_element(rows[i].rates.begin(), rows[i].rates.end());
      rows[i].of_bandwidth = median(sums[i].bandwidth) / machine->bandwidth;
      rows[i].of_peak = median(sums[i].peak) / machine->peak;
      rows[i].cpu_share = median(sums[i].cpu);
    }
  }

 private:
  struct Sums {
    std::vector<double> bandwidth, peak, cpu;
  };

  // Packs every expert, so that no measured pass does.
  void prepare(model::Engine& engine) const {
    std::vector<uint16_t> all(engine.shape().experts);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    engine.prepare_experts(model::LayerRange{0, engine.shape().layers}, all);
  }

  const Options& options_;
  const Costs& costs_;
  const ReadProbe& probe_;
  Memory memory_;
};

base::Status run(const Options& options) {
  const model::Checkpoint checkpoint = TRY(model::Checkpoint::open(options.checkpoint));
  Result result;
  result.checkpoint = options.checkpoint;
  result.kernels = model::kernel_target();
  ::getloadavg(&result.load_average, 1);
  const ReadProbe probe;
  for (const std::string& weights : options.weights) {
    const Costs costs(checkpoint, kWeights.at(weights));
    result.elements = costs.elements();
    result.active = costs.active();
    for (const std::string& mode : options.modes) {
      for (const uint32_t threads : options.threads) {
        std::vector<Row> rows;
        for (const Cell& cell : cells_of(options)) rows.push_back({weights, mode, threads, cell});
        model::EngineOptions engine_options;
        engine_options.weights = kWeights.at(weights);
        engine_options.kv = kKvTypes.at(options.kv);
        engine_options.threads = threads;
        engine_options.verify_products = options.verify;
        if (mode == "fast") engine_options.mode = model::NumericsMode::kFast;
        auto engine = model::make_local_engine(checkpoint, engine_options);
        Machine machine{threads, 0, 0};
        if (engine) {
          EngineBench(options, costs, probe).run(**engine, threads, rows, &machine);
        } else {
          for (Row& row : rows) row.skipped = "skipped: " + engine.error().what;
        }
        result.rows.insert(result.rows.end(), rows.begin(), rows.end());
        const auto known = std::find_if(result.machines.begin(), result.machines.end(),
                                        [&](const Machine& m) { return m.threads == threads; });
        if (engine && known == result.machines.end()) result.machines.push_back(machine);
      }
    }
  }
  print_table(result);
  if (options.json.empty()) return {};
  return write_json(result, options.json);
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bench::Options options;
  CLI::App app{"Decode and prefill of a checkpoint on the local engine"};
  app.add_option("--checkpoint", options.checkpoint, "bf16 or f32 weights")->required();
  app.add_option("--weights", options.weights, "f32, bf16, int8, int4, as-stored")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "bf16", "int8", "int4", "as-stored"}));
  app.add_option("--kv", options.kv, "type of KV")
      ->capture_default_str()
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  app.add_option("--mode", options.modes, "invariant, fast (OpenBLAS)")
      ->delimiter(',')
      ->check(CLI::IsMember({"invariant", "fast"}));
  app.add_option("--batch", options.batches)->delimiter(',')->check(CLI::Range(1, 4096));
  app.add_option("--depth", options.depths)->delimiter(',');
  app.add_option("--prefill", options.prefills)->delimiter(',');
  app.add_option("--cells", options.cells,
                 "instead of these three: b8d4096 (decode), p256 (prefill)")
      ->delimiter(',')
      ->check([](const std::string& text) {
        return bench::parse_cell(text, 1) ? "" : text + " is neither like b8d4096 nor like p256";
      });
  app.add_option("--threads", options.threads)->delimiter(',')->check(CLI::Range(1, 256));
  app.add_option("--repeats", options.repeats)->capture_default_str()->check(CLI::Range(1, 1000));
  app.add_option("--steps", options.steps, "decode steps of a run")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  app.add_option("--chunk", options.chunk, "prefill rows of a pass")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--seconds", options.seconds, "least time of a sample")->capture_default_str();
  app.add_option("--kv-gigabytes", options.kv_gigabytes, "cells that need more KV are skipped")
      ->capture_default_str();
  app.add_flag("!--no-verify", options.verify, "without row checksums");
  app.add_option("--json", options.json, "also write the result to this file");
  CLI11_PARSE(app, argc, argv);
  if (const base::Status done = bench::run(options); !done) {
    fmt::print(stderr, "bench_model: {}\n", done.error().what);
    return 1;
  }
  return 0;
}
