// KV for few of the answers: sequences give way and go on later, by one step or eight at a time,
// with drafts and without, under grammars and without, and the real engine gives the tokens of the
// reference alone. Nobody waits for ever.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <tuple>

#include "model/checkpoint.h"
#include "model/forward.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using base::GrammarKind;

std::string folder() { return std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny"; }

const base::GrammarText kGrammars[] = {
    {GrammarKind::kJsonSchema,
     R"({"type":"array","items":{"type":"string","maxLength":30},"minItems":40})"},
    {GrammarKind::kRegex, "([a-z]{3,9} = [0-9]{1,4}\\n){30,}"},
};

struct World {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Engine> local, drafting;
  std::unique_ptr<grammar::Vocabulary> vocabulary;
  std::vector<coordinator::Submission> asked[2];  // without and with grammars
  std::vector<model::Generated> want[2];

  World() {
    checkpoint = std::make_unique<model::Checkpoint>(*model::Checkpoint::open(folder()));
    local = *model::make_local_engine(*checkpoint, {});
    model::EngineOptions with_drafts;
    with_drafts.mtp = true;
    drafting = *model::make_local_engine(*checkpoint, with_drafts);
    const auto reference = *model::make_reference_engine(*checkpoint, {});
    vocabulary = std::make_unique<grammar::Vocabulary>(load());
    for (uint32_t i = 0; i < 8; ++i) {
      coordinator::Submission submission;
      base::Rng rng(i);
      for (uint64_t n = 20 + rng.below(60); n > 0; --n)
        submission.prompt.push_back(static_cast<base::TokenId>(rng.below(local->shape().vocab)));
      submission.priority = static_cast<int32_t>(i % 3);
      submission.tenant = i % 2 == 0 ? "one" : "another";
      submission.has_seed = true;
      base::Sampling& sampling = submission.sampling;
      sampling.max_tokens = 150;
      sampling.ignore_eos = true;
      sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
      sampling.seed = 1000 + i;
      for (const bool constrained : {false, true}) {
        if (constrained) sampling.grammar = kGrammars[i % std::size(kGrammars)];
        want[constrained].push_back(alone(*reference, submission));
        asked[constrained].push_back(submission);
      }
    }
  }

  grammar::Vocabulary load() const {
    return *grammar::Vocabulary::load(folder(), local->shape().vocab, local->shape().eos);
  }

  model::Generated alone(model::Engine& engine, const coordinator::Submission& submission) const {
    model::GenerateOptions options;
    const base::GrammarText& text = submission.sampling.grammar;
    if (text.kind == GrammarKind::kNone)
      return model::generate(engine, submission.prompt, submission.sampling, options);
    const auto grammar = *grammar::Grammar::compile(text, *vocabulary);
    grammar::Matcher matcher(*grammar, submission.sampling.stop_tokens);
    options.constraint = &matcher;
    return model::generate(engine, submission.prompt, submission.sampling, options);
  }
};

World& world() {
  static World made;
  return made;
}

// Blocks of 64 tokens.
uint64_t kv_of(uint64_t blocks, const model::Shape& shape) {
  return blocks * shape.kv_layers() * shape.kv_row_bytes * model::kBlockTokens;
}

// steps at once, drafts, constrained, decode ranks
class PreemptTest
    : public ::testing::TestWithParam<std::tuple<uint32_t, uint32_t, bool, uint32_t>> {};

TEST_P(PreemptTest, GivesTheTokensOfTheReferenceThoughKvIsShort) {
  World& w = world();
  const auto& [steps, drafts, constrained, ranks] = GetParam();
  model::Engine& engine = drafts > 0 ? *w.drafting : *w.local;
  ClusterOptions options;
  options.ranks = ranks;
  options.chunk_tokens = 64;
  options.steps_per_schedule = steps;
  options.mtp_steps = drafts;
  options.max_rows = 9;
  options.decode_kv_bytes = kv_of(8, engine.shape());  // an answer comes to three or four
  options.make_vocabulary = [&w]() -> base::Result<grammar::Vocabulary> { return w.load(); };
  SimCluster cluster(options, engine);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
  for (const coordinator::Submission& submission : w.asked[constrained]) cluster.submit(submission);
  ASSERT_TRUE(
      cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(10)));
  for (size_t i = 0; i < cluster.outcomes().size(); ++i) {
    const Outcome& got = *cluster.outcomes()[i];
    ASSERT_FALSE(got.error.has_value()) << got.error->what;
    EXPECT_EQ(got.tokens, w.want[constrained][i].tokens) << "request " << i;
    EXPECT_EQ(got.finish, w.want[constrained][i].finish);
  }
  EXPECT_GT(cluster.preemptions(), 0u) << "nobody had to give way";
  EXPECT_TRUE(
      cluster.host().run_until([&] { return cluster.held().empty(); }, std::chrono::minutes(11)))
      << cluster.held();
}

std::string name_of(const ::testing::TestParamInfo<PreemptTest::ParamType>& info) {
  const auto& [steps, drafts, constrained, ranks] = info.param;
  return fmt::format("steps{}_drafts{}_{}_ranks{}", steps, drafts, constrained ? "grammar" : "free",
                     ranks);
}

INSTANTIATE_TEST_SUITE_P(Clusters, PreemptTest,
                         ::testing::Combine(::testing::Values(1u, 8u), ::testing::Values(0u, 3u),
                                            ::testing::Bool(), ::testing::Values(1u, 2u)),
                         name_of);

// R43: eight answers of which two fit at once, on the oracle, beside the time of one alone.
TEST(Preempt, EveryRequestFinishesWithinTenTimesItsTimeAlone) {
  const std::unique_ptr<model::Engine> engine = model::make_oracle_engine({});
  const auto slowest = [&engine](size_t requests, uint64_t* preemptions) {
    ClusterOptions options;
    options.ranks = 1;
    options.decode_kv_bytes = kv_of(12, engine->shape());
    SimCluster cluster(options, *engine);
    EXPECT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(9)));
    for (size_t i = 0; i < requests; ++i) {
      coordinator::Submission submission;
      submission.prompt.assign(40 + i, static_cast<base::TokenId>(5 + i));
      submission.sampling.max_tokens = 300;
      submission.sampling.temperature = 0;
      submission.sampling.ignore_eos = true;
      cluster.submit(submission);
    }
    EXPECT_TRUE(
        cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(2)));
    double most = 0;
    for (const auto& outcome : cluster.outcomes()) {
      EXPECT_FALSE(outcome->error.has_value());
      most = std::max(most, base::seconds(outcome->ended - outcome->submitted));
    }
    *preemptions = cluster.preemptions();
    cluster.host().run_for(std::chrono::seconds(1));
    // No two prompts begin alike: what the stages loaded is what who gave way had left behind.
    EXPECT_EQ(cluster.told("prefill_cached_tokens_total") > 0, *preemptions > 0);
    EXPECT_EQ(cluster.held(), "");
    return most;
  };
  uint64_t alone_gave_way = 0, gave_way = 0;
  const double alone = slowest(1, &alone_gave_way);
  const double together = slowest(8, &gave_way);
  EXPECT_EQ(alone_gave_way, 0u);
  EXPECT_GT(gave_way, 0u);
  EXPECT_LE(together, 10 * alone);
}

TEST(Preempt, WhereTheLongestAnswerIsReservedNobodyGivesWay) {
  const std::unique_ptr<model::Engine> engine = model::make_oracle_engine({});
  ClusterOptions options;
  options.decode_kv_bytes = kv_of(12, engine->shape());
  options.reserve = "full";
  SimCluster cluster(options, *engine);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(9)));
  for (base::TokenId i = 0; i < 8; ++i) {
    coordinator::Submission submission;
    submission.prompt.assign(40, 5 + i);
    submission.sampling.max_tokens = 300;
    submission.sampling.ignore_eos = true;
    cluster.submit(submission);
  }
  ASSERT_TRUE(
      cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(2)));
  for (const auto& outcome : cluster.outcomes()) EXPECT_EQ(outcome->usage.attempts, 1u);
  EXPECT_EQ(cluster.preemptions(), 0u);
}

// A stream of urgent requests keeps the rank full; the one that can wait is served all the same.
TEST(Preempt, AStreamOfEarlierPrioritiesDoesNotStarveALaterOne) {
  const std::unique_ptr<model::Engine> engine = model::make_oracle_engine({});
  ClusterOptions options;
  options.ranks = 1;
  options.decode_kv_bytes = kv_of(12, engine->shape());
  SimCluster cluster(options, *engine);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(9)));
  const auto submit = [&cluster](int32_t priority) {
    coordinator::Submission submission;
    submission.prompt.assign(50, 9);
    submission.sampling.max_tokens = 300;
    submission.sampling.ignore_eos = true;
    submission.priority = priority;
    cluster.submit(submission);
  };
  for (int i = 0; i < 4; ++i) submit(0);
  submit(1000);
  const Outcome& patient = *cluster.outcomes().back();
  for (int i = 0; i < 400 && patient.ends == 0; ++i) {
    size_t open = 0;
    for (const auto& outcome : cluster.outcomes()) open += outcome->ends == 0;
    for (; open < 6; ++open) submit(0);
    cluster.host().run_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(patient.ends, 1u);
  EXPECT_FALSE(patient.error.has_value());
  EXPECT_GT(cluster.outcomes().size(), 12u) << "others were always waiting";
}

}  // namespace
}  // namespace simulation
