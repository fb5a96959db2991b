// The pure parts of the coordinator's actor side.
#include <gtest/gtest.h>

#include <set>

#include "coordinator/admission.h"
#include "coordinator/block_keys.h"
#include "coordinator/latency.h"
#include "coordinator/placement.h"
#include "coordinator/token_log.h"
#include "proto/store.h"

namespace coordinator {
namespace {

using base::Code;
using base::FinishReason;

// --------------------------------------------------------------------------------- block keys

std::vector<TokenId> count_to(uint32_t n) {
  std::vector<TokenId> tokens(n);
  for (uint32_t i = 0; i < n; ++i) tokens[i] = i;
  return tokens;
}

TEST(BlockKeys, NameOnlyFullBlocks) {
  const base::Hash128 root{1, 2};
  EXPECT_EQ(block_keys(root, count_to(0)).size(), 0u);
  EXPECT_EQ(block_keys(root, count_to(63)).size(), 0u);
  EXPECT_EQ(block_keys(root, count_to(64)).size(), 1u);
  EXPECT_EQ(block_keys(root, count_to(200)).size(), 3u);
}

TEST(BlockKeys, NameABlockAndAllBeforeIt) {
  const base::Hash128 root{1, 2};
  std::vector<TokenId> a = count_to(192), b = a;
  b[70] = 9;  // in the second block
  const auto keys_a = block_keys(root, a), keys_b = block_keys(root, b);
  EXPECT_EQ(keys_a[0], keys_b[0]);
  EXPECT_NE(keys_a[1], keys_b[1]);
  EXPECT_NE(keys_a[2], keys_b[2]);
  EXPECT_EQ(keys_a[0], proto::block_key(root, std::span<const TokenId>(a).first(64)));
}

TEST(BlockKeys, DifferByModelLayoutArithmeticAndTenant) {
  const base::Hash128 x{1, 0}, y{2, 0};
  const auto root = [](auto a, auto b, auto c, const char* salt) {
    return block_root(block_space(a, b, c), salt);
  };
  std::set<base::Hash128> roots = {root(x, x, x, ""), root(y, x, x, ""),  root(x, y, x, ""),
                                   root(x, x, y, ""), root(x, x, x, "a"), root(x, x, x, "b")};
  EXPECT_EQ(roots.size(), 6u);
  EXPECT_EQ(root(x, y, x, "a"), root(x, y, x, "a"));
}

TEST(BlockKeys, LeaveAtLeastOneTokenToCompute) {
  EXPECT_EQ(cacheable_blocks(0), 0u);
  EXPECT_EQ(cacheable_blocks(64), 0u);
  EXPECT_EQ(cacheable_blocks(65), 1u);
  EXPECT_EQ(cacheable_blocks(128), 1u);
  EXPECT_EQ(cacheable_blocks(129), 2u);
}

// ---------------------------------------------------------------------------------- token log

using Ids = std::vector<TokenId>;

TEST(TokenLog, KeepsEachIndexOnceAndInOrder) {
  TokenLog log(10);
  EXPECT_TRUE(log.accept(0, Ids{5, 6}, {}, FinishReason::kNone));
  EXPECT_TRUE(log.accept(0, Ids{5, 6}, {}, FinishReason::kNone));
  EXPECT_TRUE(log.accept(1, Ids{6, 7}, {}, FinishReason::kNone));
  EXPECT_EQ(log.emitted(), (Ids{5, 6, 7}));
}

TEST(TokenLog, HoldsTokensBehindAGap) {
  TokenLog log(10);
  EXPECT_TRUE(log.accept(2, Ids{7, 8}, {}, FinishReason::kStop));
  EXPECT_TRUE(log.accept(1, Ids{6}, {}, FinishReason::kNone));
  EXPECT_TRUE(log.emitted().empty());
  EXPECT_EQ(log.waiting(), 3u);
  EXPECT_EQ(log.finished(), FinishReason::kNone);
  EXPECT_TRUE(log.accept(0, Ids{5}, {}, FinishReason::kNone));
  EXPECT_EQ(log.emitted(), (Ids{5, 6, 7, 8}));
  EXPECT_EQ(log.finished(), FinishReason::kStop);
  EXPECT_EQ(log.waiting(), 0u);
}

TEST(TokenLog, ForgetsWhatWaitsWhenAnAttemptEnds) {
  TokenLog log(10);
  EXPECT_TRUE(log.accept(1, Ids{6}, {}, FinishReason::kStop));
  log.drop_waiting();
  EXPECT_TRUE(log.accept(0, Ids{5}, {}, FinishReason::kNone));
  EXPECT_EQ(log.emitted(), (Ids{5}));
  EXPECT_EQ(log.finished(), FinishReason::kNone);
}

TEST(TokenLog, RefusesTokensBeyondTheLimitAndRaggedLogprobs) {
  TokenLog log(3);
  EXPECT_FALSE(log.accept(2, Ids{1, 2}, {}, FinishReason::kNone));
  EXPECT_FALSE(log.accept(0xFFFF'FFFFu, Ids{1}, {}, FinishReason::kNone));
  EXPECT_FALSE(log.accept(0, Ids{1, 2}, {base::TokenLogprobs{}}, FinishReason::kNone));
  EXPECT_TRUE(log.emitted().empty());
  EXPECT_EQ(log.waiting(), 0u);
}

TEST(TokenLog, IgnoresWhatComesAfterTheEnd) {
  TokenLog log(10);
  EXPECT_TRUE(log.accept(0, Ids{5}, {}, FinishReason::kStop));
  EXPECT_TRUE(log.accept(1, Ids{6}, {}, FinishReason::kLength));
  EXPECT_EQ(log.emitted(), (Ids{5}));
  EXPECT_EQ(log.finished(), FinishReason::kStop);
}

TEST(TokenLog, KeepsLogprobsWithTheirTokens) {
  TokenLog log(10);
  const base::TokenLogprobs one{-1.0f, {}}, two{-2.0f, {}};
  EXPECT_TRUE(log.accept(1, Ids{6}, {two}, FinishReason::kNone));
  EXPECT_TRUE(log.accept(0, Ids{5}, {one}, FinishReason::kNone));
  ASSERT_EQ(log.logprobs_from(0).size(), 2u);
  EXPECT_EQ(log.logprobs_from(0)[0].logprob, -1.0f);
  EXPECT_EQ(log.logprobs_from(1)[0].logprob, -2.0f);
}

// ---------------------------------------------------------------------------------- admission

Submission submission(uint32_t prompt, uint32_t max_tokens) {
  Submission s;
  s.prompt.assign(prompt, 1);
  s.sampling.max_tokens = max_tokens;
  return s;
}

TEST(Admission, RefusesAnEmptyPrompt) {
  Submission s = submission(0, 1);
  EXPECT_EQ(admit(s, {10, 100, 0}).error().code, Code::kInvalidArgument);
}

TEST(Admission, NamesTheNumbersWhenTheContextIsTooShort) {
  Submission s = submission(90, 20);
  const base::Status status = admit(s, {10, 100, 0});
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code, Code::kContextLength);
  EXPECT_EQ(status.error().what,
            "This model's maximum context length is 100 tokens. However, you requested 110 tokens "
            "(90 in the messages, 20 in the completion). Please reduce the length of the messages "
            "or completion.");
  Submission full = submission(100, 0);
  EXPECT_EQ(admit(full, {10, 100, 0}).error().code, Code::kContextLength);
  Submission fits = submission(90, 10);
  EXPECT_TRUE(admit(fits, {10, 100, 0}).has_value());
}

TEST(Admission, GivesAnAnswerOfUnstatedLengthTheRestOfTheContext) {
  Submission s = submission(10, 0);
  ASSERT_TRUE(admit(s, {10, 100, 0}).has_value());
  EXPECT_EQ(s.sampling.max_tokens, 90u);
  Submission small_rank = submission(10, 0);
  ASSERT_TRUE(admit(small_rank, {10, 100, 64}).has_value());
  EXPECT_EQ(small_rank.sampling.max_tokens, 54u);
}

TEST(Admission, RefusesTokensOutsideTheVocabulary) {
  Submission s = submission(3, 1);
  s.prompt[2] = 10;
  EXPECT_EQ(admit(s, {10, 100, 0}).error().code, Code::kInvalidArgument);
  Submission biased = submission(3, 1);
  biased.sampling.logit_bias = {{10, 1.0f}};
  EXPECT_EQ(admit(biased, {10, 100, 0}).error().code, Code::kInvalidArgument);
}

TEST(Admission, CountsBlocksOfPromptAndAnswer) {
  EXPECT_EQ(kv_blocks(63, 1), 1u);
  EXPECT_EQ(kv_blocks(64, 1), 2u);
  EXPECT_EQ(kv_blocks(100, 100), 4u);
}

// ---------------------------------------------------------------------------------- placement

RankLoad rank(uint64_t node, uint32_t number, uint32_t requests, uint32_t total, uint64_t held) {
  return RankLoad{NodeId{node}, number, requests, total, held};
}

PlacementView two_stages(std::vector<RankLoad> ranks) {
  PlacementView view;
  view.stages = {{StageLoad{NodeId{10}, 20}}, {StageLoad{NodeId{11}, 0}}};
  view.ranks = std::move(ranks);
  return view;
}

PlaceAnswer place_by(const char* policy, const PlacementView& view, PlacementRequest request) {
  return place(view, request, find_policy(policy)->pick);
}

TEST(Placement, TakesOneNodePerStage) {
  const auto answer = place_by("kv_aware", two_stages({rank(20, 0, 0, 10, 0)}), {.blocks = 1});
  EXPECT_EQ(answer.verdict, PlaceVerdict::kPlaced);
  EXPECT_EQ(answer.placement.stages, (std::vector<NodeId>{NodeId{10}, NodeId{11}}));
  EXPECT_EQ(answer.placement.decode, NodeId{20});
}

TEST(Placement, IsNotReadyWithoutAStageOrARank) {
  EXPECT_EQ(place_by("kv_aware", two_stages({}), {.blocks = 1}).verdict, PlaceVerdict::kNotReady);
  PlacementView view = two_stages({rank(20, 0, 0, 10, 0)});
  view.stages[1].clear();
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 1}).verdict, PlaceVerdict::kNotReady);
}

TEST(Placement, EveryStageHasAsManyRanksAsThePoorestOne) {
  PlacementView view = two_stages({rank(20, 0, 0, 10, 0)});
  view.stages = {{{NodeId{10}, 0}, {NodeId{11}, 0}, {NodeId{12}, 0}},
                 {{NodeId{13}, 0}, {NodeId{14}, 0}}};
  auto answer = place_by("kv_aware", view, {.blocks = 1});
  EXPECT_EQ(answer.placement.sequence_ranks, 2u);
  EXPECT_EQ(answer.placement.stages,
            (std::vector<NodeId>{NodeId{10}, NodeId{11}, NodeId{13}, NodeId{14}}));
  view.stages[1].erase(view.stages[1].begin());  // one of them died
  answer = place_by("kv_aware", view, {.blocks = 1});
  EXPECT_EQ(answer.placement.sequence_ranks, 1u);
  EXPECT_EQ(answer.placement.stages, (std::vector<NodeId>{NodeId{10}, NodeId{14}}));
  view.stages[1].clear();
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 1}).verdict, PlaceVerdict::kNotReady);
}

TEST(Placement, TellsFullFromTooSmall) {
  const PlacementView view = two_stages({rank(20, 0, 1, 10, 8), rank(21, 1, 1, 4, 2)});
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 3}).verdict, PlaceVerdict::kNoRoom);
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 11}).verdict, PlaceVerdict::kNeverFits);
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 2}).verdict, PlaceVerdict::kPlaced);
}

TEST(Placement, TheRankMustHaveBlocksForTheLongestAnswerThoughTheyAreNotHeldYet) {
  const PlacementView view = two_stages({rank(20, 0, 1, 10, 8), rank(21, 1, 1, 4, 0)});
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 2, .longest = 10}).placement.decode, NodeId{20});
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 3, .longest = 10}).verdict,
            PlaceVerdict::kNoRoom);
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 2, .longest = 11}).verdict,
            PlaceVerdict::kNeverFits);
}

TEST(Placement, RefusesAPromptLargerThanAStage) {
  const PlacementView view = two_stages({rank(20, 0, 1, 100, 8)});
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 30, .prefill_blocks = 20}).verdict,
            PlaceVerdict::kPlaced);
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 30, .prefill_blocks = 21}).verdict,
            PlaceVerdict::kNeverFits);
}

TEST(Placement, KvAwareTakesTheSmallestShareOfBlocks) {
  const PlacementView view = two_stages({rank(20, 0, 1, 10, 6), rank(21, 1, 5, 100, 20)});
  EXPECT_EQ(place_by("kv_aware", view, {.blocks = 2}).placement.decode, NodeId{21});
  const PlacementView equal = two_stages({rank(20, 0, 2, 10, 6), rank(21, 1, 1, 10, 6)});
  EXPECT_EQ(place_by("kv_aware", equal, {.blocks = 2}).placement.decode, NodeId{21});
}

TEST(Placement, LeastLoadedTakesTheFewestRequests) {
  const PlacementView view = two_stages({rank(20, 0, 1, 10, 6), rank(21, 1, 5, 100, 20)});
  EXPECT_EQ(place_by("least_loaded", view, {.blocks = 2}).placement.decode, NodeId{20});
}

TEST(Placement, RoundRobinAndRandomFollowTheirNumber) {
  const PlacementView view = two_stages({rank(20, 0, 1, 10, 6), rank(21, 1, 5, 100, 20)});
  EXPECT_EQ(place_by("round_robin", view, {.blocks = 1, .turn = 4}).placement.decode, NodeId{20});
  EXPECT_EQ(place_by("round_robin", view, {.blocks = 1, .turn = 5}).placement.decode, NodeId{21});
  EXPECT_EQ(place_by("random", view, {.blocks = 1, .draw = 7}).placement.decode, NodeId{21});
}

TEST(Placement, AvoidsARankOnlyWhileThereIsAnother) {
  PlacementRequest request{.blocks = 1, .avoid = {NodeId{20}}};
  const PlacementView both = two_stages({rank(20, 0, 0, 10, 0), rank(21, 1, 5, 10, 5)});
  EXPECT_EQ(place_by("kv_aware", both, request).placement.decode, NodeId{21});
  const PlacementView one = two_stages({rank(20, 0, 0, 10, 0)});
  EXPECT_EQ(place_by("kv_aware", one, request).placement.decode, NodeId{20});
}

TEST(Placement, SpreadsALongPromptOverAsManyRanksAsHaveRoom) {
  PlacementRequest request{.blocks = 12, .kv_parallel = 3, .tokens = 640, .span = 64};
  const PlacementView view =
      two_stages({rank(20, 0, 0, 20, 0), rank(21, 1, 0, 20, 4), rank(22, 2, 0, 20, 8)});
  const Placement spread = place_by("kv_aware", view, request).placement;
  EXPECT_EQ(spread.decode, NodeId{20});
  ASSERT_EQ(spread.shares.size(), 2u);  // four spans each, two and the answer for the owner
  EXPECT_EQ(spread.shares[0].node, NodeId{21});
  EXPECT_EQ(spread.shares[1].begin, 256u);
  EXPECT_EQ(spread.shares[1].end, 512u);
  EXPECT_EQ(spread.promises(12), (std::vector<std::pair<NodeId, uint32_t>>{
                                     {NodeId{20}, 4}, {NodeId{21}, 4}, {NodeId{22}, 4}}));
  EXPECT_TRUE(spread.holds(NodeId{22}));
  EXPECT_FALSE(spread.holds(NodeId{20}));
  const PlacementView fuller =
      two_stages({rank(20, 0, 0, 20, 0), rank(21, 1, 0, 20, 4), rank(22, 2, 0, 20, 18)});
  EXPECT_EQ(place_by("kv_aware", fuller, request).placement.shares.size(), 1u);
  request.tokens = 100;  // too short to be cut
  EXPECT_TRUE(place_by("kv_aware", view, request).placement.shares.empty());
}

TEST(Placement, WhatFitsNoRankMayFitSeveral) {
  PlacementRequest request{.blocks = 12, .kv_parallel = 1, .tokens = 640, .span = 64};
  const PlacementView view = two_stages({rank(20, 0, 0, 8, 0), rank(21, 1, 0, 8, 0)});
  EXPECT_EQ(place_by("kv_aware", view, request).verdict, PlaceVerdict::kNeverFits);
  request.kv_parallel = 2;
  const PlaceAnswer answer = place_by("kv_aware", view, request);
  ASSERT_EQ(answer.verdict, PlaceVerdict::kPlaced);
  EXPECT_EQ(answer.placement.shares.size(), 1u);
  const PlacementView busy = two_stages({rank(20, 0, 1, 8, 0), rank(21, 1, 1, 8, 6)});
  EXPECT_EQ(place_by("kv_aware", busy, request).verdict, PlaceVerdict::kNoRoom);
  const PlacementView small = two_stages({rank(20, 0, 0, 8, 0), rank(21, 1, 0, 3, 0)});
  EXPECT_EQ(place_by("kv_aware", small, request).verdict, PlaceVerdict::kNeverFits);
}

TEST(Placement, KnowsItsPoliciesByName) {
  for (const char* name : {"kv_aware", "least_loaded", "round_robin", "random"}) {
    EXPECT_NE(find_policy(name), nullptr) << name;
  }
  EXPECT_EQ(find_policy("fastest"), nullptr);
}

// ------------------------------------------------------------------------------------ latency

TEST(Latency, CountsAValueInTheFirstBucketThatHoldsIt) {
  Histogram histogram;
  histogram.add(std::chrono::milliseconds(1));
  histogram.add(std::chrono::milliseconds(2), 3);
  histogram.add(std::chrono::hours(1));
  EXPECT_EQ(histogram.counts[0], 1u);
  EXPECT_EQ(histogram.counts[1], 3u);
  EXPECT_EQ(histogram.counts.back(), 1u);
  EXPECT_EQ(histogram.count, 5u);
  EXPECT_NEAR(histogram.sum, 3600.007, 1e-9);
}

}  // namespace
}  // namespace coordinator
