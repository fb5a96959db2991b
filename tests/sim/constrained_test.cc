// Same tokens on any topology, for requests that must keep to a grammar: what the cluster gives is
// what the reference engine gives alone under the same masks, with any sampling setting beside, and
// the text satisfies the grammar.
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
    {GrammarKind::kNone, ""},
    {GrammarKind::kJsonObject, ""},
    {GrammarKind::kJsonSchema,
     R"({"type":"object","properties":{"name":{"type":"string","maxLength":12},"size":{"type":)"
     R"("integer","minimum":0,"maximum":500},"kind":{"enum":["file","folder"]},"sons":{"type":)"
     R"("array","items":{"$ref":"#"},"maxItems":2}},"required":["name","size","kind"]})"},
    {GrammarKind::kRegex, "(def|class) [a-z_]{1,12}(\\([a-z]*\\))?:"},
    {GrammarKind::kChoice, R"(["import os","import sys","import json, re"])"},
    {GrammarKind::kEbnf, "root ::= term ([+*-] term)*\nterm ::= [0-9]{1,3} | \"(\" root \")\""},
};

struct World {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Engine> local;
  std::unique_ptr<grammar::Vocabulary> vocabulary;
  std::vector<coordinator::Submission> asked;
  std::vector<model::Generated> want;

  World() {
    checkpoint = std::make_unique<model::Checkpoint>(*model::Checkpoint::open(folder()));
    model::EngineOptions options;
    options.mtp = true;
    local = *model::make_local_engine(*checkpoint, options);
    const auto reference = *model::make_reference_engine(*checkpoint, {});
    vocabulary = std::make_unique<grammar::Vocabulary>(load());
    for (uint32_t i = 0; i < 18; ++i) {
      coordinator::Submission submission;
      base::Rng rng(i);
      for (uint64_t n = 5 + rng.below(i % 4 == 0 ? 200 : 40); n > 0; --n)
        submission.prompt.push_back(static_cast<base::TokenId>(rng.below(local->shape().vocab)));
      base::Sampling& sampling = submission.sampling;
      sampling.grammar = kGrammars[i % std::size(kGrammars)];
      sampling.max_tokens = 40;
      sampling.temperature = i % 3 == 0 ? 0.0f : 1.0f;
      sampling.seed = 7;
      sampling.choice = i % 4;
      sampling.frequency_penalty = i % 2 == 0 ? 0.5f : 0.0f;
      sampling.repetition_penalty = i % 5 == 0 ? 1.3f : 1.0f;
      sampling.min_tokens = i % 6 == 4 ? 30 : 0;  // more than the choices have
      sampling.top_logprobs = i % 4 == 0 ? 2 : -1;
      submission.has_seed = true;
      want.push_back(alone(*reference, submission, /*mtp_steps=*/0, /*force=*/false));
      asked.push_back(std::move(submission));
    }
  }

  grammar::Vocabulary load() const {
    return *grammar::Vocabulary::load(folder(), local->shape().vocab, local->shape().eos);
  }

  model::Generated alone(model::Engine& engine, const coordinator::Submission& submission,
                         uint32_t mtp_steps, bool force) const {
    model::GenerateOptions options;
    options.mtp_steps = mtp_steps;
    options.force = force;
    const base::GrammarText& text = submission.sampling.grammar;
    if (text.kind == GrammarKind::kNone)
      return model::generate(engine, submission.prompt, submission.sampling, options);
    const auto grammar = *grammar::Grammar::compile(text, *vocabulary);
    grammar::Matcher matcher(*grammar);
    options.constraint = &matcher;
    return model::generate(engine, submission.prompt, submission.sampling, options);
  }
};

World& world() {
  static World made;
  return made;
}

TEST(Constrained, AnswersKeepToTheirGrammarAndEndWhereItDoes) {
  World& w = world();
  uint32_t ended = 0;
  for (size_t i = 0; i < w.asked.size(); ++i) {
    const base::GrammarText& text = w.asked[i].sampling.grammar;
    if (text.kind == GrammarKind::kNone) continue;
    const auto grammar = *grammar::Grammar::compile(text, *w.vocabulary);
    grammar::Matcher matcher(*grammar);
    EXPECT_TRUE(matcher.keeps(w.want[i].tokens)) << "request " << i;
    const bool stopped = w.want[i].finish == base::FinishReason::kStop;
    if (stopped) {
      EXPECT_TRUE(matcher.may_end(w.want[i].tokens)) << "request " << i;
    }
    ended += stopped ? 1 : 0;
    if (text.kind == GrammarKind::kChoice) {
      EXPECT_TRUE(stopped) << "min_tokens does not stretch a finished answer";
    }
  }
  EXPECT_GE(ended, 6u);
}

TEST(Constrained, DraftsAndForcedTokensChangeNoToken) {
  World& w = world();
  for (const bool force : {false, true}) {
    for (const uint32_t mtp_steps : {0u, 3u}) {
      model::DraftCounters drafts;
      uint32_t forced = 0;
      for (size_t i = 0; i < w.asked.size(); ++i) {
        const model::Generated got = w.alone(*w.local, w.asked[i], mtp_steps, force);
        EXPECT_EQ(got.tokens, w.want[i].tokens) << "request " << i;
        EXPECT_EQ(got.finish, w.want[i].finish) << "request " << i;
        EXPECT_EQ(got.logprobs.size(), w.want[i].logprobs.size()) << "request " << i;
        drafts.add(got.drafts);
        forced += got.forced;
      }
      EXPECT_EQ(drafts.drafted > drafts.accepted, mtp_steps > 0) << "some were rejected";
      EXPECT_EQ(forced > 0, force);
    }
  }
}

// stages, ranks a stage, decode ranks, chunk, batch
class ConstrainedTopologyTest : public ::testing::TestWithParam<
                                    std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>> {
};

TEST_P(ConstrainedTopologyTest, GivesTheTokensOfTheReference) {
  World& w = world();
  ClusterOptions options;
  std::tie(options.stages, options.sequence_ranks, options.ranks, options.chunk_tokens,
           options.max_batch) = GetParam();
  options.mtp_steps = options.ranks == 2 ? 3 : 0;
  options.make_vocabulary = [&w]() -> base::Result<grammar::Vocabulary> { return w.load(); };
  SimCluster cluster(options, *w.local);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
  for (const coordinator::Submission& submission : w.asked) cluster.submit(submission);
  ASSERT_TRUE(
      cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(10)));
  for (size_t i = 0; i < w.asked.size(); ++i) {
    const Outcome& got = *cluster.outcomes()[i];
    ASSERT_FALSE(got.error.has_value()) << got.error->what;
    EXPECT_EQ(got.tokens, w.want[i].tokens) << "request " << i;
    EXPECT_EQ(got.finish, w.want[i].finish) << "request " << i;
  }
  EXPECT_GT(cluster.steps().forced, 0u);
}

std::string name_of(const ::testing::TestParamInfo<ConstrainedTopologyTest::ParamType>& info) {
  const auto& [stages, sequence, ranks, chunk, batch] = info.param;
  return fmt::format("stages{}_sp{}_ranks{}_chunk{}_batch{}", stages, sequence, ranks, chunk,
                     batch);
}

INSTANTIATE_TEST_SUITE_P(Clusters, ConstrainedTopologyTest,
                         ::testing::Values(std::tuple{1u, 1u, 1u, 256u, 1u},
                                           std::tuple{2u, 1u, 2u, 16u, 8u},
                                           std::tuple{2u, 2u, 3u, 64u, 3u},
                                           std::tuple{3u, 1u, 2u, 64u, 32u}),
                         name_of);

TEST(Constrained, AnImpossibleGrammarEndsTheRequestAtOnceWithTheReason) {
  World& w = world();
  ClusterOptions options;
  options.make_vocabulary = [&w]() -> base::Result<grammar::Vocabulary> { return w.load(); };
  SimCluster cluster(options, *w.local);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
  coordinator::Submission submission = w.asked[0];
  submission.sampling.grammar = {GrammarKind::kRegex, "(?=a)b"};  // the API would have refused it
  cluster.submit(submission);
  ASSERT_TRUE(
      cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::seconds(15)));
  const Outcome& got = *cluster.outcomes()[0];
  ASSERT_TRUE(got.error.has_value());
  EXPECT_EQ(got.error->code, base::Code::kUnsupported);
  EXPECT_NE(got.error->what.find("look-around"), std::string::npos) << got.error->what;
  EXPECT_TRUE(
      cluster.host().run_until([&] { return cluster.held().empty(); }, std::chrono::seconds(60)))
      << cluster.held();
}

}  // namespace
}  // namespace simulation
