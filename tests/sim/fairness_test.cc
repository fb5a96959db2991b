// Interleaving, measured in virtual time: a short prompt that comes while a very long one is under
// way gets its first token about as soon as alone.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

constexpr uint32_t kLong = 100'000, kShort = 200;

coordinator::Submission submission(uint64_t seed, uint32_t tokens) {
  base::Rng rng(seed);
  coordinator::Submission made;
  for (uint32_t i = 0; i < tokens; ++i)
    made.prompt.push_back(static_cast<base::TokenId>(rng.below(512)));
  made.sampling.max_tokens = 1;
  made.sampling.seed = seed;
  made.has_seed = true;
  return made;
}

class FairnessTest : public ::testing::TestWithParam<bool> {
 protected:
  FairnessTest() {
    model::OracleOptions oracle;
    oracle.max_context = 1u << 17;
    engine_ = model::make_oracle_engine(oracle);
    ClusterOptions options;
    options.stores = 0;
    options.chunk_tokens = 256;
    options.dynamic_chunks = GetParam();
    cluster_ = std::make_unique<SimCluster>(options, *engine_);
    EXPECT_TRUE(
        cluster_->host().run_until([this] { return cluster_->ready(); }, std::chrono::seconds(10)));
  }
  // Virtual seconds from asking until every token is there.
  double seconds_of(size_t index) {
    const Outcome& outcome = *cluster_->outcomes()[index];
    EXPECT_EQ(outcome.ends, 1u);
    EXPECT_FALSE(outcome.error.has_value());
    return base::seconds(outcome.ended - outcome.submitted);
  }
  void run_until_ended(size_t index) {
    ASSERT_TRUE(cluster_->host().run_until([&] { return cluster_->outcomes()[index]->ends > 0; },
                                           std::chrono::minutes(10)));
  }

  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<SimCluster> cluster_;
};

TEST_P(FairnessTest, AShortPromptIsNotStuckBehindAnEndlessOne) {
  const size_t alone = cluster_->submit(submission(1, kShort));
  run_until_ended(alone);
  const size_t endless = cluster_->submit(submission(2, kLong));
  cluster_->host().run_for(std::chrono::milliseconds(100));  // well under way
  const size_t between = cluster_->submit(submission(3, kShort));
  run_until_ended(between);
  EXPECT_EQ(cluster_->outcomes()[endless]->ends, 0u);
  run_until_ended(endless);
  const double chunk = seconds_of(endless) / (kLong / 256.0);
  fmt::print("alone {:.2f} ms, in between {:.2f} ms, the long one {:.0f} ms, a chunk {:.2f} ms\n",
             1e3 * seconds_of(alone), 1e3 * seconds_of(between), 1e3 * seconds_of(endless),
             1e3 * chunk);
  // On each of two stages it waits for the chunk that runs, and perhaps for one that was due.
  EXPECT_LT(seconds_of(between), seconds_of(alone) + 4 * chunk);
  EXPECT_LT(seconds_of(between), seconds_of(endless) / 20);
}

INSTANTIATE_TEST_SUITE_P(Chunks, FairnessTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "dynamic" : "fixed"; });

}  // namespace
}  // namespace simulation
