#include "tests/sim/scenario.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "model/forward.h"
#include "tests/sim/scripts.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {

namespace {

// Eight blocks of the oracle's five layers, and some requests come to that many.
constexpr uint64_t kSmallKv = 8 * 5 * 1024;

// A prompt: a third of them, or all, begins with one of two shared prefixes.
std::vector<base::TokenId> prompt(Rng& rng, uint32_t vocab, bool all_shared) {
  std::vector<base::TokenId> tokens;
  const uint64_t shared = rng.below(all_shared ? 2 : 6);
  if (shared < 2) {
    Rng prefix(shared + 1);
    for (uint64_t i = 0; i < 130; ++i)
      tokens.push_back(static_cast<base::TokenId>(prefix.below(vocab)));
  }
  for (uint64_t left = 1 + rng.below(shared < 2 ? 40 : 200); left > 0; --left)
    tokens.push_back(static_cast<base::TokenId>(rng.below(vocab)));
  return tokens;
}

coordinator::Submission submission(Rng& rng, uint32_t vocab, bool all_shared) {
  coordinator::Submission made;
  made.prompt = prompt(rng, vocab, all_shared);
  made.sampling.max_tokens = static_cast<uint32_t>(1 + rng.below(32));
  made.sampling.temperature = rng.chance(0.5) ? 0.0f : 0.9f;
  made.sampling.seed = rng.next();
  made.has_seed = true;
  return made;
}

base::GrammarText some_grammar(Rng& rng) {
  using base::GrammarKind;
  const base::GrammarText grammars[] = {
      {GrammarKind::kJsonObject, ""},
      {GrammarKind::kJsonSchema,
       R"({"properties":{"a":{"type":"integer"},"b":{"items":{"$ref":"#"}}},"required":["b"]})"},
      {GrammarKind::kRegex, "[a-z]{1,20}(, [a-z]{1,20})*"},
      {GrammarKind::kChoice, R"(["yes","no","perhaps"])"},
      {GrammarKind::kEbnf, "root ::= \"(\" root? \")\" root?"}};
  return grammars[rng.below(std::size(grammars))];
}

// What one process gives.
model::Generated alone(model::Engine& engine, const coordinator::Submission& asked) {
  model::GenerateOptions options;
  const base::GrammarText& text = asked.sampling.grammar;
  if (text.kind == base::GrammarKind::kNone)
    return model::generate(engine, asked.prompt, asked.sampling, options);
  const grammar::Vocabulary vocabulary = simulated_vocabulary(engine.shape());
  const auto grammar = *grammar::Grammar::compile(text, vocabulary);
  grammar::Matcher matcher(*grammar, asked.sampling.stop_tokens);
  options.constraint = &matcher;
  return model::generate(engine, asked.prompt, asked.sampling, options);
}

// The first promise that an outcome breaks, or nothing.
std::string broken(const Outcome& outcome, size_t index, model::Engine& engine,
                   const Script& script) {
  if (outcome.ends > 1) return fmt::format("request {} ended {} times", index, outcome.ends);
  const model::Generated want = alone(engine, outcome.asked);
  const bool prefix = outcome.tokens.size() <= want.tokens.size() &&
                      std::equal(outcome.tokens.begin(), outcome.tokens.end(), want.tokens.begin());
  if (!prefix) return fmt::format("request {} got other tokens than one process gives", index);
  if (outcome.cancelled) return {};
  if (outcome.error) return fmt::format("request {} failed: {}", index, outcome.error->what);
  if (outcome.tokens.size() != want.tokens.size() || outcome.finish != want.finish) {
    return fmt::format("request {} got {} of {} tokens", index, outcome.tokens.size(),
                       want.tokens.size());
  }
  if (const base::Duration took = outcome.ended - outcome.submitted; took > script.patience) {
    return fmt::format("request {} took {:.1f} s, more than {} s", index, base::seconds(took),
                       script.patience.count());
  }
  if (script.quiet && outcome.usage.attempts > 1) {
    return fmt::format("request {} needed {} attempts though no node failed", index,
                       outcome.usage.attempts);
  }
  return {};
}

struct Running {
  const Script& script;
  SimCluster& cluster;
  model::Engine& engine;
  RunResult& result;
  const std::vector<std::string>& warnings;

  bool fail(Verdict verdict, std::string why) {
    result.verdict = verdict;
    result.why = std::move(why);
    result.log = cluster.host().recent_log();
    return false;
  }

  // When the request has ended, the next turn of its chat follows after some thinking.
  void follow(size_t index, uint32_t turns, uint64_t seed) {
    if (turns == 0) return;
    const base::Duration soon = cluster.host().now().time_since_epoch() + milliseconds(20);
    cluster.host().at(soon, [this, index, turns, seed] {
      const Outcome& before = *cluster.outcomes()[index];
      if (before.ends == 0) return follow(index, turns, seed);
      Rng rng(seed, turns);
      coordinator::Submission next = before.asked;
      next.prompt.insert(next.prompt.end(), before.tokens.begin(), before.tokens.end());
      for (uint64_t left = 1 + rng.below(30); left > 0; --left)
        next.prompt.push_back(static_cast<base::TokenId>(rng.below(engine.shape().vocab)));
      next.sampling.max_tokens = static_cast<uint32_t>(1 + rng.below(150));
      follow(cluster.submit(next), turns - 1, seed);
    });
  }

  void schedule_load(Rng& rng) {
    const uint64_t count = 12 + rng.below(9);
    for (uint64_t i = 0; i < count; ++i) {
      coordinator::Submission made = submission(rng, engine.shape().vocab, script.shared);
      for (uint64_t more = script.kv_parallel > 1 ? rng.below(400) : 0; more > 0; --more)
        made.prompt.push_back(static_cast<base::TokenId>(rng.below(engine.shape().vocab)));
      if (script.constrained && (i % 3 > 0) != script.preempt)
        made.sampling.grammar = some_grammar(rng);
      if (script.rebalance) made.sampling.max_tokens *= 4;  // time for experts to move
      if (script.preempt) {                                 // long answers, all at once
        made.sampling.max_tokens = 64 + made.sampling.max_tokens * 6;
        made.sampling.ignore_eos = made.sampling.grammar.kind == base::GrammarKind::kNone;
        made.priority = static_cast<int32_t>(rng.below(3)) - 1;
        made.tenant = rng.chance(0.5) ? "one" : "another";
      }
      if (script.tenants) {
        made.salt = rng.chance(0.3) ? "another" : "one";
        made.sampling.max_tokens *= 8;  // time for others to share what it has
        made.sampling.ignore_eos = true;
      }
      const milliseconds at = between(rng, 0, script.preempt ? 600 : 4000);
      const bool leaves = script.cancels && rng.chance(script.preempt ? 0.2 : 0.5);
      const milliseconds stays = between(rng, 0, 1500);
      cluster.host().at(at, [this, made, leaves, stays, at] {
        const size_t index = cluster.submit(made);
        if (leaves) cluster.host().at(at + stays, [this, index] { cluster.cancel(index); });
        follow(index, script.turns - 1, made.sampling.seed);
      });
    }
    result.requests = static_cast<uint32_t>(count) * script.turns;
  }

  // True when every promise held.
  bool judge() {
    if (script.quiet && !cluster.host().run_until([this] { return cluster.ready(); }, seconds(3)))
      return fail(Verdict::kLiveness, "not ready after 3 s");
    const auto over = [this] {
      return cluster.outcomes().size() == result.requests && cluster.all_over();
    };
    if (!cluster.host().run_until(over, script.limit)) {
      size_t open = 0;
      for (const auto& outcome : cluster.outcomes())
        open += outcome->ends == 0 && !outcome->cancelled;
      return fail(Verdict::kLiveness,
                  fmt::format("{} requests are not over after {} s", open, script.limit.count()));
    }
    result.preemptions = cluster.preemptions();
    result.plans = static_cast<uint32_t>(cluster.balance().counters().plans);
    result.held = cluster.steps().rows_held;
    result.virtual_seconds = base::seconds(cluster.host().now().time_since_epoch());
    // The network heals; what is held must be let go soon, not by the end of a lease.
    cluster.host().network().loss = cluster.host().network().corrupt = 0;
    const auto idle = [this] { return cluster.ready() && cluster.held().empty(); };
    const base::Duration soon = cluster.host().now().time_since_epoch() + seconds(8);
    if (!cluster.host().run_until(idle, soon)) {
      return fail(Verdict::kLiveness, cluster.ready() ? "still held: " + cluster.held()
                                                      : "the cluster is not whole again");
    }
    for (size_t i = 0; i < cluster.outcomes().size(); ++i) {
      const Outcome& outcome = *cluster.outcomes()[i];
      if (std::string why = broken(outcome, i, engine, script); !why.empty())
        return fail(Verdict::kCorrectness, std::move(why));
      result.tokens += static_cast<uint32_t>(outcome.tokens.size());
      result.attempts += outcome.usage.attempts;
      result.cached += outcome.usage.cached_tokens;
      if (!outcome.cancelled) {
        result.slowest_seconds =
            std::max(result.slowest_seconds, base::seconds(outcome.ended - outcome.submitted));
      }
    }
    if (script.quiet && !warnings.empty())
      return fail(Verdict::kCorrectness, "a warning where nothing failed: " + warnings.front());
    // A quarantined node says so; any other error is one of ours.
    const std::vector<std::string>& errors = cluster.host().error_lines();
    const auto error = std::ranges::find_if(
        errors, [](const std::string& line) { return line.find("node.quarantined") == line.npos; });
    if (error != errors.end()) return fail(Verdict::kCorrectness, "an error was logged: " + *error);
    return true;
  }
};

}  // namespace

const std::vector<ScenarioInfo>& scenarios() {
  static const std::vector<ScenarioInfo> infos = [] {
    std::vector<ScenarioInfo> made;
    for (const Script& script : scripts()) made.push_back({script.name, script.what});
    return made;
  }();
  return infos;
}

RunResult run(const RunOptions& options) {
  const auto script = std::find_if(scripts().begin(), scripts().end(),
                                   [&](const Script& s) { return options.scenario == s.name; });
  CHECK(script != scripts().end(), "no scenario {}", options.scenario);
  RunResult result;
  model::OracleOptions oracle;
  oracle.mtp_steps = script->mtp_steps;
  if (script->kv_parallel > 1 && options.seed % 2 == 0) oracle.mtp_steps = 2;
  if (script->rebalance) oracle.experts = 16, oracle.skew_percent = 60;
  const std::unique_ptr<model::Engine> engine = model::make_oracle_engine(oracle);
  ClusterOptions cluster_options;
  cluster_options.seed = options.seed;
  cluster_options.network.loss = script->loss;
  cluster_options.network.duplicate = script->duplicate;
  cluster_options.network.reorder = script->reorder;
  cluster_options.without_retry = options.without_retry;
  cluster_options.network.corrupt = script->corrupt;
  cluster_options.store_disk = script->disk;
  cluster_options.stores = script->stores;
  cluster_options.sequence_ranks = script->sequence_ranks;
  cluster_options.mtp_steps = oracle.mtp_steps;
  cluster_options.micro_batches = 1 + static_cast<uint32_t>(options.seed / 2 % 2);
  if (script->kv_parallel > 1) {
    cluster_options.ranks = 4;
    cluster_options.kv_parallel =
        2 + static_cast<uint32_t>(options.seed % (script->kv_parallel - 1));
  }
  cluster_options.share_experts = options.seed % 3 != 0;
  if (script->preempt) {
    cluster_options.decode_kv_bytes = kSmallKv;
    cluster_options.steps_per_schedule = options.seed % 3 == 0 ? 1 : 8;
    cluster_options.mtp_steps = options.seed % 2 == 0 ? script->mtp_steps : 0;
  }
  if (script->rebalance) {
    cluster_options.ranks = 3;
    cluster_options.eplb = true;
    cluster_options.redundant_experts = static_cast<uint32_t>(options.seed % 4) * 2;
  }
  // Of ten thousand beats at 10 % loss six in a row do get lost: where no node fails, none may be
  // taken for dead.
  if (script->quiet) cluster_options.heartbeat_misses = 20;
  std::vector<std::string> warnings;
  cluster_options.on_log = [&](base::Level level, std::string_view line) {
    if (options.print_log) fmt::print("{}\n", line);
    if (level >= base::Level::kWarn) warnings.emplace_back(line);
  };
  Rng rng(options.seed, /*stream=*/77);
  // Odd settings are part of the draw: a pipeline of one, chunks of a token, a batch of one.
  cluster_options.chunk_tokens = std::vector<uint32_t>{1, 7, 16, 64}[rng.below(4)];
  // Ranks that share a chunk exchange rows eight times and more in it, each lost one costs a
  // repeat.
  if (script->sequence_ranks > 1)
    cluster_options.chunk_tokens = std::max(cluster_options.chunk_tokens, 7u);
  cluster_options.dynamic_chunks = options.seed % 2 == 1;
  cluster_options.max_batch = std::vector<uint32_t>{1, 3, 8}[rng.below(3)];
  SimCluster cluster(cluster_options, *engine);
  Running running{*script, cluster, *engine, result, warnings};
  running.schedule_load(rng);
  script->faults(cluster, rng, milliseconds(4000));
  running.judge();
  result.trace = cluster.host().trace_hash();
  return result;
}

}  // namespace simulation
