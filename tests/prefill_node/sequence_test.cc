// Ranks that share the sequence of each stage: the same KV and the same token as one process, and
// nothing left behind whatever happens to one of them.
#include <gtest/gtest.h>

#include "tests/prefill_node/fixture.h"

namespace prefill_test {
namespace {

using proto::Outcome;
using std::chrono::milliseconds;
using std::chrono::seconds;

ClusterOptions shared(uint32_t stages, uint32_t ranks) {
  ClusterOptions options;
  options.stages = stages;
  options.sequence_ranks = ranks;
  return options;
}

TEST(PrefillSequence, PromptsOfEveryAwkwardLengthArriveOverAnyStagesAndRanks) {
  for (const uint32_t stages : {1u, 2u, 3u}) {
    for (const uint32_t ranks : {2u, 3u}) {
      for (const bool dynamic : {false, true}) {
        SCOPED_TRACE(fmt::format("stages {} ranks {} dynamic {}", stages, ranks, dynamic));
        ClusterOptions options = shared(stages, ranks);
        options.dynamic_chunks = dynamic;
        options.share_experts = dynamic;
        Cluster cluster(options);
        cluster.await_ready();
        std::vector<proto::StartPrefill> all;
        for (const uint32_t count : {1u, 2u, 3u, 5u, 31u, 32u, 33u, 64u, 65u, 200u})
          all.push_back(cluster.request(1000 + count, count));
        for (const auto& start : all) cluster.start(start);
        EXPECT_TRUE(cluster.sim.run_until(
            [&] {
              return std::ranges::all_of(all, [&](auto& s) { return cluster.committed(s); }) &&
                     cluster.idle();
            },
            seconds(60)))
            << cluster.sim.recent_log();
        for (const auto& start : all) cluster.expect_arrived(start);
        EXPECT_TRUE(cluster.coordinator().failures.empty());
        EXPECT_EQ(cluster.sim.error_logs(), 0u);
      }
    }
  }
}

TEST(PrefillSequence, WithLossDoublesAndReorderingEverythingArrivesOnce) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options = shared(2, seed % 2 == 0 ? 2 : 3);
    options.seed = seed;
    options.passes = 1 + static_cast<uint32_t>(seed % 3);
    options.chunk_tokens = seed % 4 == 0 ? 1 : 32;
    options.share_experts = seed % 3 != 0;
    Cluster cluster(options);
    cluster.sim.network().loss = 0.1;
    cluster.sim.network().duplicate = 0.1;
    cluster.sim.network().reorder = 0.1;
    cluster.await_ready();
    std::vector<proto::StartPrefill> all;
    for (uint64_t id = 1; id <= 4; ++id)
      all.push_back(cluster.request(id, static_cast<uint32_t>(20 + 17 * id)));
    for (const auto& start : all) cluster.start(start);
    EXPECT_TRUE(cluster.sim.run_until(
        [&] {
          return std::ranges::all_of(all, [&](auto& s) { return cluster.committed(s); }) &&
                 cluster.idle();
        },
        seconds(300)))
        << cluster.sim.recent_log();
    for (const auto& start : all) cluster.expect_arrived(start);
    EXPECT_EQ(cluster.decode().conflicts, 0u);
    EXPECT_TRUE(cluster.coordinator().failures.empty());
    cluster.sim.run_for(seconds(2));  // late doubles wake nothing
    EXPECT_TRUE(cluster.idle());
  }
}

TEST(PrefillSequence, RowsAreSharedEvenlyAndKvIsShippedOnce) {
  Cluster cluster(shared(1, 3));
  cluster.await_ready();
  const proto::StartPrefill start = cluster.request(7, 600);
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(30)));
  cluster.expect_arrived(start);
  EXPECT_EQ(cluster.stage(0).counters().shipped.rows, 600u * cluster.shape.layers);
  for (const uint32_t rank : {1u, 2u}) {
    EXPECT_EQ(cluster.stage(rank).counters().shipped.rows, 0u);
    EXPECT_NEAR(static_cast<double>(cluster.stage(rank).counters().tokens), 200, 20);
  }
  // Every byte of a KV row but the sender's own goes to the others once.
  uint64_t sent = 0;
  for (uint32_t rank = 0; rank < 3; ++rank) sent += cluster.stage(rank).counters().exchanged.bytes;
  EXPECT_EQ(sent, uint64_t{2} * 600 * cluster.shape.layers * cluster.shape.kv_row_bytes);
}

TEST(PrefillSequence, SharedExpertsRunOnTheRankThatOwnsThem) {
  for (const bool share : {false, true}) {
    ClusterOptions options = shared(2, 2);
    options.share_experts = share;
    Cluster cluster(options);
    cluster.await_ready();
    const proto::StartPrefill start = cluster.request(7, 200);
    cluster.start(start);
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                      seconds(30)));
    cluster.expect_arrived(start);
    for (uint32_t node = 0; node < 4; ++node) {
      const experts::ExpertCounters& counted = cluster.stage(node).counters().experts;
      EXPECT_EQ(counted.expert_rows_sent > 50, share) << node;
      EXPECT_EQ(counted.expert_rows_received > 50, share) << node;
      EXPECT_EQ(counted.expert_redispatched, 0u);
    }
  }
}

TEST(PrefillSequence, ACachedPrefixIsLoadedByEveryRankAndShippedOnce) {
  Cluster cluster(shared(2, 2));
  cluster.await_ready();
  proto::StartPrefill first = cluster.request(7, 200);
  first.store = cluster.coordinator().node("store-0");
  cluster.start(first);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(first) && cluster.idle(); },
                                    seconds(60)));
  cluster.expect_arrived(first);
  EXPECT_EQ(cluster.store().index().blocks(), 3u);
  proto::StartPrefill second = cluster.request(8, 250);
  std::copy_n(first.tokens.begin(), 192, second.tokens.begin());
  std::copy_n(first.block_keys.begin(), 3, second.block_keys.begin());
  second.store = first.store;
  second.cached_blocks = 3;
  cluster.start(second);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(second) && cluster.idle(); },
                                    seconds(60)))
      << cluster.sim.recent_log();
  cluster.expect_arrived(second);
  EXPECT_TRUE(cluster.coordinator().failures.empty());
}

TEST(PrefillSequence, ARankThatDiesEndsTheAttemptEverywhere) {
  for (const std::string gone : {"prefill-0", "prefill-1", "prefill-3"}) {
    SCOPED_TRACE(gone);
    Cluster cluster(shared(2, 2));
    cluster.await_ready();
    const proto::StartPrefill start = cluster.request(7, 2000);
    cluster.start(start);
    cluster.sim.run_for(milliseconds(20));
    cluster.sim.kill(gone);
    cluster.sim.run_for(milliseconds(20));  // the others wait for its rows
    cluster.coordinator().declare_dead(gone);
    cluster.sim.run_for(seconds(1));
    ASSERT_EQ(cluster.coordinator().failures.size(), 1u) << cluster.sim.recent_log();
    EXPECT_EQ(cluster.coordinator().failures[0].code, static_cast<uint16_t>(base::Code::kPeerGone));
    for (uint32_t i = 0; i < 4; ++i) {
      if (gone == "prefill-" + std::to_string(i)) continue;
      EXPECT_EQ(cluster.stage(i).ledger(), prefill::Ledger{}) << i;
    }
  }
}

TEST(PrefillSequence, TheNextAttemptRunsWithFewerRanks) {
  Cluster cluster(shared(2, 2));
  cluster.await_ready();
  cluster.start(cluster.request(7, 500));
  cluster.sim.run_for(milliseconds(5));
  cluster.sim.kill("prefill-1");
  cluster.coordinator().declare_dead("prefill-1");
  proto::StartPrefill again = cluster.request(7, 500, 2);
  again.sequence_ranks = 1;
  again.stages = {again.stages[0], again.stages[3]};
  cluster.start(again);
  const auto idle = [&] {
    for (const uint32_t i : {0u, 2u, 3u}) {
      if (cluster.stage(i).ledger() != prefill::Ledger{}) return false;
    }
    return cluster.committed(again);
  };
  // Rank 0 of stage 1 has the former attempt until it hears of the death.
  EXPECT_TRUE(cluster.sim.run_until(idle, seconds(60))) << cluster.sim.recent_log();
  cluster.expect_arrived(again);
}

TEST(PrefillSequence, ACancelFreesEverythingAtAnyMoment) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options = shared(2, 2);
    options.seed = seed;
    options.share_experts = seed % 2 == 0;
    Cluster cluster(options);
    cluster.sim.network().loss = 0.05;
    cluster.sim.network().duplicate = 0.2;
    cluster.sim.network().reorder = 0.2;
    cluster.await_ready();
    const proto::StartPrefill start = cluster.request(7, 500);
    cluster.start(start);
    cluster.sim.run_for(milliseconds(seed % 10) + std::chrono::microseconds(137 * seed));
    cluster.cancel(7, 1);
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(20)))
        << cluster.sim.recent_log();
    cluster.sim.run_for(seconds(3));
    EXPECT_TRUE(cluster.idle());
  }
}

TEST(PrefillSequence, ADeadlineEndsAPassThatWaitsForAnotherRank) {
  Cluster cluster(shared(1, 2));
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 100);
  start.deadline_ms = 500;
  EXPECT_EQ(cluster.start_at(0, start), Outcome::kOk);  // and rank 1 never hears of it
  cluster.sim.run_for(milliseconds(400));
  EXPECT_EQ(cluster.stage(0).ledger().jobs, 1u);
  EXPECT_EQ(cluster.stage(0).ledger().unacknowledged, 1u);
  cluster.sim.run_for(milliseconds(300));
  EXPECT_TRUE(cluster.idle());
  ASSERT_EQ(cluster.coordinator().failures.size(), 1u);
}

TEST(PrefillSequence, ImpossibleChainsAreRefused) {
  Cluster cluster(shared(2, 2));
  cluster.await_ready();
  const proto::StartPrefill good = cluster.request(7, 130);
  std::vector<proto::StartPrefill> bad(3, good);
  bad[0].sequence_ranks = 0;
  bad[1].sequence_ranks = 3;
  bad[2].stages[2] = bad[2].stages[1];
  for (const auto& start : bad) EXPECT_EQ(cluster.start_at(0, start), Outcome::kCorrupt);
  EXPECT_TRUE(cluster.idle());
}

}  // namespace
}  // namespace prefill_test
