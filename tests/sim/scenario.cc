#include "tests/sim/scenario.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>

#include "model/forward.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {

using base::Rng;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

// What a scenario does to a cluster, and what it promises.
struct Script {
  const char* name;
  const char* what;
  double loss = 0, duplicate = 0, reorder = 0;
  // Schedules faults on cluster.host() by draws from rng, during the first `span`.
  void (*faults)(SimCluster& cluster, Rng& rng, milliseconds span) = nullptr;
  bool quiet =
      false;  // nodes and links hold: no second attempt, nothing logged at warn, ready soon
  bool cancels = false;  // some clients leave
  seconds patience{};    // from asking to the end, for each request
  seconds limit{};       // of virtual time, for everything to be over
  bool shared = false;   // every prompt begins with one of two long prefixes
  bool disk = false;     // the store has one
  uint32_t stores = 1;
  double corrupt = 0;  // of messages with bulk frames
  uint32_t turns = 1;  // of a chat: each prompt is the former one, its answer and some more
  uint32_t sequence_ranks = 1;
  uint32_t mtp_steps = 0;
  bool constrained = false;  // two of three requests must keep to a grammar
  bool rebalance = false;    // three decode ranks, skewed routing, experts follow the load
};

milliseconds between(Rng& rng, uint64_t least, uint64_t most) {
  return milliseconds(static_cast<int64_t>(least + rng.below(most - least + 1)));
}

void no_faults(SimCluster&, Rng&, milliseconds) {}

void kill_and_restart(SimCluster& cluster, const std::string& name, milliseconds at,
                      milliseconds down) {
  cluster.host().at(at, [&cluster, name] { cluster.host().kill(name); });
  cluster.host().at(at + down, [&cluster, name] { cluster.host().restart(name); });
}

// A decode rank is killed and restarted; a random side of the nodes is cut off for a while.
void partition_and_kill(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  const std::string rank = fmt::format("decode-{}", rng.below(2));
  kill_and_restart(cluster, rank, between(rng, 300, most), between(rng, 200, 2000));
  std::set<std::string> side;
  for (const std::string& node : cluster.nodes()) {
    if (rng.chance(0.4)) side.insert(node);
  }
  const milliseconds lasts = between(rng, 200, 3000);
  cluster.host().at(between(rng, 300, most),
                    [&cluster, side, lasts] { cluster.host().partition(side, lasts); });
}

// Every kind of node goes down once, some twice.
void kill_everything(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (const std::string& node : cluster.nodes()) {
    const auto most = static_cast<uint64_t>(span.count());
    kill_and_restart(cluster, node, between(rng, 300, most), between(rng, 100, 1500));
  }
}

// Every rank of every prefill stage goes down; sometimes two of a stage at once.
void kill_prefill(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  for (const std::string& node : cluster.nodes()) {
    if (!node.starts_with("prefill")) continue;
    kill_and_restart(cluster, node, between(rng, 300, most), between(rng, 100, 3000));
  }
}

// Nodes freeze and come back, longer and shorter than it takes to be declared dead.
void pauses(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (const std::string& node : cluster.nodes()) {
    const milliseconds lasts = between(rng, 100, 4000);
    cluster.host().at(between(rng, 300, static_cast<uint64_t>(span.count())),
                      [&cluster, node, lasts] { cluster.host().pause(node, lasts); });
  }
}

// The store dies over and over, so that promised blocks are missing when they are fetched.
void store_dies(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (milliseconds at{1200}; at < span; at += between(rng, 900, 1800)) {
    kill_and_restart(cluster, "kvstore-0", at, milliseconds(50));
  }
}

// One of three stores after another leaves, empty when it comes back.
void stores_come_and_go(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (milliseconds at{700}; at < span; at += between(rng, 300, 900)) {
    kill_and_restart(cluster, fmt::format("kvstore-{}", rng.below(3)), at, between(rng, 50, 1500));
  }
}

// Every decode rank goes down, some in the middle of a plan.
void kill_ranks(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  for (const std::string& node : cluster.nodes()) {
    if (!node.starts_with("decode")) continue;
    kill_and_restart(cluster, node, between(rng, 500, most), between(rng, 100, 1500));
  }
}

// No KV goes from one stage to one rank while all hear the coordinator (R23).
void stage_and_rank_apart(SimCluster& cluster, Rng& rng, milliseconds span) {
  const std::string stage = fmt::format("prefill-{}", rng.below(2));
  const std::string rank = fmt::format("decode-{}", rng.below(2));
  const auto most = static_cast<uint64_t>(span.count());
  const milliseconds lasts = between(rng, 500, 20'000);
  cluster.host().at(between(rng, 300, most), [&cluster, stage, rank, lasts] {
    cluster.host().cut(stage, rank, lasts);
    cluster.host().cut(rank, stage, lasts);
  });
}

// A weight flips in one node after another, each found by its row checksums; a row of one step or
// chunk becomes NaN. Once: a request whose arithmetic fails twice is told so.
void bad_arithmetic(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  const auto computes = [](const std::string& node) { return !node.starts_with("kvstore"); };
  std::vector<std::string> nodes;
  std::ranges::copy_if(cluster.nodes(), std::back_inserter(nodes), computes);
  for (const std::string& node : nodes) {
    const milliseconds at = between(rng, 300, most);
    cluster.host().at(at, [&cluster, node] { cluster.inject(node, base::FaultPoint::kWeightBit); });
    // By then it has ended itself; one without work since dies with its fault unseen.
    cluster.host().at(at + between(rng, 300, 1500),
                      [&cluster, node] { cluster.host().restart(node); });
  }
  const std::string node = nodes[rng.below(nodes.size())];
  cluster.host().at(between(rng, 300, most),
                    [&cluster, node] { cluster.inject(node, base::FaultPoint::kHiddenNan); });
}

// The store's disk does all that disks do, and the store dies in between: what it serves is right
// or nothing.
void disk_fails(SimCluster& cluster, Rng& rng, milliseconds span) {
  kvstore::SimMedium& disk = *cluster.disks().front();
  const auto sometimes = [&rng](double most) { return rng.chance(0.5) ? most * rng.uniform() : 0; };
  for (milliseconds at{100}; at < span; at += between(rng, 300, 900)) {
    kvstore::SimDiskFaults faults;
    faults.write_error = sometimes(0.5);
    faults.read_error = sometimes(0.2);
    faults.torn = sometimes(0.1);
    faults.lost = sometimes(0.1);
    faults.rot = sometimes(0.1);
    faults.slow = sometimes(0.3);
    faults.capacity = rng.chance(0.2) ? 20'000 : UINT64_MAX;
    faults.will_not_open = rng.chance(0.1);
    cluster.host().at(at, [&disk, faults] { disk.faults = faults; });
    if (rng.chance(0.3)) kill_and_restart(cluster, "kvstore-0", at, milliseconds(50));
  }
  cluster.host().at(span, [&disk] { disk.faults = {}; });
}

// Of ranks that share work.
std::vector<Script> group_scripts() {
  return {
      {.name = "sequence",
       .what = "lossy, two ranks a stage, each killed and restarted",
       .loss = 0.10,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_prefill,
       .patience = seconds(60),
       .limit = seconds(300),
       .sequence_ranks = 2},
      {.name = "shared",
       .what = "5 % loss, three ranks a stage, no node fails",
       .loss = 0.05,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = no_faults,
       .quiet = true,
       .patience = seconds(60),
       .limit = seconds(120),
       .sequence_ranks = 3},
      {"drafts", "three drafts a step, chats of two turns, every node killed and restarted", 0.05,
       0.05, 0.05, kill_everything, false, false, seconds(120), seconds(300), false, false,
       /*stores=*/2, /*corrupt=*/0.02, /*turns=*/2, /*sequence_ranks=*/1, /*mtp_steps=*/3},
      {.name = "grammar",
       .what = "2 % loss, every node killed and restarted, most requests constrained by a grammar",
       .loss = 0.02,
       .duplicate = 0.02,
       .reorder = 0.02,
       .faults = kill_everything,
       .patience = seconds(60),
       .limit = seconds(300),
       .constrained = true},
      {.name = "balance",
       .what = "1 % loss, busy experts get copies and move, no node fails",
       .loss = 0.01,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = no_faults,
       .quiet = true,
       .patience = seconds(60),
       .limit = seconds(120),
       .rebalance = true},
      {.name = "rebalance",
       .what = "lossy, busy experts move while every decode rank is killed and restarted",
       .loss = 0.01,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_ranks,
       .patience = seconds(60),
       .limit = seconds(300),
       .corrupt = 0.02,
       .rebalance = true},
  };
}

const std::vector<Script>& scripts() {
  static const std::vector<Script> all = [] {
    std::vector<Script> made = {
        {"calm", "no faults", 0, 0, 0, no_faults, true, false, seconds(2), seconds(60), false},
        {"lossy", "10 % loss, 5 % duplicates, 5 % reordered: costs time, never an attempt", 0.10,
         0.05, 0.05, no_faults, true, false, seconds(60), seconds(120), false},
        {"faults", "lossy, a partition, a decode rank killed and restarted", 0.10, 0.05, 0.05,
         partition_and_kill, false, false, seconds(120), seconds(300), false},
        {"deaths", "every node but the coordinator killed and restarted", 0.02, 0.02, 0.02,
         kill_everything, false, false, seconds(60), seconds(300), false},
        {"pauses", "every node but the coordinator frozen for up to 4 s", 0.02, 0.02, 0.02, pauses,
         false, false, seconds(60), seconds(300), false},
        {"store", "20 % loss, the store killed again and again under shared prefixes", 0.20, 0.05,
         0.05, store_dies, false, false, seconds(120), seconds(300), true},
        {"arithmetic", "weights flip in every node that computes, a row becomes NaN", 0.02, 0.02,
         0.02, bad_arithmetic, false, false, seconds(60), seconds(300), false},
        {"disk", "10 % loss, the store's disk full, ill, slow and rotten, the store killed", 0.10,
         0.05, 0.05, disk_fails, false, false, seconds(60), seconds(120), true, true},
        {.name = "turns",
         .what = "chats of three turns over three stores that come and go, 2 % of bulk corrupt",
         .loss = 0.05,
         .duplicate = 0.05,
         .reorder = 0.05,
         .faults = stores_come_and_go,
         .patience = seconds(200),
         .limit = seconds(300),
         .stores = 3,
         .corrupt = 0.02,
         .turns = 3},
        {.name = "apart",
         .what = "a prefill stage and a decode rank do not reach each other",
         .loss = 0.02,
         .duplicate = 0.02,
         .reorder = 0.02,
         .faults = stage_and_rank_apart,
         .patience = seconds(15),
         .limit = seconds(300),
         .stores = 2},
        {"cancels", "lossy, and half of the clients leave", 0.10, 0.05, 0.05, no_faults, false,
         true, seconds(60), seconds(120), false},
    };
    std::ranges::move(group_scripts(), std::back_inserter(made));
    return made;
  }();
  return all;
}

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
      if (script.constrained && i % 3 > 0) made.sampling.grammar = some_grammar(rng);
      if (script.rebalance) made.sampling.max_tokens *= 4;  // time for experts to move
      const milliseconds at = between(rng, 0, 4000);
      const bool leaves = script.cancels && rng.chance(0.5);
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
    result.plans = static_cast<uint32_t>(cluster.balance().counters().plans);
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
  cluster_options.mtp_steps = script->mtp_steps;
  cluster_options.share_experts = options.seed % 3 != 0;
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
