// KV-cache parallelism in whole clusters: prompts whose KV stands on several decode ranks give the
// token ids that one process gives, with dense and sparse attention, whatever else is parallel; and
// what no rank could hold alone is served by several.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

constexpr uint32_t kSpan = 64;

// A model and what it must answer; made once.
struct World {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Engine> engine, drafting;
  std::vector<coordinator::Submission> asked;
  std::vector<model::Generated> want;

  explicit World(const std::string& folder) {
    checkpoint = std::make_unique<model::Checkpoint>(
        *model::Checkpoint::open(std::string(SERVAL_SOURCE_DIR) + folder));
    model::EngineOptions options;
    options.span = kSpan;
    const auto reference = *model::make_reference_engine(*checkpoint, options);
    engine = *model::make_local_engine(*checkpoint, options);
    options.mtp = true;
    if (checkpoint->config().mtp_layers > 0)
      drafting = *model::make_local_engine(*checkpoint, options);
    base::Rng rng(5);
    for (const uint32_t tokens : {40u, 127u, 128u, 200u, 330u, 420u}) {
      coordinator::Submission submission;
      for (uint32_t i = 0; i < tokens; ++i)
        submission.prompt.push_back(
            static_cast<base::TokenId>(3 + rng.below(engine->shape().vocab - 3)));
      submission.sampling.max_tokens = 12;
      submission.sampling.temperature = tokens % 4 == 0 ? 0.0f : 0.8f;
      submission.sampling.ignore_eos = true;
      submission.sampling.seed = tokens;
      submission.has_seed = true;
      want.push_back(model::generate(*reference, submission.prompt, submission.sampling));
      asked.push_back(std::move(submission));
    }
  }
};

World& world(const std::string& folder) {
  static std::map<std::string, World> made;
  return made.try_emplace(folder, folder).first->second;
}

constexpr const char* kSparse = "/models/serval-tiny";
constexpr const char* kDense = "/tests/golden/tiny_flash";

struct Case {
  const char* folder;
  uint32_t kv_parallel, ranks, stages, sequence_ranks, chunk_tokens, max_batch, mtp_steps;
};

class ShardedCluster : public ::testing::TestWithParam<Case> {};

TEST_P(ShardedCluster, GivesTheTokensOfTheReferenceColdAndWarm) {
  const Case& c = GetParam();
  World& w = world(c.folder);
  ClusterOptions options;
  options.kv_parallel = c.kv_parallel;
  options.ranks = c.ranks;
  options.stages = c.stages;
  options.sequence_ranks = c.sequence_ranks;
  options.chunk_tokens = c.chunk_tokens;
  options.max_batch = c.max_batch;
  options.mtp_steps = c.mtp_steps;
  SimCluster cluster(options, c.mtp_steps > 0 ? *w.drafting : *w.engine);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
  for (const bool warm : {false, true}) {
    const size_t first = cluster.outcomes().size();
    for (const coordinator::Submission& submission : w.asked) cluster.submit(submission);
    ASSERT_TRUE(
        cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(10)));
    for (size_t i = 0; i < w.asked.size(); ++i) {
      const Outcome& got = *cluster.outcomes()[first + i];
      ASSERT_FALSE(got.error.has_value()) << got.error->what;
      EXPECT_EQ(got.tokens, w.want[i].tokens) << "prompt " << i << (warm ? ", warm" : ", cold");
      EXPECT_EQ(got.usage.attempts, 1u);
    }
  }
  EXPECT_GT(cluster.steps().shard_answers, 0u);
  const base::Duration soon = cluster.host().now().time_since_epoch() + std::chrono::seconds(5);
  EXPECT_TRUE(cluster.host().run_until([&] { return cluster.held().empty(); }, soon))
      << cluster.held();
}

INSTANTIATE_TEST_SUITE_P(
    Clusters, ShardedCluster,
    ::testing::Values(Case{kSparse, 2, 2, 1, 1, 64, 8, 0}, Case{kSparse, 3, 3, 2, 1, 16, 8, 0},
                      Case{kSparse, 4, 5, 2, 2, 64, 3, 0}, Case{kSparse, 2, 3, 3, 1, 256, 1, 0},
                      Case{kSparse, 2, 2, 2, 1, 64, 8, 3}, Case{kSparse, 4, 4, 1, 2, 64, 8, 3},
                      Case{kSparse, 3, 5, 2, 1, 16, 3, 1}, Case{kDense, 2, 2, 2, 1, 64, 8, 0},
                      Case{kDense, 3, 4, 1, 1, 16, 8, 0}, Case{kDense, 4, 4, 1, 2, 64, 1, 0}),
    [](const auto& info) {
      const Case& c = info.param;
      return fmt::format("{}_kvp{}_ranks{}_stages{}_sp{}_chunk{}_batch{}_mtp{}",
                         c.folder == kDense ? "dense" : "sparse", c.kv_parallel, c.ranks, c.stages,
                         c.sequence_ranks, c.chunk_tokens, c.max_batch, c.mtp_steps);
    });

TEST(ShardedCluster, ServesWhatNoRankCouldHoldAlone) {
  World& w = world(kSparse);
  const model::Shape& shape = w.engine->shape();
  ClusterOptions options;
  options.ranks = 3;
  const uint64_t block = uint64_t{shape.kv_layers()} * shape.kv_row_bytes * model::kBlockTokens;
  options.decode_kv_bytes = 4 * block;  // the longest prompt and its answer are seven blocks
  for (const uint32_t kv_parallel : {1u, 3u}) {
    options.kv_parallel = kv_parallel;
    SimCluster cluster(options, *w.engine);
    ASSERT_TRUE(
        cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
    for (const coordinator::Submission& submission : w.asked) cluster.submit(submission);
    ASSERT_TRUE(
        cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(10)));
    const Outcome& longest = *cluster.outcomes().back();
    EXPECT_EQ(longest.error.has_value(), kv_parallel == 1);
    if (kv_parallel == 1) {
      EXPECT_EQ(longest.error->code, base::Code::kContextLength);
      continue;
    }
    for (size_t i = 0; i < w.asked.size(); ++i)
      EXPECT_EQ(cluster.outcomes()[i]->tokens, w.want[i].tokens) << "prompt " << i;
  }
}

}  // namespace
}  // namespace simulation
