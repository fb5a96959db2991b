// Whole requests through a real coordinator and fake nodes, on the simulated host.
#include <gtest/gtest.h>

#include <algorithm>

#include "fake_cluster.h"

namespace coordinator {
namespace {

using base::Code;
using base::FinishReason;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(CoordinatorFlow, RunsRequestsToTheirEnd) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  for (int i = 0; i < 5; ++i) cluster.submit(100, 40, static_cast<uint64_t>(i));
  ASSERT_TRUE(cluster.run_until_ended()) << cluster.sim.recent_log();
  expect_right(cluster, 5);
  EXPECT_EQ(cluster.ended(0).usage.prompt_tokens, 100u);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 1u);
  EXPECT_TRUE(cluster.idle(seconds(1)));
  EXPECT_EQ(cluster.sim.error_logs(), 0u);
  const ClusterStatus status = cluster.coordinator().status();
  EXPECT_EQ(status.latency.first_token.count, 5u);
  EXPECT_EQ(status.latency.request.count, 5u);
  EXPECT_EQ(status.latency.queue.count, 5u);
  EXPECT_EQ(counter(cluster, "failovers_total"), 0.0);
  EXPECT_EQ(counter(cluster, "stale_entries_total"), 0.0);
}

TEST(CoordinatorFlow, ShowsTheClusterInItsStatus) {
  FakeCluster cluster({.nodes = false});
  cluster.sim.run_for(milliseconds(1));
  EXPECT_FALSE(cluster.coordinator().status().ready);
  EXPECT_EQ(cluster.coordinator().status().missing.size(), 3u);
  cluster.add_nodes();
  ASSERT_TRUE(cluster.wait_ready());
  const ClusterStatus status = cluster.coordinator().status();
  ASSERT_EQ(status.nodes.size(), 6u);
  EXPECT_EQ(status.model, "serval-tiny");
  EXPECT_EQ(status.nodes[0].role, "coordinator");
  EXPECT_EQ(status.nodes[1].name, "prefill-0");
  EXPECT_EQ(status.nodes[4].name, "decode-1");
  EXPECT_EQ(status.nodes[4].position, 1u);
  EXPECT_EQ(status.nodes[5].role, "kvstore");
  EXPECT_EQ(status.nodes[3].blocks_total, 1000u);
}

TEST(CoordinatorFlow, RefusesANodeWithAnotherModel) {
  FakeCluster cluster({.nodes = false});
  cluster.knobs.decode_model = {9, 9};
  cluster.add_nodes();
  cluster.sim.run_for(seconds(3));
  EXPECT_EQ(cluster.sim.actor("decode-0"), nullptr);  // it has left with the reason in its log
  ASSERT_EQ(cluster.sim.error_logs(), 2u);
  for (const std::string& line : cluster.sim.error_lines()) {
    EXPECT_NE(line.find(base::Hash128({9, 9}).hex()), std::string::npos) << line;
    EXPECT_NE(line.find(base::Hash128({1, 1}).hex()), std::string::npos) << line;
  }
  EXPECT_NE(cluster.sim.recent_log().find("node.refused"), std::string::npos);
  EXPECT_EQ(cluster.coordinator().status().missing, std::vector<std::string>{"no decode rank"});
}

TEST(CoordinatorFlow, SpreadsRequestsOverTheRanks) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  for (int i = 0; i < 8; ++i) cluster.submit(100, 40);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 8);
  EXPECT_EQ(cluster.knobs.most_at_once, 4u);
}

TEST(CoordinatorFlow, PlacesAgainAfterNoRoomOnARank) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.refuse_reserves = 3;
  cluster.submit(100, 10);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 1u);
  EXPECT_EQ(counter(cluster, "no_room_total"), 3.0);
  EXPECT_EQ(counter(cluster, "failovers_total"), 0.0);
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, PlacesAgainAfterNoRoomOnAStage) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.refuse_starts = 2;
  cluster.submit(100, 10);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(counter(cluster, "no_room_total"), 2.0);
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, RefusesWhatNoRankCanEverHold) {
  FakeCluster cluster({});
  cluster.knobs.blocks_total = 10;
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(600, 100);
  cluster.submit(600, 0);  // an unstated length is cut to what fits: 40 tokens
  ASSERT_TRUE(cluster.run_until_ended());
  ASSERT_TRUE(cluster.ended(0).error);
  EXPECT_EQ(cluster.ended(0).error->code, Code::kContextLength);
  EXPECT_EQ(cluster.ended(1).tokens, truth(cluster.asked(1).prompt, 5, 40));
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, GoesOnOnAnotherRankWhenOneDies) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  for (int i = 0; i < 6; ++i) cluster.submit(100, 60, static_cast<uint64_t>(i));
  cluster.sim.run_for(milliseconds(20));
  cluster.sim.kill("decode-1");
  const auto killed = cluster.sim.now();
  ASSERT_TRUE(cluster.run_until_ended()) << cluster.sim.recent_log();
  expect_right(cluster, 6);
  EXPECT_LT(base::seconds(cluster.sim.now() - killed), 2.0);
  EXPECT_EQ(counter(cluster, "failovers_total"), 3.0);
  EXPECT_TRUE(cluster.idle(seconds(2)));
  EXPECT_EQ(cluster.sim.error_logs(), 0u);
}

TEST(CoordinatorFlow, GoesOnWhenARankRestartsFasterThanItsDeathIsSeen) {
  FakeCluster cluster({.ranks = 1});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(100, 60);
  cluster.sim.run_for(milliseconds(20));
  cluster.sim.restart("decode-0");
  ASSERT_TRUE(cluster.run_until_ended()) << cluster.sim.recent_log();
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 2u);
  EXPECT_TRUE(cluster.idle(seconds(2)));
}

TEST(CoordinatorFlow, ADeathOfAStageBeforeTheFirstTokenStartsTheNextAttempt) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.prefill_time = milliseconds(50);
  cluster.submit(100, 20);
  cluster.sim.run_for(milliseconds(20));
  cluster.sim.restart("prefill-0");
  ASSERT_TRUE(cluster.run_until_ended()) << cluster.sim.recent_log();
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 2u);
  EXPECT_TRUE(cluster.idle(seconds(2)));
}

TEST(CoordinatorFlow, ADeathOfAStageAfterTheFirstTokenDisturbsNobody) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(100, 60);
  cluster.sim.run_for(milliseconds(20));
  ASSERT_FALSE(cluster.ended(0).tokens.empty());
  cluster.sim.restart("prefill-0");
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 1u);
}

TEST(CoordinatorFlow, AHungRankIsLeftAndComesBackAsANewLife) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  for (int i = 0; i < 4; ++i) cluster.submit(100, 100, static_cast<uint64_t>(i));
  cluster.sim.run_for(milliseconds(20));
  const uint64_t before = cluster.coordinator().status().nodes[3].node;
  cluster.sim.pause("decode-0", seconds(4));
  const auto hung = cluster.sim.now();
  ASSERT_TRUE(cluster.run_until_ended()) << cluster.sim.recent_log();
  EXPECT_LT(base::seconds(cluster.sim.now() - hung), 3.5);
  expect_right(cluster, 4);
  cluster.sim.run_for(seconds(5));
  ASSERT_TRUE(cluster.wait_ready());
  const NodeStatus node = cluster.coordinator().status().nodes[3];
  EXPECT_EQ(node.name, "decode-0");
  EXPECT_NE(node.node, before);
  cluster.submit(10, 10);
  cluster.submit(10, 10);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 6);
  EXPECT_TRUE(cluster.idle());
}

TEST(CoordinatorFlow, ARestartedCoordinatorGathersItsNodesAgain) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  const RequestId former = cluster.submit_now(10, 500);
  cluster.sim.run_for(milliseconds(20));
  cluster.sim.restart("coordinator");
  ASSERT_TRUE(cluster.wait_ready(seconds(5))) << cluster.sim.recent_log();
  EXPECT_TRUE(cluster.idle(seconds(2))) << cluster.held();  // what it left behind is freed
  const RequestId later = cluster.submit_now(10, 20);
  ASSERT_TRUE(cluster.run_until_ended());
  EXPECT_EQ(cluster.ended(1).tokens, cluster.expected(1));
  EXPECT_NE(former.value >> 32, later.value >> 32);
}

TEST(CoordinatorFlow, SurvivesLossDuplicatesReorderingAndDeathsWithTheSameTokens) {
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    base::Hash128 trace[2];
    for (base::Hash128& hash : trace) {
      FakeCluster::Options options;
      options.seed = seed;
      options.network.loss = 0.1;
      options.network.duplicate = 0.1;
      options.network.reorder = 0.1;
      FakeCluster cluster(options);
      cluster.knobs.store_blocks = 1;
      ASSERT_TRUE(cluster.wait_ready(seconds(30))) << "seed " << seed;
      for (int i = 0; i < 10; ++i) cluster.submit(70 + static_cast<uint32_t>(i), 50);
      cluster.sim.run_for(milliseconds(30));
      cluster.sim.kill("decode-0");
      cluster.sim.run_for(milliseconds(500));
      cluster.sim.restart("decode-0");
      cluster.sim.partition({"prefill-1"}, milliseconds(700));
      ASSERT_TRUE(cluster.run_until_ended()) << "seed " << seed << cluster.sim.recent_log();
      expect_right(cluster, 10);
      EXPECT_TRUE(cluster.idle()) << "seed " << seed << ": " << cluster.held();
      EXPECT_EQ(cluster.sim.error_logs(), 0u);
      hash = cluster.sim.trace_hash();
    }
    EXPECT_EQ(trace[0], trace[1]) << "seed " << seed;
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
  }
}

TEST(CoordinatorFlow, CancelFreesEverythingWithinMilliseconds) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.store_blocks = 1;
  cluster.submit(100, 1000);
  cluster.sim.run_for(milliseconds(20));
  ASSERT_FALSE(cluster.ended(0).tokens.empty());
  cluster.cancel(0);
  EXPECT_TRUE(cluster.idle(milliseconds(5)));
  EXPECT_TRUE(cluster.ended(0).destroyed);
  EXPECT_EQ(cluster.ended(0).ends, 0);
  EXPECT_EQ(counter(cluster, "requests_cancelled_total"), 1.0);
}

TEST(CoordinatorFlow, CancelWorksAtEveryMoment) {
  for (int us = 0; us < 6000; us += 97) {
    FakeCluster cluster({});
    ASSERT_TRUE(cluster.wait_ready());
    cluster.knobs.store_blocks = 1;
    cluster.submit(100, 1000);
    cluster.sim.run_for(std::chrono::microseconds(us));
    cluster.cancel(0);
    ASSERT_TRUE(cluster.idle(milliseconds(400))) << us << " us" << cluster.sim.recent_log();
    EXPECT_EQ(cluster.ended(0).ends, 0);
    EXPECT_TRUE(cluster.ended(0).destroyed);
  }
}

TEST(CoordinatorFlow, TheSinkMayCancelFromInside) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.cancel_inside(0, 5);
  cluster.submit(100, 1000);
  ASSERT_TRUE(cluster.run_until_ended());
  EXPECT_EQ(cluster.ended(0).tokens, truth(cluster.asked(0).prompt, 5, 5));
  EXPECT_EQ(cluster.ended(0).ends, 0);
  EXPECT_TRUE(cluster.idle(milliseconds(10)));
}

TEST(CoordinatorFlow, EndsARequestAtItsDeadline) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.mute_decode = true;
  cluster.submit(100, 10, 5, 300);
  ASSERT_TRUE(cluster.run_until_ended(milliseconds(400)));
  ASSERT_TRUE(cluster.ended(0).error);
  EXPECT_EQ(cluster.ended(0).error->code, Code::kDeadline);
  EXPECT_EQ(cluster.ended(0).reason, FinishReason::kError);
  EXPECT_TRUE(cluster.idle(milliseconds(10)));
}

TEST(CoordinatorFlow, WaitsForAClusterAndSaysWhatIsMissingAtTheDeadline) {
  FakeCluster cluster({.nodes = false});
  cluster.sim.run_for(milliseconds(1));
  cluster.submit(100, 10, 5, 1000);
  cluster.submit(100, 10, 5, 30'000);
  ASSERT_FALSE(cluster.run_until_ended(milliseconds(1100)));
  ASSERT_TRUE(cluster.ended(0).error);
  EXPECT_EQ(cluster.ended(0).error->code, Code::kUnavailable);
  EXPECT_NE(cluster.ended(0).error->what.find("no prefill stage 0"), std::string::npos);
  cluster.add_nodes();
  ASSERT_TRUE(cluster.run_until_ended());
  EXPECT_EQ(cluster.ended(1).tokens, cluster.expected(1));
}

TEST(CoordinatorFlow, RefusesAtOnceWhenThereHasBeenNoClusterForLong) {
  FakeCluster cluster({.nodes = false});
  cluster.sim.run_for(seconds(11));
  const int refused = cluster.submit(10, 10);
  cluster.sim.run_for(milliseconds(10));
  ASSERT_TRUE(cluster.ended(refused).error);
  EXPECT_EQ(cluster.ended(refused).error->code, Code::kUnavailable);
  cluster.add_nodes();
  ASSERT_TRUE(cluster.wait_ready(seconds(30)));
  const int served = cluster.submit(10, 10);
  ASSERT_TRUE(cluster.run_until_ended());
  EXPECT_FALSE(cluster.ended(served).error);
}

TEST(CoordinatorFlow, RefusesWhatIsOverTheLimitAtOnce) {
  FakeCluster cluster({.max_requests = 4});
  ASSERT_TRUE(cluster.wait_ready());
  for (int i = 0; i < 6; ++i) cluster.submit(100, 30);
  cluster.sim.run_for(milliseconds(1));
  for (int i = 4; i < 6; ++i) {
    ASSERT_TRUE(cluster.ended(i).error);
    EXPECT_EQ(cluster.ended(i).error->code, Code::kExhausted);
    EXPECT_EQ(cluster.ended(i).ends, 1);
  }
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 4);
}

TEST(CoordinatorFlow, RefusesBadSubmissionsAndDrawsASeed) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(0, 10);
  cluster.submit(4000, 200);
  Submission unseeded;
  unseeded.prompt = {1, 2, 3};
  unseeded.sampling.max_tokens = 5;
  cluster.submit(unseeded);
  cluster.submit(unseeded);
  ASSERT_TRUE(cluster.run_until_ended());
  EXPECT_EQ(cluster.ended(0).error->code, Code::kInvalidArgument);
  EXPECT_EQ(cluster.ended(1).error->code, Code::kContextLength);
  EXPECT_FALSE(cluster.ended(2).error);
  EXPECT_NE(cluster.ended(2).tokens, cluster.ended(3).tokens);
}

TEST(CoordinatorFlow, DrainLetsTheRunningFinishAndRefusesTheNew) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(100, 30);
  cluster.sim.run_for(milliseconds(10));
  cluster.coordinator().drain();
  cluster.submit(100, 30);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(1).error->code, Code::kUnavailable);
  EXPECT_TRUE(cluster.coordinator().status().draining);
}

TEST(CoordinatorFlow, TriesBadArithmeticOnceMoreOnAnotherRank) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.fail_decodes = 1;
  cluster.submit(100, 30);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 2u);
  cluster.knobs.fail_decodes = 2;
  cluster.submit(100, 30);
  ASSERT_TRUE(cluster.run_until_ended());
  ASSERT_TRUE(cluster.ended(1).error);
  EXPECT_EQ(cluster.ended(1).error->code, Code::kInternal);
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, GivesUpAfterTwentyAttempts) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.fail_decodes = 1000;
  cluster.knobs.fail_what = "the next stage is not there";
  cluster.submit(100, 30);
  ASSERT_TRUE(cluster.run_until_ended());
  ASSERT_TRUE(cluster.ended(0).error);
  EXPECT_EQ(cluster.ended(0).error->code, Code::kUnavailable);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 20u);
  EXPECT_NE(cluster.ended(0).error->what.find("the next stage is not there"), std::string::npos);
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, UsesThePrefixCacheAndReleasesItsLease) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.store_blocks = 100;
  cluster.submit(128, 10);  // two full blocks, one of which must be computed
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.cached_tokens, 64u);
  EXPECT_EQ(cluster.knobs.cached_blocks, std::vector<uint32_t>{1});
  EXPECT_TRUE(cluster.idle(seconds(1)));
  EXPECT_EQ(counter(cluster, "cached_tokens_total"), 64.0);
}

TEST(CoordinatorFlow, LooksUpAgainAfterABadCacheEntryAndComputesEverythingAfterASecond) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.store_blocks = 100;
  cluster.knobs.fail_decodes = 2;
  cluster.knobs.fail_what = "an entry was missing";
  cluster.knobs.fail_without_cache = true;
  cluster.submit(200, 10);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.knobs.cached_blocks, (std::vector<uint32_t>{3, 3, 0}));
  EXPECT_EQ(cluster.ended(0).usage.cached_tokens, 0u);  // what was computed was not cached
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, ADeadStoreCostsOnlyTime) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.sim.kill("kvstore-0");
  cluster.submit(200, 10);  // its death is not known yet: the lookup passes its deadline
  ASSERT_TRUE(cluster.run_until_ended(milliseconds(500)));
  cluster.sim.run_for(seconds(2));
  cluster.submit(200, 10);
  ASSERT_TRUE(cluster.run_until_ended(milliseconds(100)));
  expect_right(cluster, 2);
  EXPECT_EQ(cluster.ended(1).usage.attempts, 1u);
  EXPECT_TRUE(cluster.idle(seconds(3)));
}

TEST(CoordinatorFlow, SeesTheEndItselfWhenItsMessageWasLostWithTheRank) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.lose_finish = true;
  cluster.submit(100, 10);
  cluster.sim.run_for(milliseconds(100));
  ASSERT_EQ(cluster.ended(0).tokens, cluster.expected(0));
  ASSERT_EQ(cluster.ended(0).ends, 0);
  cluster.sim.kill("decode-0");
  ASSERT_TRUE(cluster.run_until_ended(seconds(2)));
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 1u);
  EXPECT_TRUE(cluster.idle(seconds(2)));
}

TEST(CoordinatorFlow, EveryPolicyServes) {
  for (const char* policy : {"kv_aware", "least_loaded", "round_robin", "random"}) {
    FakeCluster cluster({.placement = policy});
    ASSERT_TRUE(cluster.wait_ready());
    for (int i = 0; i < 6; ++i) cluster.submit(50, 20);
    ASSERT_TRUE(cluster.run_until_ended()) << policy;
    expect_right(cluster, 6);
    EXPECT_TRUE(cluster.idle(seconds(1)));
  }
}

}  // namespace
}  // namespace coordinator
