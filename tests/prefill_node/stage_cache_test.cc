#include <gtest/gtest.h>

#include "node/store_sites.h"
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
  // They stand on their root: another tenant's, or another model's, finds nothing.
  proto::LookupPrefix asked;
  asked.request = {1};
  asked.keys = start.block_keys;
  asked.tokens.assign(start.tokens.begin(), start.tokens.begin() + 192);
  asked.parent = start.block_root;
  EXPECT_EQ(cluster.look_up(asked), 3u);
  asked.parent = {9, 9};
  EXPECT_EQ(cluster.look_up(asked), 0u);
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
    Cluster::name_blocks(second);
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

// A request whose first `blocks` blocks are in the store, on a network that brings 16 blocks of a
// layer in some 16 ms.
proto::StartPrefill cached_on_a_slow_wire(Cluster& cluster, uint32_t blocks) {
  const proto::StartPrefill first = fill_store(cluster, 7, 64 * blocks + 5);
  cluster.sim.network().bytes_per_second = 1e6;
  proto::StartPrefill second = cluster.request(8, 64 * blocks + 20);
  std::copy_n(first.tokens.begin(), 64 * blocks, second.tokens.begin());
  Cluster::name_blocks(second);
  second.store = first.store;
  second.cached_blocks = blocks;
  return second;
}

TEST(PrefillCache, AChunkComputesWhileLaterLayersAreLoaded) {
  ClusterOptions options;
  options.stages = 1;
  Cluster cluster(options);
  cluster.await_ready();
  const proto::StartPrefill start = cached_on_a_slow_wire(cluster, 16);
  cluster.start(start);
  const auto computed = [&](uint32_t layer) {
    return cluster.decode().collected[{start.request, start.attempt}].rows.contains(
        {layer, 16 * 64});
  };
  const auto until = [&](const std::function<bool()>& done) {
    return cluster.sim.run_until(done, cluster.sim.now().time_since_epoch() + seconds(10));
  };
  ASSERT_TRUE(until([&] { return computed(1); }));
  EXPECT_GT(cluster.stage(0).ledger().fetching, 0u);  // layer 3 is still on its way
  EXPECT_FALSE(computed(3));
  ASSERT_TRUE(until([&] { return cluster.committed(start) && cluster.idle(); }))
      << cluster.sim.recent_log();
  cluster.expect_arrived(start);
}

TEST(PrefillCache, OthersComputeWhileAPassWaitsForItsLayer) {
  ClusterOptions options;
  options.stages = 1;
  Cluster cluster(options);
  cluster.await_ready();
  const proto::StartPrefill waits = cached_on_a_slow_wire(cluster, 48);
  const proto::StartPrefill other = cluster.request(9, 20);
  cluster.start(waits);
  cluster.sim.run_for(std::chrono::milliseconds(60));  // its first layer is here, the second not
  cluster.start(other);
  const auto until = [&](const std::function<bool()>& done) {
    return cluster.sim.run_until(done, cluster.sim.now().time_since_epoch() + seconds(10));
  };
  ASSERT_TRUE(until([&] { return cluster.committed(other); }));
  EXPECT_GT(cluster.stage(0).ledger().fetching, 0u);
  ASSERT_TRUE(until([&] { return cluster.committed(waits) && cluster.idle(); }));
  cluster.expect_arrived(waits);
  cluster.expect_arrived(other);
}

TEST(PrefillCache, AStoreThatDiesInMidLoadOrACancelEndsAPassThatWaits) {
  for (const bool dies : {true, false}) {
    for (int ms = 25; ms < 150; ms += 13) {
      SCOPED_TRACE(ms);
      ClusterOptions options;
      options.stages = 1;
      Cluster cluster(options);
      cluster.await_ready();
      const proto::StartPrefill start = cached_on_a_slow_wire(cluster, 48);
      cluster.start(start);
      cluster.sim.run_for(std::chrono::milliseconds(ms));
      if (dies) {
        cluster.sim.kill("store-0");
        cluster.coordinator().declare_dead("store-0");
      } else {
        cluster.cancel(8, 1);
      }
      EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); },
                                        cluster.sim.now().time_since_epoch() + seconds(5)))
          << cluster.sim.recent_log();
      EXPECT_EQ(cluster.coordinator().failures.size(), dies ? 1u : 0u);
      EXPECT_FALSE(cluster.committed(start));
    }
  }
}

TEST(PrefillCache, AnAnswerWithAFlippedBitIsAMissAndNotUsed) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    ClusterOptions options;
    options.seed = seed;
    Cluster cluster(options);
    cluster.await_ready();
    proto::StartPrefill start = cached_on_a_slow_wire(cluster, 3);
    cluster.sim.network().corrupt = 1;
    cluster.start(start);
    EXPECT_TRUE(cluster.sim.run_until([&] { return !cluster.coordinator().failures.empty(); },
                                      cluster.sim.now().time_since_epoch() + seconds(5)));
    EXPECT_TRUE(cluster.coordinator().failures[0].without_cache);
    const prefill::JobKey key{start.request, start.attempt};
    EXPECT_TRUE(cluster.decode().collected[key].rows.empty());
  }
}

TEST(PrefillCache, BlocksOfSeveralStoresAreLoadedAndCopiedToWhereTheyBelong) {
  ClusterOptions options;
  options.stores = 2;
  Cluster cluster(options);
  cluster.await_ready();
  const proto::StartPrefill first = fill_store(cluster, 7, 64 * 56 + 5);
  const size_t blocks[] = {cluster.store(0).index().blocks(), cluster.store(1).index().blocks()};
  EXPECT_EQ(blocks[0] + blocks[1], 56u);
  ASSERT_GT(blocks[0], 0u);
  ASSERT_GT(blocks[1], 0u);
  const NodeId stores[] = {cluster.coordinator().node("store-0"),
                           cluster.coordinator().node("store-1")};
  proto::StartPrefill second = cluster.request(8, 64 * 56 + 20);
  std::copy_n(first.tokens.begin(), 64 * 56, second.tokens.begin());
  Cluster::name_blocks(second);
  second.cached_blocks = 56;
  for (size_t group = 0; group < 4; ++group) {
    node::StoreSites sites;
    for (size_t i = 0; i < 2; ++i) sites.add(stores[i], "store-" + std::to_string(i));
    const NodeId at = sites.of(second.block_keys[group * 16]).front();
    second.sources.push_back(at);
    second.copy_to.push_back(at == stores[0] ? stores[1] : NodeId{});
  }
  cluster.start(second);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(second) && cluster.idle(); },
                                    cluster.sim.now().time_since_epoch() + seconds(60)))
      << cluster.sim.recent_log();
  cluster.expect_arrived(second);
  EXPECT_EQ(cluster.store(0).index().blocks(), blocks[0]);
  EXPECT_EQ(cluster.store(1).index().blocks(), 56u);
}

TEST(PrefillCache, PutsOfAStoreThatLeftTheViewAreDroppedAtOnce) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  cluster.sim.kill("store-0");  // nobody knows yet: its puts wait
  const proto::StartPrefill start = cluster.request(7, 3000);
  cluster.start(start);
  const auto until = [&](const std::function<bool()>& done, base::Duration within) {
    return cluster.sim.run_until(done, cluster.sim.now().time_since_epoch() + within);
  };
  ASSERT_TRUE(until([&] { return cluster.committed(start); }, seconds(2)));
  EXPECT_GT(cluster.stage(0).ledger().storing, node::StoreOutbox::kWindow);
  cluster.coordinator().declare_dead("store-0");
  EXPECT_TRUE(until([&] { return cluster.idle(); }, std::chrono::milliseconds(10)));
  const proto::StartPrefill later = cluster.request(8, 3000);  // nothing waits for it any more
  cluster.start(later);
  ASSERT_TRUE(until([&] { return cluster.committed(later); }, seconds(2)));
  EXPECT_EQ(cluster.stage(0).ledger().storing, 0u);
}

}  // namespace
}  // namespace prefill_test
