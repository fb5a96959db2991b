// Everything together: expert and KV-cache parallelism, redundant experts, drafts, multi-step
// scheduling, micro-batches, grammars and preemption on every shape of the prefill pipeline, as a
// table in which every two settings meet, and as settings drawn anew in each run. The reference
// engine alone is the judge.
//
// A run that fails prints its seed; to draw the same again:
//   build/bin/test_pairwise --gtest_shuffle --gtest_random_seed=SEED
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <array>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "tests/sim/pairwise_table.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using base::GrammarKind;

enum : size_t {
  kRanks,
  kShards,
  kRedundant,
  kDrafts,
  kSteps,
  kGrammar,
  kPreempted,
  kStages,
  kSequence,
  kChunk,
  kMicro,
  kFactors
};
struct Factor {
  const char* name;
  std::vector<uint32_t> values;
};
const std::array<Factor, kFactors>& factors() {
  static const std::array<Factor, kFactors> all = {{{"ep", {1, 2, 3, 5}},
                                                    {"kvp", {1, 2, 4}},
                                                    {"redundant", {0, 2}},
                                                    {"mtp", {0, 3}},
                                                    {"steps", {1, 8}},
                                                    {"grammar", {0, 1}},
                                                    {"preempted", {0, 1}},
                                                    {"stages", {1, 2, 3}},
                                                    {"sp", {1, 2}},
                                                    {"chunk", {64, 0}},
                                                    {"micro", {1, 2}}}};
  return all;
}

std::vector<uint32_t> level_counts() {
  std::vector<uint32_t> counts;
  for (const Factor& factor : factors())
    counts.push_back(static_cast<uint32_t>(factor.values.size()));
  return counts;
}

uint32_t value(const Levels& levels, size_t factor) {
  return factors()[factor].values[levels[factor]];
}

std::string to_string(const Levels& levels) {
  std::string out;
  for (size_t i = 0; i < kFactors; ++i)
    out += fmt::format("{}{}{}", i == 0 ? "" : "_", factors()[i].name, value(levels, i));
  return out;
}

constexpr uint32_t kSpan = 64;         // so that prompts of some hundred tokens can be shared out
constexpr uint32_t kBlocksOfMost = 8;  // what the longest sequence here fills
const base::GrammarText kSchema = {
    GrammarKind::kJsonSchema,
    R"({"type":"array","items":{"type":"object","properties":{"name":{"type":"string"},"kind":)"
    R"({"enum":["file","folder"]}},"required":["name","kind"]},"minItems":30})"};

struct World {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Engine> plain, drafting;
  std::unique_ptr<grammar::Vocabulary> vocabulary;
  std::vector<coordinator::Submission> asked[2];  // without and with grammars
  std::vector<model::Generated> want[2];

  World() {
    checkpoint = std::make_unique<model::Checkpoint>(*model::Checkpoint::open(folder()));
    model::EngineOptions options;
    options.span = kSpan;
    plain = *model::make_local_engine(*checkpoint, options);
    const auto reference = *model::make_reference_engine(*checkpoint, options);
    options.mtp = true;
    drafting = *model::make_local_engine(*checkpoint, options);
    vocabulary = std::make_unique<grammar::Vocabulary>(load());
    // Below and above the LSA budget of 128 positions, whole spans and parts of one.
    for (const uint32_t length : {5u, 64u, 90u, 192u, 260u, 330u}) {
      coordinator::Submission submission;
      base::Rng rng(length);
      for (uint32_t i = 0; i < length; ++i)
        submission.prompt.push_back(static_cast<base::TokenId>(rng.below(plain->shape().vocab)));
      submission.has_seed = true;
      base::Sampling& sampling = submission.sampling;
      sampling.max_tokens = 130;  // over the ends of blocks and of what is reserved ahead
      sampling.ignore_eos = true;
      sampling.temperature = length % 4 == 0 ? 0.0f : 0.8f;
      sampling.seed = length;
      for (const bool constrained : {false, true}) {
        if (constrained) sampling.grammar = kSchema;
        want[constrained].push_back(alone(*reference, submission));
        asked[constrained].push_back(submission);
      }
    }
  }

  static std::string folder() { return std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny"; }
  grammar::Vocabulary load() const {
    return *grammar::Vocabulary::load(folder(), plain->shape().vocab, plain->shape().eos);
  }
  model::Generated alone(model::Engine& engine, const coordinator::Submission& submission) const {
    model::GenerateOptions options;
    if (submission.sampling.grammar.kind == GrammarKind::kNone)
      return model::generate(engine, submission.prompt, submission.sampling, options);
    const auto grammar = *grammar::Grammar::compile(submission.sampling.grammar, *vocabulary);
    grammar::Matcher matcher(*grammar);
    options.constraint = &matcher;
    return model::generate(engine, submission.prompt, submission.sampling, options);
  }
};

World& world() {
  static World made;
  return made;
}

ClusterOptions options_of(const Levels& levels, const model::Shape& shape) {
  ClusterOptions options;
  options.ranks = value(levels, kRanks);
  options.kv_parallel = value(levels, kShards);
  options.redundant_experts = value(levels, kRedundant);
  options.eplb = options.redundant_experts > 0;
  options.mtp_steps = value(levels, kDrafts);
  options.steps_per_schedule = value(levels, kSteps);
  options.stages = value(levels, kStages);
  options.sequence_ranks = value(levels, kSequence);
  options.chunk_tokens = std::max(64u, value(levels, kChunk));
  options.dynamic_chunks = value(levels, kChunk) == 0;
  options.micro_batches = value(levels, kMicro);
  if (value(levels, kPreempted) != 0) {
    const uint64_t blocks = kBlocksOfMost + 1;
    options.decode_kv_bytes = blocks * shape.kv_layers() * shape.kv_row_bytes * model::kBlockTokens;
  }
  options.make_vocabulary = []() -> base::Result<grammar::Vocabulary> { return world().load(); };
  return options;
}

// Clusters, and those in which some sequence gave way.
struct Runs {
  uint32_t all = 0, gave_way = 0;
};
Runs short_of_kv, with_kv;

void expect_the_tokens_of_the_reference(const Levels& levels) {
  SCOPED_TRACE(to_string(levels));
  World& w = world();
  model::Engine& engine = value(levels, kDrafts) > 0 ? *w.drafting : *w.plain;
  const bool constrained = value(levels, kGrammar) != 0;
  SimCluster cluster(options_of(levels, engine.shape()), engine);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
  for (const coordinator::Submission& submission : w.asked[constrained]) cluster.submit(submission);
  ASSERT_TRUE(
      cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(10)))
      << cluster.held();
  for (size_t i = 0; i < cluster.outcomes().size(); ++i) {
    const Outcome& got = *cluster.outcomes()[i];
    ASSERT_FALSE(got.error.has_value()) << got.error->what;
    EXPECT_EQ(got.tokens, w.want[constrained][i].tokens) << "request " << i;
    EXPECT_EQ(got.finish, w.want[constrained][i].finish) << "request " << i;
  }
  const SimCluster::Steps steps = cluster.steps();
  if (value(levels, kShards) > 1 && value(levels, kRanks) > 1) {
    EXPECT_GT(steps.shard_answers, 0u) << "no KV was shared out";
  }
  Runs& runs = value(levels, kPreempted) != 0 ? short_of_kv : with_kv;
  ++runs.all;
  runs.gave_way += cluster.preemptions() > 0 ? 1 : 0;
  EXPECT_EQ(steps.drafted > 0, value(levels, kDrafts) > 0);
  if (constrained) {
    EXPECT_GT(steps.forced, 0u) << "the schema left a choice everywhere";
  }
  EXPECT_TRUE(
      cluster.host().run_until([&] { return cluster.held().empty(); }, std::chrono::minutes(11)))
      << cluster.held();
}

const std::vector<Levels>& table() {
  static const std::vector<Levels> made = pairwise_table(level_counts(), 60);
  return made;
}

TEST(PairwiseTable, HasEveryPairOfSettings) {
  EXPECT_EQ(pairs_missing(level_counts(), table()), 0u);
  std::vector<Levels> shorter(table().begin(), table().begin() + 8);
  EXPECT_GT(pairs_missing(level_counts(), shorter), 0u) << "eight rows cannot have them all";
}

class PairwiseTest : public ::testing::TestWithParam<Levels> {
 protected:
  static void SetUpTestSuite() { short_of_kv = with_kv = {}; }
  static void TearDownTestSuite() {
    EXPECT_EQ(with_kv.gave_way, 0u);
    if (short_of_kv.all + with_kv.all < table().size()) return;  // some were left out
    EXPECT_GE(short_of_kv.gave_way, short_of_kv.all / 3) << "of " << short_of_kv.all;
  }
};

TEST_P(PairwiseTest, GivesTheTokensOfTheReference) {
  expect_the_tokens_of_the_reference(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Table, PairwiseTest, ::testing::ValuesIn(table()),
                         [](const auto& info) { return to_string(info.param); });

class DrawnTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(DrawnTest, GivesTheTokensOfTheReference) {
  const auto seed = static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed());
  base::Rng rng(seed * 1000 + GetParam());
  Levels levels;
  for (const Factor& factor : factors())
    levels.push_back(static_cast<uint32_t>(rng.below(factor.values.size())));
  SCOPED_TRACE(fmt::format("seed {}", seed));
  expect_the_tokens_of_the_reference(levels);
}

INSTANTIATE_TEST_SUITE_P(Drawn, DrawnTest, ::testing::Range(0u, 20u));

}  // namespace
}  // namespace simulation
