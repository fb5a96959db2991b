// bench_long_context: one long sequence through the local engine. Prefill time for every 65536
// tokens, memory, and the time of a decode step at some contexts on the way.
#include <fmt/core.h>
#include <stdlib.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/make_checkpoint.h"

namespace bench {
namespace {

struct Options {
  std::string config = "bench/attention/long.json", checkpoint;
  uint32_t tokens = 1u << 20, chunk = 512, threads = 1, steps = 15;
  std::vector<uint32_t> contexts = {4096, 32768, 131072, 1048575};
  model::HierarchicalIndex hierarchical{.on = true};
};

double seconds(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Bytes of this process in memory.
double resident() {
  std::ifstream status("/proc/self/statm");
  double pages = 0;
  status >> pages >> pages;
  return pages * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

class LongContext {
 public:
  LongContext(model::Engine& engine, const Options& options)
      : engine_(engine),
        options_(options),
        pool_(model::KvPool::blocks_for(options.tokens + 1),
              model::LayerRange{0, engine.shape().kv_layers()}, engine.shape().kv_row_bytes),
        blocks_(*pool_.allocate(pool_.total())) {
    base::Rng rng(/*seed=*/1);
    tokens_.resize(options.tokens + 1);
    for (model::TokenId& t : tokens_)
      t = static_cast<model::TokenId>(rng.below(engine.shape().vocab));
  }

  void run() {
    constexpr uint32_t kReport = 65536;
    fmt::print("{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "tokens", "s wall", "s CPU", "tok/s",
               "KV MB", "RSS MB");
    const double kv_token = double{1} * engine_.shape().kv_row_bytes * engine_.shape().layers;
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    const double begun = wall, begun_cpu = cpu;
    uint32_t reported = 0;
    while (done_ < options_.tokens) {
      const auto at = std::find(options_.contexts.begin(), options_.contexts.end(), done_);
      if (at != options_.contexts.end()) {
        const double before = seconds(CLOCK_MONOTONIC),
                     before_cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
        decode();
        wall += seconds(CLOCK_MONOTONIC) - before;
        cpu += seconds(CLOCK_PROCESS_CPUTIME_ID) - before_cpu;
      }
      uint32_t count = std::min(options_.chunk, options_.tokens - done_);
      for (const uint32_t context : options_.contexts)
        if (context > done_) count = std::min(count, context - done_);
      pass(count);
      done_ += count;
      if (done_ / kReport == reported / kReport && done_ < options_.tokens) continue;
      const double now = seconds(CLOCK_MONOTONIC), now_cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
      fmt::print("{:>9} {:>9.2f} {:>9.2f} {:>9.0f} {:>9.0f} {:>9.0f}\n", done_, now - wall,
                 now_cpu - cpu, (done_ - reported) / (now - wall), kv_token * done_ / 1e6,
                 resident() / 1e6);
      std::fflush(stdout);
      wall = now;
      cpu = now_cpu;
      reported = done_;
    }
    fmt::print("total {:.1f} s wall, {:.1f} s CPU\n", seconds(CLOCK_MONOTONIC) - begun,
               seconds(CLOCK_PROCESS_CPUTIME_ID) - begun_cpu);
  }

 private:
  void pass(uint32_t count) {
    const uint32_t back = std::min(done_, engine_.shape().ngram_context);
    pass_.tokens.assign(tokens_.begin() + done_, tokens_.begin() + done_ + count);
    pass_.segments.assign(1, {.row = 0,
                              .count = count,
                              .position = done_,
                              .kv = model::KvView{&pool_, blocks_},
                              .context = std::span(tokens_).subspan(done_ - back, back)});
    model::InlineSite site(engine_);
    base::run_inline(
        model::forward(engine_, model::LayerRange{0, engine_.shape().layers}, pass_, site));
  }

  // The next token again and again: its row is written anew each time.
  void decode() {
    std::vector<double> wall, cpu;
    std::vector<float> logits(engine_.shape().vocab);
    const std::vector<uint32_t> row = {0};
    for (uint32_t i = 0; i < options_.steps; ++i) {
      const double begun = seconds(CLOCK_MONOTONIC), begun_cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
      pass(1);
      engine_.head(pass_, row, logits);
      wall.push_back(seconds(CLOCK_MONOTONIC) - begun);
      cpu.push_back(seconds(CLOCK_PROCESS_CPUTIME_ID) - begun_cpu);
    }
    const auto median = [](std::vector<double>& of) {
      std::nth_element(of.begin(), of.begin() + static_cast<ptrdiff_t>(of.size() / 2), of.end());
      return of[of.size() / 2];
    };
    fmt::print("decode step at context {}: {:.3f} ms wall, {:.3f} ms CPU\n", done_,
               1e3 * median(wall), 1e3 * median(cpu));
  }

  model::Engine& engine_;
  const Options& options_;
  model::KvPool pool_;
  const std::vector<model::BlockId> blocks_;
  std::vector<model::TokenId> tokens_;
  model::Pass pass_;
  uint32_t done_ = 0;
};

int run(const Options& options) {
  std::string folder = options.checkpoint;
  std::optional<std::filesystem::path> made;
  if (folder.empty()) {
    std::string pattern = std::filesystem::temp_directory_path() / "serval_long_XXXXXX";
    made = ::mkdtemp(pattern.data());
    folder = *made / "model";
    const auto written = model::make_checkpoint(options.config, folder, {});
    if (!written) {
      fmt::print(stderr, "{}\n", written.error().what);
      return 1;
    }
  }
  auto checkpoint = model::Checkpoint::open(folder);
  if (!checkpoint) {
    fmt::print(stderr, "{}\n", checkpoint.error().what);
    return 1;
  }
  model::EngineOptions engine_options;
  engine_options.threads = options.threads;
  engine_options.hierarchical = options.hierarchical;
  auto engine = model::make_local_engine(*checkpoint, engine_options);
  if (!engine) {
    fmt::print(stderr, "{}\n", engine.error().what);
    return 1;
  }
  fmt::print("{} threads, chunks of {}, {}\n", options.threads, options.chunk,
             options.hierarchical.on
                 ? fmt::format("blocks before tokens ({} kept, from {})", options.hierarchical.keep,
                               options.hierarchical.from)
                 : "flat index");
  LongContext(**engine, options).run();
  if (made) std::filesystem::remove_all(*made);
  return 0;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bench::Options options;
  CLI::App app("One long sequence through the local engine");
  bool flat = false;
  app.add_option("--config", options.config, "config.json to make random weights for");
  app.add_option("--checkpoint", options.checkpoint, "a checkpoint instead");
  app.add_option("--tokens", options.tokens, "length of the prompt");
  app.add_option("--chunk", options.chunk, "tokens of a pass");
  app.add_option("--threads", options.threads, "compute threads");
  app.add_option("--steps", options.steps, "decode steps at each context");
  app.add_option("--contexts", options.contexts, "where to time decode steps")->delimiter(',');
  app.add_option("--keep", options.hierarchical.keep, "blocks kept by the coarse score");
  app.add_option("--from", options.hierarchical.from, "first position with hierarchical indexing");
  app.add_flag("--flat", flat, "no hierarchical indexing");
  CLI11_PARSE(app, argc, argv);
  options.hierarchical.on = !flat;
  return bench::run(options);
}
