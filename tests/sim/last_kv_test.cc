// A prefill stage that dies when the decode rank has all its KV and has not heard its commit (R06).
#include <gtest/gtest.h>

#include "decode_node/decode_actor.h"
#include "model/forward.h"
#include "prefill_node/prefill_actor.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint32_t kTokens = 200;

coordinator::Submission submission(uint64_t seed) {
  base::Rng rng(seed, 3);
  coordinator::Submission made;
  for (uint32_t i = 0; i < kTokens; ++i)
    made.prompt.push_back(static_cast<base::TokenId>(rng.below(512)));
  made.sampling.max_tokens = 20;
  made.sampling.temperature = 0.9f;
  made.sampling.seed = seed;
  made.has_seed = true;
  return made;
}

struct Case {
  uint32_t stages;
  const char* dies;
  uint32_t mtp_steps = 0;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.stages << " stages, " << c.dies << ", " << c.mtp_steps << " drafts";
}

class LastKv : public ::testing::TestWithParam<Case> {
 protected:
  LastKv() {
    model::OracleOptions oracle;
    oracle.mtp_steps = GetParam().mtp_steps;
    engine_ = model::make_oracle_engine(oracle);
    ClusterOptions options;
    options.stages = GetParam().stages;
    options.mtp_steps = GetParam().mtp_steps;
    cluster_ = std::make_unique<SimCluster>(options, *engine_);
    EXPECT_TRUE(run([this] { return cluster_->ready(); }));
  }
  bool run(const std::function<bool()>& done) {
    return cluster_->host().run_until(done,
                                      cluster_->host().now().time_since_epoch() + seconds(60));
  }
  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<SimCluster> cluster_;
};

TEST_P(LastKv, IsFollowedByADeathAndNoCommit) {
  const Case& c = GetParam();
  const uint64_t rows = uint64_t{kTokens} * engine_->shape().kv_layers();
  const size_t index = cluster_->submit(submission(7));
  const Outcome& outcome = *cluster_->outcomes()[index];
  ASSERT_TRUE(run([&] { return cluster_->steps().rows_received == rows; }));
  EXPECT_TRUE(outcome.tokens.empty()) << "the commit was there before the last row";
  cluster_->host().kill(c.dies);
  EXPECT_NE(cluster_->held().find("reservations"), std::string::npos);
  // What had been reserved for it is free before anything of the next attempt is.
  const auto freed = [&] {
    for (const std::string rank : {"decode-0", "decode-1"}) {
      auto* actor = static_cast<decode::DecodeActor*>(cluster_->host().actor(rank));
      if (actor->ledger().blocks_used > 0) return false;
    }
    return true;
  };
  ASSERT_TRUE(run(freed)) << cluster_->held();
  EXPECT_TRUE(outcome.tokens.empty());
  EXPECT_EQ(cluster_->steps().sequences, 0u) << "a sequence ran without its commit";
  cluster_->host().restart(c.dies);
  ASSERT_TRUE(run([&] { return outcome.ends > 0 && cluster_->held().empty(); }))
      << cluster_->held();
  ASSERT_FALSE(outcome.error.has_value()) << outcome.error->what;
  const model::Generated want =
      model::generate(*engine_, outcome.asked.prompt, outcome.asked.sampling);
  EXPECT_EQ(outcome.tokens, want.tokens);
  EXPECT_EQ(outcome.usage.attempts, 2u);
  // Its blocks had gone to the store before: the full ones are loaded, not computed again.
  auto* stage = static_cast<prefill::PrefillActor*>(cluster_->host().actor(c.dies));
  EXPECT_EQ(stage->counters().cached_tokens, 192u);
}

INSTANTIATE_TEST_SUITE_P(Stages, LastKv,
                         ::testing::Values(Case{1, "prefill-0"}, Case{2, "prefill-1"},
                                           Case{3, "prefill-2"}, Case{2, "prefill-1", 3}));

}  // namespace
}  // namespace simulation
