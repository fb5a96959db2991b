// Decode over many expert-parallel ranks, simulated: the real actors, the oracle's tokens, and the
// time that a LongCat-2.0 would take on modelled hosts and links. Step time, messages and imbalance
// for each number of ranks.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "bench/expert_parallel/costed_engine.h"
#include "decode_node/decode_actor.h"
#include "tests/sim/sim_cluster.h"

namespace {

struct Settings {
  std::vector<uint32_t> ranks{8, 32, 128};
  uint32_t batch = 8;  // sequences a rank
  uint32_t steps = 12;
  uint32_t micro_batches = 1;
  uint32_t layers = 4, of_layers = 38, experts = 768, topk = 12;
  double gigabytes = 400, teramadds = 20;       // of a host
  double link_gigabytes = 25, latency_us = 10;  // of a link, one way
};

constexpr double kHead = 163840.0 * 8192.0;  // elements of lm_head

struct Measured {
  double step_ms = 0;     // mean over ranks, of `layers` layers
  double wait_share = 0;  // of a step, standing still for rows away
  double calls = 0;       // expert calls to peers, a rank, layer and step
  double pairs_a_call = 0;
  double imbalance = 0;  // rows received by the busiest rank ÷ mean
};

using Ranks = std::vector<decode::DecodeActor*>;

Ranks ranks_of(simulation::SimCluster& cluster, uint32_t ranks) {
  Ranks out;
  for (uint32_t i = 0; i < ranks; ++i)
    out.push_back(
        static_cast<decode::DecodeActor*>(cluster.host().actor(fmt::format("decode-{}", i))));
  return out;
}

// What the counters' growth since `before` says.
Measured grown(const Settings& s, const Ranks& actors, const std::vector<decode::Counters>& before,
               double seconds, uint64_t pairs) {
  const size_t ranks = actors.size();
  const auto n = static_cast<double>(ranks);
  double steps = 0, wait = 0, calls = 0, received = 0, busiest = 0;
  for (size_t i = 0; i < ranks; ++i) {
    const decode::Counters& now = actors[i]->counters();
    steps += static_cast<double>(now.steps - before[i].steps);
    wait += now.expert_wait_seconds - before[i].expert_wait_seconds;
    calls += static_cast<double>(now.expert_calls - before[i].expert_calls);
    const auto got = static_cast<double>(now.expert_rows_received - before[i].expert_rows_received);
    received += got;
    busiest = std::max(busiest, got);
  }
  Measured out;
  out.step_ms = 1e3 * seconds * n / steps;
  out.wait_share = wait / (seconds * n);
  out.calls = calls / (steps * s.layers);
  out.pairs_a_call = static_cast<double>(pairs) / std::max(calls, 1.0);
  out.imbalance = busiest / (received / n);
  return out;
}

// The counters' growth over a stretch in which all sequences run.
Measured measure(const Settings& s, uint32_t ranks) {
  model::OracleOptions model;
  model.layers = s.layers;
  model.experts = s.experts;
  model.topk = s.topk;
  const std::unique_ptr<model::Engine> oracle = model::make_oracle_engine(model);
  bench::ModelledModel modelled;
  bench::CostedEngine engine(*oracle, modelled, {s.gigabytes * 1e9, s.teramadds * 1e12});
  simulation::ClusterOptions options;
  options.stages = 1;
  options.ranks = ranks;
  options.stores = 0;
  options.max_batch = s.batch;
  options.micro_batches = s.micro_batches;
  options.network.latency_least = std::chrono::nanoseconds(int64_t(s.latency_us * 500));
  options.network.latency_mean = options.network.latency_least;
  // The oracle's rows are shorter than the model's: its link is slower by as much.
  options.network.bytes_per_second =
      s.link_gigabytes * 1e9 * engine.shape().hidden / modelled.hidden;
  options.job_cost = [&engine] { return engine.take_cost(); };
  simulation::SimCluster cluster(options, engine);
  const base::Time ready_by = cluster.host().now() + std::chrono::minutes(10);
  while (!cluster.ready()) {
    CHECK(cluster.host().now() < ready_by, "{} ranks did not get ready", ranks);
    cluster.host().run_for(std::chrono::milliseconds(10));
  }
  for (uint32_t i = 0; i < ranks * s.batch; ++i) {
    coordinator::Submission submission;
    submission.prompt = {3 + i % 400, 3 + i / 400, 7};
    submission.sampling.max_tokens = 1000;
    submission.sampling.ignore_eos = true;
    submission.sampling.seed = i;
    submission.has_seed = true;
    cluster.submit(std::move(submission));
  }
  const Ranks actors = ranks_of(cluster, ranks);
  // Looked at now and then: over so many ranks looking costs more than an event.
  const auto run_steps = [&](uint64_t steps) {
    uint64_t most = 0;
    for (const decode::DecodeActor* actor : actors) most = std::max(most, actor->counters().steps);
    const auto past = [&](const decode::DecodeActor* actor) {
      return actor->counters().steps >= most + steps;
    };
    const auto all_run = [&] {
      uint32_t running = 0;
      for (const decode::DecodeActor* actor : actors) running += actor->ledger().running;
      return running == ranks * s.batch;
    };
    const base::Time limit = cluster.host().now() + std::chrono::hours(1);
    while (!all_run() || !std::ranges::all_of(actors, past)) {
      CHECK(cluster.host().now() < limit, "not all sequences run");
      cluster.host().run_for(std::chrono::microseconds(200));
    }
  };
  engine.slow_down(50);  // few steps while the batches fill
  run_steps(1);
  engine.slow_down(1);
  run_steps(2);
  std::vector<decode::Counters> before;
  for (const decode::DecodeActor* actor : actors) before.push_back(actor->counters());
  const uint64_t pairs_before = engine.pairs();
  const base::Time begun = cluster.host().now();
  run_steps(s.steps);

  return grown(s, actors, before, base::seconds(cluster.host().now() - begun),
               engine.pairs() - pairs_before);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Decode over expert-parallel ranks in the simulator, with modelled hosts and links."};
  Settings s;
  app.add_option("--ranks", s.ranks, "numbers of ranks")->capture_default_str();
  app.add_option("--batch", s.batch, "sequences a rank")->capture_default_str();
  app.add_option("--steps", s.steps, "steps measured")->capture_default_str();
  app.add_option("--micro-batches", s.micro_batches, "passes of a step under way at once")
      ->capture_default_str();
  app.add_option("--layers", s.layers, "layers simulated")->capture_default_str();
  app.add_option("--bandwidth", s.gigabytes, "memory of a host, GB/s")->capture_default_str();
  app.add_option("--madds", s.teramadds, "int8 multiply-adds of a host, 10^12/s")
      ->capture_default_str();
  app.add_option("--link", s.link_gigabytes, "of a pair of hosts, GB/s")->capture_default_str();
  app.add_option("--latency", s.latency_us, "of a message, µs")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  fmt::print("{} routed experts, top {}, {} sequences a rank; {} of {} layers simulated\n",
             s.experts, s.topk, s.batch, s.layers, s.of_layers);
  fmt::print("hosts {:g} GB/s, {:g}e12 madd/s; links {:g} GB/s, {:g} us; int8 weights\n\n",
             s.gigabytes, s.teramadds, s.link_gigabytes, s.latency_us);
  fmt::print("{:>6} {:>9} {:>12} {:>7} {:>12} {:>11} {:>10} {:>12}\n", "ranks", "step ms",
             "whole model", "wait", "calls/layer", "pairs/call", "imbalance", "tokens/s");
  for (const uint32_t ranks : s.ranks) {
    const Measured m = measure(s, ranks);
    // All layers, and the head once.
    const double whole = m.step_ms * s.of_layers / s.layers + 1e3 * kHead / (s.gigabytes * 1e9);
    fmt::print("{:>6} {:>9.2f} {:>9.1f} ms {:>6.1f}% {:>12.1f} {:>11.2f} {:>10.2f} {:>12.0f}\n",
               ranks, m.step_ms, whole, 100 * m.wait_share, m.calls, m.pairs_a_call, m.imbalance,
               1e3 * s.batch * ranks / whole);
    std::fflush(stdout);
  }
}
