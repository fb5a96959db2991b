// Decode ranks join and leave a running cluster (R20), and most of them die at once (R02): nobody's
// request fails, new ranks take their part of the work.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "model/forward.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ElasticTest : public ::testing::Test {
 protected:
  void build(uint32_t ranks, base::Duration job_cost = {}) {
    ClusterOptions options;
    options.ranks = ranks;
    if (job_cost.count() > 0) options.job_cost = [job_cost] { return job_cost; };
    options.chunk_tokens = 64;
    cluster_ = std::make_unique<SimCluster>(options, *engine_);
    ASSERT_TRUE(until([this] { return cluster_->ready(); }, seconds(10)));
  }
  bool until(const std::function<bool()>& done, base::Duration most) {
    return cluster_->host().run_until(done, cluster_->host().now().time_since_epoch() + most);
  }
  void run_for(base::Duration time) { cluster_->host().run_for(time); }

  // Clients that ask again as soon as they are answered, until loading_ ends.
  void load(uint32_t clients) {
    loading_ = true;
    for (uint32_t i = 0; i < clients; ++i) next(i);
  }
  void next(uint32_t client) {
    if (!loading_) return;
    coordinator::Submission made;
    base::Rng rng(client, asked_++);
    for (uint64_t left = 5 + rng.below(60); left > 0; --left)
      made.prompt.push_back(static_cast<base::TokenId>(rng.below(engine_->shape().vocab)));
    made.sampling.max_tokens = 60;
    made.sampling.ignore_eos = true;
    made.sampling.temperature = client % 2 == 0 ? 0.0f : 0.8f;
    made.sampling.seed = rng.next();
    made.has_seed = true;
    wait(client, cluster_->submit(std::move(made)));
  }
  void wait(uint32_t client, size_t index) {
    const base::Duration soon = cluster_->host().now().time_since_epoch() + milliseconds(5);
    cluster_->host().at(soon, [this, client, index] {
      if (cluster_->outcomes()[index]->ends == 0) return wait(client, index);
      next(client);
    });
  }
  // Every request ended with the tokens of one process.
  void end_load() {
    loading_ = false;
    ASSERT_TRUE(until([this] { return cluster_->all_over(); }, seconds(60)));
    for (size_t i = 0; i < cluster_->outcomes().size(); ++i) {
      const Outcome& got = *cluster_->outcomes()[i];
      ASSERT_FALSE(got.error.has_value()) << "request " << i << ": " << got.error->what;
      const auto want = model::generate(*engine_, got.asked.prompt, got.asked.sampling);
      ASSERT_EQ(got.tokens, want.tokens) << "request " << i;
    }
    EXPECT_TRUE(until([this] { return cluster_->held().empty(); }, seconds(8))) << cluster_->held();
  }
  uint32_t most_attempts() const {
    uint32_t most = 0;
    for (const auto& outcome : cluster_->outcomes())
      if (outcome->ends > 0) most = std::max(most, outcome->usage.attempts);
    return most;
  }

  const std::unique_ptr<model::Engine> engine_ = model::make_oracle_engine({});
  std::unique_ptr<SimCluster> cluster_;
  bool loading_ = false;
  uint64_t asked_ = 0;
};

TEST_F(ElasticTest, RanksThatJoinTakeTheirPartAndRanksThatLeaveFailNobody) {
  build(2);
  load(24);
  run_for(seconds(2));
  cluster_->join(2);
  cluster_->join(3);
  ASSERT_TRUE(until([this] { return cluster_->ready(); }, seconds(10)));
  const auto work = [this] { return cluster_->tokens_of(2) > 0 && cluster_->tokens_of(3) > 0; };
  EXPECT_TRUE(until(work, seconds(3))) << "a new rank has no work after 3 s";
  run_for(seconds(2));
  std::array<uint64_t, 4> tokens{};
  for (uint32_t i = 0; i < 4; ++i) tokens[i] = cluster_->tokens_of(i);
  run_for(seconds(5));
  for (uint32_t i = 0; i < 4; ++i) tokens[i] = cluster_->tokens_of(i) - tokens[i];
  const auto [least, most] = std::ranges::minmax(tokens);
  EXPECT_LE(static_cast<double>(most), 1.2 * static_cast<double>(least)) << "of 4 ranks";

  cluster_->leave(1);
  EXPECT_TRUE(until([this] { return !cluster_->has_rank(1); }, seconds(30)));
  EXPECT_EQ(most_attempts(), 1u) << "what runs on a rank that leaves ends there";
  run_for(seconds(1));
  EXPECT_EQ(most_attempts(), 1u) << "nobody waits for one that has left";
  cluster_->lose(2);
  run_for(seconds(3));
  EXPECT_GT(cluster_->tokens_of(0), 0u);
  cluster_->join(4);
  ASSERT_TRUE(until([this] { return cluster_->tokens_of(4) > 0; }, seconds(10)));
  end_load();
}

TEST_F(ElasticTest, ALongAnswerMovesWhenItsRankLeavesForGood) {
  build(2, milliseconds(2));
  coordinator::Submission made;
  made.prompt = {1, 2, 3};
  made.sampling.max_tokens = 3000;
  made.sampling.ignore_eos = true;
  made.sampling.temperature = 0;
  cluster_->submit(made);
  run_for(seconds(1));
  const uint32_t rank = cluster_->tokens_of(0) > 0 ? 0 : 1;
  const base::Time begun = cluster_->host().now();
  cluster_->leave(rank);
  EXPECT_TRUE(until([&] { return !cluster_->has_rank(rank); }, seconds(40)));
  EXPECT_GE(cluster_->host().now() - begun, seconds(30)) << "it had time to end here";
  EXPECT_LE(cluster_->host().now() - begun, seconds(33));
  ASSERT_TRUE(until([this] { return cluster_->all_over(); }, seconds(300)));
  EXPECT_EQ(cluster_->outcomes()[0]->usage.attempts, 2u);
  end_load();
}

TEST_F(ElasticTest, TwoOfThreeRanksThatDieAtOnceFailNobody) {
  for (uint32_t lives = 0; lives < 3; ++lives) {
    SCOPED_TRACE(lives);
    build(3);
    load(16);
    run_for(seconds(1) + milliseconds(37 * lives));
    std::vector<uint64_t> open;
    for (const auto& outcome : cluster_->outcomes()) open.push_back(outcome->tokens.size());
    const base::Time died = cluster_->host().now();
    for (uint32_t rank = 0; rank < 3; ++rank)
      if (rank != lives) cluster_->lose(rank);
    // The slowest of the streams that were open has its next token within 4 s.
    const auto all_move = [&] {
      for (size_t i = 0; i < open.size(); ++i) {
        const Outcome& outcome = *cluster_->outcomes()[i];
        if (outcome.ends == 0 && outcome.tokens.size() <= open[i]) return false;
      }
      return true;
    };
    EXPECT_TRUE(until(all_move, seconds(20)));
    EXPECT_LE(cluster_->host().now() - died, seconds(4));
    run_for(seconds(1));
    end_load();
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace simulation
