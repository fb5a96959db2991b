// Chats of several turns: what a turn leaves in the stores, made by prefill or by decode, is what
// the next one finds, and its tokens are those of one process.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "base/rendezvous.h"
#include "kvstore/kvstore_actor.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::seconds;

std::string folder() { return std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny"; }

struct Model {
  std::unique_ptr<model::Checkpoint> checkpoint =
      std::make_unique<model::Checkpoint>(*model::Checkpoint::open(folder()));
  std::unique_ptr<model::Engine> engine = *model::make_local_engine(*checkpoint, {});
  std::unique_ptr<model::Engine> reference = *model::make_reference_engine(*checkpoint, {});
  model::Tokenizer tokenizer = *model::Tokenizer::load(folder());
};

Model& served() {
  static Model made;
  return made;
}

bool run_for_most(SimCluster& cluster, const std::function<bool()>& done) {
  return cluster.host().run_until(done, cluster.host().now().time_since_epoch() + seconds(120));
}

// Asks, and waits until nothing of it is on its way any more.
const Outcome& ask(SimCluster& cluster, const coordinator::Submission& submission) {
  const size_t index = cluster.submit(submission);
  EXPECT_TRUE(run_for_most(cluster, [&] { return cluster.all_over() && cluster.held().empty(); }))
      << cluster.held();
  return *cluster.outcomes()[index];
}

uint32_t whole_blocks(size_t tokens) { return static_cast<uint32_t>((tokens - 1) / 64 * 64); }

coordinator::Submission first_turn(const std::string& text, uint32_t max_tokens) {
  coordinator::Submission submission;
  submission.prompt = served().tokenizer.encode(text);
  submission.sampling.max_tokens = max_tokens;
  submission.sampling.ignore_eos = true;
  submission.sampling.temperature = 0.8f;
  submission.sampling.seed = 11;
  submission.has_seed = true;
  return submission;
}

class Turns : public ::testing::TestWithParam<uint32_t> {};

TEST_P(Turns, OfAChatHitTheWholeHistory) {
  Model& model = served();
  for (const uint32_t chunk : {16u, 256u}) {
    ClusterOptions options;
    options.stores = GetParam();
    options.chunk_tokens = chunk;
    SimCluster cluster(options, *model.engine);
    ASSERT_TRUE(run_for_most(cluster, [&] { return cluster.ready(); }));
    coordinator::Submission turn = first_turn("class Stack:\n    def __init__(self):\n", 150);
    size_t history = 0;  // tokens that have KV
    for (uint32_t number = 0; number < 4; ++number) {
      SCOPED_TRACE(fmt::format("chunk {} turn {}", chunk, number));
      const model::Generated want = model::generate(*model.reference, turn.prompt, turn.sampling);
      const Outcome& got = ask(cluster, turn);
      ASSERT_FALSE(got.error.has_value()) << got.error->what;
      EXPECT_EQ(got.tokens, want.tokens);
      // All full blocks of the turn before, the answer's included, that leave a token to compute.
      EXPECT_EQ(got.usage.cached_tokens,
                std::min(history / 64 * 64, size_t{whole_blocks(turn.prompt.size())}));
      EXPECT_GE(got.usage.cached_tokens, number > 0 ? 128u : 0u);
      turn.prompt.insert(turn.prompt.end(), got.tokens.begin(), got.tokens.end());
      history = turn.prompt.size() - 1;  // the last token has none
      const auto more = model.tokenizer.encode("\n\ndef main():\n");
      turn.prompt.insert(turn.prompt.end(), more.begin(), more.end());
      turn.sampling.seed += 1;
      turn.sampling.max_tokens = 70 + 20 * number;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, Turns, ::testing::Values(1u, 2u, 5u),
                         [](const auto& info) { return fmt::format("stores{}", info.param); });

TEST(Stores, OneThatJoinsGetsWhatIsItsOwnAndServesItWhenTheOtherDies) {
  Model& model = served();
  ClusterOptions options;
  options.stores = 2;
  SimCluster cluster(options, *model.engine);
  cluster.host().kill("kvstore-0");
  cluster.host().kill("kvstore-1");
  cluster.host().restart("kvstore-0");
  const auto has_stores = [&](size_t count) {
    return run_for_most(cluster, [&] { return cluster.ready_stores() == count; });
  };
  ASSERT_TRUE(has_stores(1));
  // Prompts enough that each store owns some of them.
  std::vector<coordinator::Submission> asked;
  for (int i = 0; i < 8; ++i) asked.push_back(first_turn(fmt::format("{} = [", i), 150));
  std::vector<model::Generated> want;
  for (coordinator::Submission& each : asked) {
    const Outcome& got = ask(cluster, each);
    each.prompt.insert(each.prompt.end(), got.tokens.begin(), got.tokens.end());
    each.sampling.max_tokens = 5;
    want.push_back(model::generate(*model.reference, each.prompt, each.sampling));
  }
  const auto cached = [&] {
    uint32_t tokens = 0;
    for (size_t i = 0; i < asked.size(); ++i) {
      const Outcome& got = ask(cluster, asked[i]);
      EXPECT_EQ(got.tokens, want[i].tokens);
      EXPECT_EQ(got.usage.attempts, 1u);
      tokens += got.usage.cached_tokens;
    }
    return tokens;
  };
  const uint32_t all = cached();
  EXPECT_GE(all, 8 * 128u);
  cluster.host().restart("kvstore-1");
  ASSERT_TRUE(has_stores(2));
  EXPECT_EQ(cached(), all);  // found where it was; what belongs to the new store is copied there
  cluster.host().kill("kvstore-0");
  ASSERT_TRUE(has_stores(1));
  const uint32_t left = cached();
  EXPECT_GT(left, 0u);
  EXPECT_LT(left, all);
  EXPECT_EQ(cached(), all);  // what was lost is computed once
}

TEST(Stores, WhatManyAskForGetsASecondCopy) {
  Model& model = served();
  ClusterOptions options;
  options.stores = 3;
  SimCluster cluster(options, *model.engine);
  ASSERT_TRUE(run_for_most(cluster, [&] { return cluster.ready(); }));
  coordinator::Submission prompt = first_turn("def main():\n", 2);
  while (prompt.prompt.size() < 300) {
    const std::vector<base::TokenId> half = prompt.prompt;
    prompt.prompt.insert(prompt.prompt.end(), half.begin(), half.end());
  }
  const auto holders = [&] {
    size_t stores = 0;
    for (uint32_t i = 0; i < 3; ++i) {
      auto* actor = cluster.host().actor(fmt::format("kvstore-{}", i));
      stores += static_cast<kvstore::KvstoreActor*>(actor)->index().blocks() > 0;
    }
    return stores;
  };
  for (uint32_t asked = 1; asked <= 2 * base::kHotUses; ++asked) {
    const Outcome& got = ask(cluster, prompt);
    EXPECT_EQ(got.usage.cached_tokens, asked == 1 ? 0 : whole_blocks(prompt.prompt.size()));
    EXPECT_EQ(holders(), asked < base::kHotUses ? 1u : 2u) << asked;
  }
}

TEST(Stores, ADeathDuringTheLoadIsOneMoreAttemptAndNoError) {
  Model& model = served();
  for (int us = 200; us < 6000; us += 400) {
    SCOPED_TRACE(us);
    ClusterOptions options;
    options.stores = 2;
    SimCluster cluster(options, *model.engine);
    ASSERT_TRUE(run_for_most(cluster, [&] { return cluster.ready(); }));
    coordinator::Submission turn = first_turn("import os\n", 140);
    const Outcome& first = ask(cluster, turn);
    turn.prompt.insert(turn.prompt.end(), first.tokens.begin(), first.tokens.end());
    turn.sampling.max_tokens = 5;
    const model::Generated want = model::generate(*model.reference, turn.prompt, turn.sampling);
    cluster.host().network().bytes_per_second = 2e7;
    const size_t index = cluster.submit(turn);
    cluster.host().run_for(std::chrono::microseconds(us));
    cluster.host().kill("kvstore-0");
    cluster.host().kill("kvstore-1");
    ASSERT_TRUE(run_for_most(cluster, [&] { return cluster.all_over() && cluster.held().empty(); }))
        << cluster.held();
    const Outcome& got = *cluster.outcomes()[index];
    ASSERT_FALSE(got.error.has_value()) << got.error->what;
    EXPECT_EQ(got.tokens, want.tokens);
    EXPECT_LE(got.usage.attempts, 2u);
    EXPECT_LT(got.ended - got.submitted, seconds(3));
  }
}

}  // namespace
}  // namespace simulation
