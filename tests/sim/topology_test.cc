// Same tokens on any topology: twenty prompts through the real engine and the real actors give the
// token ids that the reference engine gives alone in one process, whatever the stages, ranks,
// chunks, batch and prefix cache.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <tuple>

#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

const char* kTexts[] = {
    "import os\nimport sys\n\n\ndef main(",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "def read_lines(path):\n    \"\"\"Return the lines of a file.\"\"\"\n",
    "for name, value in sorted(self._cache.items()):\n    if value is None:\n",
    "try:\n    import json\nexcept ImportError:\n    json = None\n\n__all__ = [",
};

std::string folder() { return std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny"; }

// What is served and what it must answer; made once.
struct World {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Engine> local, drafting;
  std::vector<coordinator::Submission> asked;
  std::vector<model::Generated> want;

  World() {
    checkpoint = std::make_unique<model::Checkpoint>(*model::Checkpoint::open(folder()));
    local = *model::make_local_engine(*checkpoint, {});
    model::EngineOptions with_drafts;
    with_drafts.mtp = true;
    drafting = *model::make_local_engine(*checkpoint, with_drafts);
    const auto reference = *model::make_reference_engine(*checkpoint, {});
    const auto tokenizer = *model::Tokenizer::load(folder());
    for (uint32_t i = 0; i < 20; ++i) {
      coordinator::Submission submission;
      // Every fourth prompt is long: several blocks, over the LSA budget of 128 positions.
      for (uint32_t n = 0; n < (i % 4 == 3 ? 10u : 1u + i % 3); ++n) {
        const std::vector<base::TokenId> ids = tokenizer.encode(kTexts[(i + n) % 5]);
        submission.prompt.insert(submission.prompt.end(), ids.begin(), ids.end());
      }
      submission.sampling.max_tokens = 20;
      submission.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
      submission.sampling.seed = 1000 + i;
      submission.has_seed = true;
      want.push_back(model::generate(*reference, submission.prompt, submission.sampling));
      asked.push_back(std::move(submission));
    }
  }
};

World& world() {
  static World made;
  return made;
}

// stages, ranks a stage, decode ranks, chunk, dynamic chunks, batch
class TopologyTest : public ::testing::TestWithParam<
                         std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, bool, uint32_t>> {};

void expect_the_tokens_of_the_reference(const ClusterOptions& options);

TEST_P(TopologyTest, GivesTheTokensOfTheReferenceColdAndWarm) {
  ClusterOptions options;
  std::tie(options.stages, options.sequence_ranks, options.ranks, options.chunk_tokens,
           options.dynamic_chunks, options.max_batch) = GetParam();
  expect_the_tokens_of_the_reference(options);
}

// stages, ranks a stage
class SharedExpertsTest : public ::testing::TestWithParam<std::tuple<uint32_t, uint32_t>> {};

TEST_P(SharedExpertsTest, GivesTheTokensOfTheReferenceColdAndWarm) {
  ClusterOptions options;
  std::tie(options.stages, options.sequence_ranks) = GetParam();
  options.chunk_tokens = 64;
  options.dynamic_chunks = options.share_experts = true;
  expect_the_tokens_of_the_reference(options);
}

// decode ranks, redundant experts
class ExpertParallelTest : public ::testing::TestWithParam<std::tuple<uint32_t, uint32_t>> {};

TEST_P(ExpertParallelTest, GivesTheTokensOfTheReferenceColdAndWarm) {
  ClusterOptions options;
  options.stages = 1;
  std::tie(options.ranks, options.redundant_experts) = GetParam();
  options.eplb = options.redundant_experts > 0;
  options.micro_batches = 2;
  options.chunk_tokens = 64;
  expect_the_tokens_of_the_reference(options);
}

INSTANTIATE_TEST_SUITE_P(Ranks, ExpertParallelTest,
                         ::testing::Values(std::tuple{1u, 0u}, std::tuple{2u, 0u},
                                           std::tuple{3u, 0u}, std::tuple{5u, 0u},
                                           std::tuple{2u, 2u}, std::tuple{3u, 2u},
                                           std::tuple{5u, 3u}),
                         [](const auto& info) {
                           return fmt::format("ranks{}_redundant{}", std::get<0>(info.param),
                                              std::get<1>(info.param));
                         });

INSTANTIATE_TEST_SUITE_P(Stages, SharedExpertsTest,
                         ::testing::Combine(::testing::Values(1u, 2u), ::testing::Values(2u, 3u)),
                         [](const auto& info) {
                           return fmt::format("stages{}_sp{}", std::get<0>(info.param),
                                              std::get<1>(info.param));
                         });

// ranks a stage, decode ranks
class SharedNgramTest : public ::testing::TestWithParam<std::tuple<uint32_t, uint32_t>> {};

TEST_P(SharedNgramTest, GivesTheTokensOfTheReferenceColdAndWarm) {
  ClusterOptions options;
  std::tie(options.sequence_ranks, options.ranks) = GetParam();
  options.chunk_tokens = 64;
  options.share_ngram = true;
  expect_the_tokens_of_the_reference(options);
}

INSTANTIATE_TEST_SUITE_P(Ranks, SharedNgramTest,
                         ::testing::Combine(::testing::Values(1u, 2u), ::testing::Values(2u, 3u)),
                         [](const auto& info) {
                           return fmt::format("sp{}_ranks{}", std::get<0>(info.param),
                                              std::get<1>(info.param));
                         });

// stages, ranks a stage, decode ranks, chunk, batch
class DraftsTest : public ::testing::TestWithParam<
                       std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>> {};

TEST_P(DraftsTest, GiveTheTokensOfTheReferenceColdAndWarm) {
  ClusterOptions options;
  std::tie(options.stages, options.sequence_ranks, options.ranks, options.chunk_tokens,
           options.max_batch) = GetParam();
  options.mtp_steps = 3;
  options.micro_batches = 2;
  expect_the_tokens_of_the_reference(options);
}

std::string name_of_drafts(const ::testing::TestParamInfo<DraftsTest::ParamType>& info) {
  const auto& [stages, sequence, ranks, chunk, batch] = info.param;
  return fmt::format("stages{}_sp{}_ranks{}_chunk{}_batch{}", stages, sequence, ranks, chunk,
                     batch);
}

INSTANTIATE_TEST_SUITE_P(
    Clusters, DraftsTest,
    ::testing::Values(std::tuple(1u, 1u, 1u, 256u, 1u), std::tuple(1u, 1u, 2u, 16u, 8u),
                      std::tuple(2u, 1u, 1u, 16u, 8u), std::tuple(2u, 1u, 2u, 64u, 8u),
                      std::tuple(2u, 2u, 2u, 64u, 3u), std::tuple(3u, 1u, 3u, 16u, 8u),
                      std::tuple(1u, 3u, 3u, 64u, 8u), std::tuple(3u, 2u, 5u, 64u, 8u)),
    name_of_drafts);

void expect_the_tokens_of_the_reference(const ClusterOptions& options) {
  World& w = world();
  SimCluster cluster(options, options.mtp_steps > 0 ? *w.drafting : *w.local);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, std::chrono::seconds(10)));
  for (const bool warm : {false, true}) {
    const size_t first = cluster.outcomes().size();
    for (const coordinator::Submission& submission : w.asked) cluster.submit(submission);
    ASSERT_TRUE(
        cluster.host().run_until([&] { return cluster.all_over(); }, std::chrono::minutes(10)));
    if (options.redundant_experts > 0) {  // the cold run began before there was a plan
      const auto planned = [&] { return cluster.balance().epoch() > 0 && cluster.held().empty(); };
      ASSERT_TRUE(cluster.host().run_until(
          planned, cluster.host().now().time_since_epoch() + std::chrono::seconds(10)));
    }
    for (size_t i = 0; i < w.asked.size(); ++i) {
      const Outcome& got = *cluster.outcomes()[first + i];
      ASSERT_FALSE(got.error.has_value()) << got.error->what;
      EXPECT_EQ(got.tokens, w.want[i].tokens) << "prompt " << i << (warm ? ", warm" : ", cold");
      EXPECT_EQ(got.finish, w.want[i].finish);
      if (warm && w.asked[i].prompt.size() > 128) {
        EXPECT_GE(got.usage.cached_tokens, 64u) << "prompt " << i << " was not in the cache";
      }
    }
  }
  const SimCluster::Steps steps = cluster.steps();
  EXPECT_LE(steps.tokens, steps.sequences + steps.accepted);  // less where a draft was the last
  if (options.mtp_steps > 0) {
    EXPECT_GT(steps.accepted, steps.tokens / 5) << "few drafts were right";
  } else {
    EXPECT_EQ(steps.drafted, 0u);
  }
}

std::string name_of(const ::testing::TestParamInfo<TopologyTest::ParamType>& info) {
  const auto& [stages, sequence, ranks, chunk, dynamic, batch] = info.param;
  return fmt::format("stages{}_sp{}_ranks{}_chunk{}{}_batch{}", stages, sequence, ranks, chunk,
                     dynamic ? "dynamic" : "", batch);
}

INSTANTIATE_TEST_SUITE_P(Clusters, TopologyTest,
                         ::testing::Combine(::testing::Values(1u, 2u), ::testing::Values(1u),
                                            ::testing::Values(1u, 2u), ::testing::Values(16u, 256u),
                                            ::testing::Values(false), ::testing::Values(1u, 8u)),
                         name_of);

INSTANTIATE_TEST_SUITE_P(Stages, TopologyTest,
                         ::testing::Combine(::testing::Values(1u, 2u, 3u),
                                            ::testing::Values(1u, 2u, 3u), ::testing::Values(2u),
                                            ::testing::Values(64u), ::testing::Bool(),
                                            ::testing::Values(8u)),
                         name_of);

}  // namespace
}  // namespace simulation
