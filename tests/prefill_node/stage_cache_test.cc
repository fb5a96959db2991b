#include <gtest/gtest.h>

#include "tests/prefill_node/fixture.h"

namespace prefill_test {
namespace {

using std::chrono::seconds;

// Runs a request that leaves its blocks in the store.
proto::StartPrefill fill_store(Cluster& cluster, uint64_t id, uint32_t count) {
  proto::StartPrefill start = cluster.request(id, count);
  start.store = cluster.coordinator().node("store-0");
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(60)))
      << cluster.sim.recent_log();
  cluster.expect_arrived(start);
  return start;
}

TEST(PrefillCache, FullBlocksReachTheStoreFromAllStages) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  const proto::StartPrefill start = fill_store(cluster, 7, 200);
  EXPECT_EQ(cluster.store().index().blocks(), 3u);
  EXPECT_EQ(cluster.store().index().counters().stored, 3u * cluster.shape.layers);
}

TEST(PrefillCache, ACachedPrefixGivesTheSameKvAndTheSameToken) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options;
    options.seed = seed;
    Cluster cluster(options);
    cluster.await_ready();
    const auto blocks = static_cast<uint32_t>(4 * seed - 3);  // up to two fetches a layer
    const proto::StartPrefill first = fill_store(cluster, 7, 64 * blocks + 5);
    if (seed % 2 == 0) {
      cluster.sim.network().loss = 0.05;
      cluster.sim.network().duplicate = 0.1;
      cluster.sim.network().reorder = 0.2;
    }
    const uint64_t computed = cluster.stage(0).counters().tokens;
    proto::StartPrefill second = cluster.request(8, 64 * blocks + 50);
    std::copy_n(first.tokens.begin(), 64 * blocks, second.tokens.begin());
    std::copy_n(first.block_keys.begin(), blocks, second.block_keys.begin());
    second.store = first.store;
    second.cached_blocks = blocks;
    cluster.start(second);
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(second) && cluster.idle(); },
                                      seconds(60)))
        << cluster.sim.recent_log();
    cluster.expect_arrived(second);
    EXPECT_EQ(cluster.stage(0).counters().tokens - computed, 50u);
    EXPECT_TRUE(cluster.coordinator().failures.empty());
  }
}

TEST(PrefillCache, AMissFailsTheAttemptWithoutCache) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 200);
  start.store = cluster.coordinator().node("store-0");
  start.cached_blocks = 2;  // never stored
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.coordinator().failures.size() == 1; },
                                    seconds(10)));
  EXPECT_TRUE(cluster.coordinator().failures[0].without_cache);
  cluster.cancel(7, 1);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(10)));
  EXPECT_FALSE(cluster.committed(start));
}

TEST(PrefillCache, AStoreThatIsGoneFailsTheAttemptWithoutCache) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 200);
  start.store = cluster.coordinator().node("store-0");
  start.cached_blocks = 2;
  cluster.sim.kill("store-0");
  cluster.start(start);
  EXPECT_TRUE(
      cluster.sim.run_until([&] { return !cluster.coordinator().failures.empty(); }, seconds(10)));
  EXPECT_TRUE(cluster.coordinator().failures[0].without_cache);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(10)));
}

TEST(PrefillCache, ADeadStoreDelaysNoRequest) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 200);
  start.store = cluster.coordinator().node("store-0");
  cluster.sim.kill("store-0");
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start); },
                                    cluster.sim.now().time_since_epoch() + seconds(1)));
  cluster.expect_arrived(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(20)));
}

}  // namespace
}  // namespace prefill_test
