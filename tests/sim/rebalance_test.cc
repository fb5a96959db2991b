// Skewed routing on the simulated host: experts move to where the load asks for them, the balance
// recovers, and no pass ever waits for an expert's weights.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "model/forward.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t kRanks = 3;

class RebalanceTest : public ::testing::Test {
 protected:
  void build(uint32_t redundant, bool eplb, uint64_t seed = 1) {
    model::OracleOptions oracle;
    oracle.experts = 16;
    oracle.skew_percent = 60;
    engine_ = model::make_oracle_engine(oracle);
    ClusterOptions options;
    options.seed = seed;
    options.stages = 1;
    options.ranks = kRanks;
    options.stores = 0;
    options.redundant_experts = redundant;
    options.eplb = eplb;
    cluster_ = std::make_unique<SimCluster>(options, *engine_);
    ASSERT_TRUE(
        cluster_->host().run_until([this] { return cluster_->ready(); }, std::chrono::seconds(5)));
  }

  // Keeps so many requests running for so long.
  void load_for(milliseconds span, uint32_t together = 24) {
    const base::Duration end = cluster_->host().now().time_since_epoch() + span;
    while (cluster_->host().now().time_since_epoch() < end) {
      uint32_t open = 0;
      for (const auto& outcome : cluster_->outcomes()) open += outcome->ends == 0;
      for (; open < together; ++open) submit();
      cluster_->host().run_for(milliseconds(20));
    }
  }
  void submit() {
    coordinator::Submission made;
    const auto number = static_cast<uint32_t>(cluster_->outcomes().size());
    for (uint32_t i = 0; i < 5; ++i) made.prompt.push_back(3 + (number * 31 + i * 7) % 500);
    made.sampling.max_tokens = 60 + number % 50;
    made.sampling.temperature = number % 2 == 0 ? 0.0f : 0.8f;
    made.sampling.seed = number + 1;
    made.has_seed = true;
    cluster_->submit(std::move(made));
  }
  void expect_the_tokens_of_one_process() {
    ASSERT_TRUE(cluster_->host().run_until([this] { return cluster_->all_over(); },
                                           std::chrono::minutes(5)));
    for (const auto& outcome : cluster_->outcomes()) {
      ASSERT_FALSE(outcome->error.has_value()) << outcome->error->what;
      const auto want =
          model::generate(*engine_, outcome->asked.prompt, outcome->asked.sampling).tokens;
      ASSERT_EQ(outcome->tokens, want);
    }
  }
  void expect_settled() {
    const auto idle = [this] { return cluster_->ready() && cluster_->held().empty(); };
    const base::Duration soon =
        cluster_->host().now().time_since_epoch() + std::chrono::seconds(10);
    EXPECT_TRUE(cluster_->host().run_until(idle, soon)) << cluster_->held();
  }
  const coordinator::ExpertBalance& balance() { return cluster_->balance(); }
  static std::string rank(uint32_t i) { return fmt::format("decode-{}", i); }

  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<SimCluster> cluster_;
};

TEST_F(RebalanceTest, SkewedRoutingRecoversItsBalanceAndNoPassWaitsForWeights) {
  build(/*redundant=*/4, /*eplb=*/true);
  load_for(milliseconds(350));
  const double before = balance().measured();
  load_for(milliseconds(4500));
  const double after = balance().measured();
  fmt::print("balancedness {:.3f} before, {:.3f} after {} plans, {} skipped\n", before, after,
             balance().counters().plans, balance().counters().skipped);
  EXPECT_LT(before, 0.8);
  EXPECT_GE(after, 0.9);
  EXPECT_GE(balance().counters().plans, 1u);
  expect_the_tokens_of_one_process();
  expect_settled();
  for (uint32_t i = 0; i < kRanks; ++i) EXPECT_EQ(cluster_->late_experts(rank(i)), 0u);
}

// Two busy experts on three ranks: without copies one rank must stay behind.
TEST_F(RebalanceTest, MovingAloneDoesWhatItCan) {
  build(/*redundant=*/0, /*eplb=*/true);
  load_for(milliseconds(350));
  const double before = balance().measured();
  load_for(milliseconds(4500));
  const double after = balance().measured();
  fmt::print("without copies {:.3f} before, {:.3f} after {} plans\n", before, after,
             balance().counters().plans);
  EXPECT_GT(after, before + 0.1);
  EXPECT_NEAR(after, balance().predicted(), 0.05);
  expect_the_tokens_of_one_process();
  expect_settled();
  for (uint32_t i = 0; i < kRanks; ++i) EXPECT_EQ(cluster_->late_experts(rank(i)), 0u);
}

TEST_F(RebalanceTest, AfterAPlanARankHoldsItsShareAndNothingElse) {
  build(/*redundant=*/4, /*eplb=*/true);
  load_for(milliseconds(3000));
  expect_the_tokens_of_one_process();
  expect_settled();
  uint64_t held = 0;
  for (uint32_t i = 0; i < kRanks; ++i) held += cluster_->resident_experts(rank(i));
  EXPECT_EQ(held, engine_->shape().layers * (engine_->shape().experts + 4));
}

TEST_F(RebalanceTest, CopiesWithoutRebalancingAreMadeOnce) {
  build(/*redundant=*/4, /*eplb=*/false);
  load_for(milliseconds(3000));
  EXPECT_EQ(balance().counters().plans, 1u);
  expect_the_tokens_of_one_process();
  for (uint32_t i = 0; i < kRanks; ++i) EXPECT_EQ(cluster_->late_experts(rank(i)), 0u);
}

// With every expert on two ranks a dead one's experts are at hand: nothing is loaded in a pass.
TEST_F(RebalanceTest, TheCopiesOfADeadRanksExpertsTakeOver) {
  build(/*redundant=*/32, /*eplb=*/false);
  load_for(milliseconds(1500));
  EXPECT_EQ(balance().epoch(), 1u);
  cluster_->host().kill(rank(1));
  load_for(milliseconds(2500));
  EXPECT_EQ(cluster_->late_experts(rank(0)) + cluster_->late_experts(rank(2)), 0u);
  cluster_->host().restart(rank(1));
  load_for(milliseconds(2500));
  EXPECT_EQ(balance().epoch(), 2u) << "a plan with the new life";
  expect_the_tokens_of_one_process();
  expect_settled();
}

TEST_F(RebalanceTest, ADeathInAPlanAbortsItAndTheClusterConverges) {
  build(/*redundant=*/2, /*eplb=*/true);
  cluster_->host().cut("coordinator", rank(1), milliseconds(900));  // it does not hear of the plan
  load_for(milliseconds(700));
  EXPECT_LT(balance().progress(), 1);
  EXPECT_EQ(balance().epoch(), 0u);
  cluster_->host().kill(rank(2));
  cluster_->host().cut("coordinator", rank(1), milliseconds(1400));
  load_for(milliseconds(1600));
  EXPECT_EQ(balance().counters().aborted, 1u);
  EXPECT_EQ(balance().epoch(), 0u) << "what was before goes on";
  cluster_->host().restart(rank(2));
  load_for(milliseconds(2500));
  EXPECT_GE(balance().epoch(), 2u);
  expect_the_tokens_of_one_process();
  expect_settled();
}

}  // namespace
}  // namespace simulation
