// What the last stage does for a model that drafts: its block's KV goes the way of every layer's.
#include <gtest/gtest.h>

#include "tests/prefill_node/fixture.h"

namespace prefill_test {
namespace {

using std::chrono::seconds;

ClusterOptions drafting(uint32_t stages, uint32_t ranks) {
  ClusterOptions options;
  options.stages = stages;
  options.sequence_ranks = ranks;
  options.mtp_steps = 3;
  return options;
}

void run(Cluster& cluster, const proto::StartPrefill& start) {
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(120)))
      << cluster.sim.recent_log();
  cluster.expect_arrived(start);
}

TEST(PrefillDrafts, TheBlocksKvAndTheLastHiddenRowArriveFromAnyShapeOfCluster) {
  for (const uint32_t stages : {1u, 2u, 3u}) {
    for (const uint32_t ranks : {1u, 2u, 3u}) {
      SCOPED_TRACE(std::to_string(stages) + " stages of " + std::to_string(ranks));
      ClusterOptions options = drafting(stages, ranks);
      options.chunk_tokens = 7 * ranks + stages;
      options.dynamic_chunks = ranks == 2;
      Cluster cluster(options);
      cluster.await_ready();
      for (const uint32_t count : {1u, 2u, 63u, 64u, 65u, 200u})
        run(cluster, cluster.request(count, count));
      EXPECT_TRUE(cluster.coordinator().failures.empty());
    }
  }
}

TEST(PrefillDrafts, ALossyNetworkChangesNoRow) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options = drafting(2, 1 + seed % 2);
    options.seed = seed;
    Cluster cluster(options);
    cluster.await_ready();
    cluster.sim.network().loss = 0.1;
    cluster.sim.network().duplicate = 0.1;
    cluster.sim.network().reorder = 0.2;
    cluster.decode().corrupt_first = 5;
    run(cluster, cluster.request(7, 150));
    EXPECT_EQ(cluster.decode().conflicts, 0u);
  }
}

TEST(PrefillDrafts, ACachedPrefixBringsTheBlocksKvAndOneTokenIsComputedAgain) {
  for (const uint32_t ranks : {1u, 2u}) {
    for (const uint32_t blocks : {1u, 3u, 17u}) {
      for (const uint32_t more : {1u, 40u, 64u}) {
        SCOPED_TRACE(std::to_string(blocks) + " blocks and " + std::to_string(more));
        ClusterOptions options = drafting(2, ranks);
        options.chunk_tokens = blocks == 3 ? 1 : 32;
        if (ranks == 2) options.chunk_tokens = 16;
        Cluster cluster(options);
        cluster.await_ready();
        proto::StartPrefill first = cluster.request(7, 64 * blocks + 5);
        first.store = cluster.coordinator().node("store-0");
        run(cluster, first);
        EXPECT_EQ(cluster.store().index().counters().stored, blocks * cluster.shape.kv_layers());

        const uint64_t computed = cluster.stage(0).counters().tokens;
        proto::StartPrefill second = cluster.request(8, 64 * blocks + more);
        std::copy_n(first.tokens.begin(), 64 * blocks, second.tokens.begin());
        Cluster::name_blocks(second);
        second.store = first.store;
        second.cached_blocks = blocks;
        run(cluster, second);
        if (ranks == 1) {
          EXPECT_EQ(cluster.stage(0).counters().tokens - computed, more + 1);
        }
        EXPECT_TRUE(cluster.coordinator().failures.empty());
      }
    }
  }
}

}  // namespace
}  // namespace prefill_test
