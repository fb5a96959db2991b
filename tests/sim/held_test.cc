// Requests that begin alike, one after another while the first still runs: KV that their decode
// rank has is not shipped again, and no token shows it.
#include <gtest/gtest.h>

#include "model/draft_slots.h"
#include "model/forward.h"
#include "tests/sim/scenario.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::seconds;

class HeldTest : public ::testing::TestWithParam<uint32_t> {
 protected:
  HeldTest() {
    model::OracleOptions oracle;
    oracle.mtp_steps = GetParam();
    engine_ = model::make_oracle_engine(oracle);
    ClusterOptions options;
    options.ranks = 1;
    options.mtp_steps = GetParam();
    cluster_ = std::make_unique<SimCluster>(options, *engine_);
    EXPECT_TRUE(cluster_->host().run_until([this] { return cluster_->ready(); }, seconds(10)));
  }

  coordinator::Submission submission(uint32_t seed, uint32_t common, uint32_t own) const {
    coordinator::Submission made;
    base::Rng prefix(1), rest(seed, 2);
    const uint32_t vocab = engine_->shape().vocab;
    for (uint32_t i = 0; i < common; ++i)
      made.prompt.push_back(static_cast<base::TokenId>(prefix.below(vocab)));
    for (uint32_t i = 0; i < own; ++i)
      made.prompt.push_back(static_cast<base::TokenId>(rest.below(vocab)));
    made.sampling.max_tokens = 300;
    made.sampling.ignore_eos = true;
    made.sampling.seed = seed;
    made.has_seed = true;
    made.salt = "one";
    return made;
  }
  // Asks, and waits until it has a token.
  size_t run_to_first_token(const coordinator::Submission& submission) {
    const size_t index = cluster_->submit(submission);
    EXPECT_TRUE(run([&] { return !cluster_->outcomes()[index]->tokens.empty(); }));
    return index;
  }
  bool run(const std::function<bool()>& done) {
    return cluster_->host().run_until(done,
                                      cluster_->host().now().time_since_epoch() + seconds(60));
  }
  uint64_t rows(uint32_t tokens) const { return uint64_t{tokens} * engine_->shape().kv_layers(); }

  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<SimCluster> cluster_;
};

TEST_P(HeldTest, WhatTheRankHasOfAPromptIsNotShipped) {
  const bool drafts = GetParam() > 0;
  run_to_first_token(submission(1, 200, 10));
  EXPECT_EQ(cluster_->steps().rows_held, 0u);
  EXPECT_EQ(cluster_->steps().rows_received, rows(210));
  run_to_first_token(submission(2, 200, 50));
  EXPECT_EQ(cluster_->steps().rows_held, rows(192));
  // In the drafting block's layer the held blocks have a token's row more (draft_slots.h).
  EXPECT_EQ(cluster_->steps().rows_received, rows(210 + 58) - (drafts ? 1 : 0));
  run_to_first_token(submission(3, 130, 1));
  EXPECT_EQ(cluster_->steps().rows_held, rows(192 + 128));
  coordinator::Submission other = submission(2, 200, 50);
  other.salt = "another";
  const uint64_t before = cluster_->steps().rows_received;
  run_to_first_token(other);
  EXPECT_EQ(cluster_->steps().rows_held, rows(192 + 128)) << "a tenant has what is another's";
  EXPECT_EQ(cluster_->steps().rows_received - before, rows(250));
  EXPECT_EQ(cluster_->outcomes()[0]->ends, 0u) << "the first is over too early for the test";

  EXPECT_TRUE(run([&] { return cluster_->all_over() && cluster_->held().empty(); }))
      << cluster_->held();
  for (const auto& outcome : cluster_->outcomes()) {
    const model::Generated want =
        model::generate(*engine_, outcome->asked.prompt, outcome->asked.sampling);
    EXPECT_EQ(outcome->tokens, want.tokens);
    EXPECT_EQ(outcome->usage.attempts, 1u);
  }
  run_to_first_token(submission(9, 200, 10));  // nobody has them any more
  EXPECT_EQ(cluster_->steps().rows_held, rows(192 + 128));
}

INSTANTIATE_TEST_SUITE_P(WithoutAndWithDrafts, HeldTest, ::testing::Values(0u, 3u));

TEST(HeldScenario, SharesRowsWhileNodesDieAndClientsLeave) {
  for (const char* scenario : {"held", "drafts_held"}) {
    uint64_t held = 0;
    for (uint64_t seed = 4; seed <= 6; ++seed) {
      RunOptions options;
      options.scenario = scenario;
      options.seed = seed;
      const RunResult result = simulation::run(options);
      EXPECT_EQ(result.verdict, Verdict::kOk) << scenario << " " << seed << ": " << result.why;
      held += result.held;
    }
    EXPECT_GT(held, 0u) << scenario;
  }
}

}  // namespace
}  // namespace simulation
