#include <gtest/gtest.h>

#include "tests/prefill_node/fixture.h"

namespace prefill_test {
namespace {

using proto::Outcome;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(PrefillStage, OneStageShipsAllKvAndTheFirstToken) {
  ClusterOptions options;
  options.stages = 1;
  Cluster cluster(options);
  cluster.await_ready();
  const proto::StartPrefill start = cluster.request(7, 100);
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(30)));
  cluster.expect_arrived(start);
  EXPECT_EQ(cluster.stage(0).counters().chunks, 4u);
  EXPECT_EQ(cluster.sim.error_logs(), 0u);
}

TEST(PrefillStage, PromptsOfEveryAwkwardLengthArrive) {
  ClusterOptions options;
  options.stages = 3;
  Cluster cluster(options);
  cluster.await_ready();
  std::vector<proto::StartPrefill> all;
  for (const uint32_t count : {1u, 2u, 31u, 32u, 33u, 63u, 64u, 65u, 200u})
    all.push_back(cluster.request(1000 + count, count));
  for (const auto& start : all) cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until(
      [&] {
        return std::ranges::all_of(all, [&](auto& s) { return cluster.committed(s); }) &&
               cluster.idle();
      },
      seconds(60)));
  for (const auto& start : all) cluster.expect_arrived(start);
}

TEST(PrefillStage, WithLossDoublesAndReorderingEverythingArrivesOnce) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options;
    options.seed = seed;
    options.passes = 1 + seed % 2;
    Cluster cluster(options);
    cluster.sim.network().loss = 0.1;
    cluster.sim.network().duplicate = 0.1;
    cluster.sim.network().reorder = 0.1;
    cluster.await_ready();
    std::vector<proto::StartPrefill> all;
    for (uint64_t id = 1; id <= 6; ++id)
      all.push_back(cluster.request(id, static_cast<uint32_t>(20 + 37 * id)));
    for (const auto& start : all) cluster.start(start);
    EXPECT_TRUE(cluster.sim.run_until(
        [&] {
          return std::ranges::all_of(all, [&](auto& s) { return cluster.committed(s); }) &&
                 cluster.idle();
        },
        seconds(120)))
        << cluster.sim.recent_log();
    for (const auto& start : all) cluster.expect_arrived(start);
    EXPECT_EQ(cluster.decode().conflicts, 0u);
    EXPECT_TRUE(cluster.coordinator().failures.empty());
    cluster.sim.run_for(seconds(2));  // late doubles wake nothing
    EXPECT_TRUE(cluster.idle());
  }
}

TEST(PrefillStage, EqualSeedsGiveEqualTraces) {
  const auto trace = [] {
    Cluster cluster(ClusterOptions{});
    cluster.sim.network().loss = 0.1;
    cluster.await_ready();
    const proto::StartPrefill start = cluster.request(7, 150);
    cluster.start(start);
    cluster.sim.run_for(seconds(5));
    return cluster.sim.trace_hash();
  };
  EXPECT_EQ(trace(), trace());
}

TEST(PrefillStage, AShortPromptDoesNotWaitForTheWholeOfALongOne) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  const proto::StartPrefill long_one = cluster.request(1, 2000);
  const proto::StartPrefill short_one = cluster.request(2, 40);
  cluster.start(long_one);
  cluster.sim.run_for(milliseconds(2));
  cluster.start(short_one);
  EXPECT_TRUE(cluster.sim.run_until(
      [&] { return cluster.committed(long_one) && cluster.committed(short_one); }, seconds(60)));
  EXPECT_LT(cluster.decode().commit_order[2], cluster.decode().commit_order[1]);
}

TEST(PrefillStage, ADoubledStartIsOkAndStartsNothing) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  const proto::StartPrefill start = cluster.request(7, 100);
  EXPECT_EQ(cluster.start_at(0, start), Outcome::kOk);
  EXPECT_EQ(cluster.start_at(0, start), Outcome::kOk);
  EXPECT_EQ(cluster.stage(0).ledger().jobs, 1u);
  EXPECT_EQ(cluster.start_at(1, start), Outcome::kOk);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(30)));
  EXPECT_EQ(cluster.start_at(0, start), Outcome::kOk);  // long done
  EXPECT_TRUE(cluster.idle());
}

TEST(PrefillStage, AHigherAttemptDropsLowerOnesAndFencesThem) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  EXPECT_EQ(cluster.start_at(1, cluster.request(7, 100, 1)), Outcome::kOk);
  const proto::StartPrefill second = cluster.request(7, 130, 2);
  EXPECT_EQ(cluster.start_at(1, second), Outcome::kOk);
  EXPECT_EQ(cluster.stage(1).ledger().jobs, 1u);
  EXPECT_EQ(cluster.stage(1).ledger().blocks_used, 3u);
  EXPECT_EQ(cluster.start_at(1, cluster.request(7, 100, 1)), Outcome::kStale);
  EXPECT_EQ(cluster.start_at(0, second), Outcome::kOk);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(second) && cluster.idle(); },
                                    seconds(30)));
  cluster.expect_arrived(second);
}

TEST(PrefillStage, WithoutRoomNothingIsKept) {
  ClusterOptions options;
  options.jobs = 2;
  options.kv_bytes = 10ull * 64 * 16 * 2;  // ten blocks of two layers
  Cluster cluster(options);
  cluster.await_ready();
  // Stage 1 only: nothing arrives there, so nothing ends.
  EXPECT_EQ(cluster.start_at(1, cluster.request(1, 64 * 11)), Outcome::kNoRoom);
  EXPECT_EQ(cluster.stage(1).ledger(), prefill::Ledger{});
  EXPECT_EQ(cluster.start_at(1, cluster.request(2, 64 * 8)), Outcome::kOk);
  EXPECT_EQ(cluster.start_at(1, cluster.request(3, 64 * 3)), Outcome::kNoRoom);
  EXPECT_EQ(cluster.start_at(1, cluster.request(4, 64)), Outcome::kOk);
  EXPECT_EQ(cluster.start_at(1, cluster.request(5, 64)), Outcome::kNoRoom);  // two jobs
  EXPECT_EQ(cluster.stage(1).ledger().jobs, 2u);
  EXPECT_EQ(cluster.stage(1).ledger().blocks_used, 9u);
}

TEST(PrefillStage, ImplausibleValuesAreRefused) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  const proto::StartPrefill good = cluster.request(7, 130);
  std::vector<proto::StartPrefill> bad(6, good);
  bad[0].tokens.clear();
  bad[1].tokens[5] = cluster.shape.vocab;
  bad[2].prompt_tokens = 131;
  bad[3].cached_blocks = 3;
  bad[4].cached_blocks = 2;  // no store
  bad[5].decode = {};
  for (const auto& start : bad) EXPECT_EQ(cluster.start_at(0, start), Outcome::kCorrupt);
  proto::StartPrefill elsewhere = good;
  elsewhere.stages = {{12345}, good.stages[1]};
  Outcome outcome = Outcome::kMissing;
  cluster.coordinator().ask(good.stages[0], proto::kPrefill, elsewhere, &outcome);
  cluster.sim.run_for(seconds(1));
  EXPECT_EQ(outcome, Outcome::kCorrupt);
  EXPECT_TRUE(cluster.idle());
}

TEST(PrefillStage, EmittedTokensOfEarlierAttemptsCountAsEmitted) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 90, 3);
  start.prompt_tokens = 80;
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start); }, seconds(30)));
  cluster.expect_arrived(start);
}

}  // namespace
}  // namespace prefill_test
