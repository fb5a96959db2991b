// Blocks that the decode rank has already: their rows are computed, or loaded, and stay here.
#include <gtest/gtest.h>

#include "model/draft_slots.h"
#include "tests/prefill_node/fixture.h"

namespace prefill_test {
namespace {

using proto::Outcome;
using std::chrono::seconds;

void run(Cluster& cluster, const proto::StartPrefill& start) {
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    cluster.sim.now().time_since_epoch() + seconds(60)))
      << cluster.sim.recent_log();
  cluster.expect_arrived(start);
}

uint64_t rows_sent(Cluster& cluster) {
  uint64_t rows = 0;
  for (uint32_t i = 0; i < cluster.nodes(); ++i) rows += cluster.stage(i).counters().shipped.rows;
  return rows;
}

class HeldBlocks : public ::testing::TestWithParam<uint32_t> {
 protected:
  ClusterOptions options() {
    ClusterOptions made;
    made.mtp_steps = GetParam();
    return made;
  }
};

TEST_P(HeldBlocks, AreNotShippedWhereverChunksEnd) {
  for (const uint32_t chunk : {5u, 48u, 64u, 300u}) {
    ClusterOptions made = options();
    made.chunk_tokens = chunk;
    made.sequence_ranks = chunk == 48 ? 2 : 1;
    Cluster cluster(made);
    cluster.await_ready();
    uint64_t id = 1;
    for (const uint32_t held : {0u, 1u, 3u}) {
      SCOPED_TRACE(fmt::format("chunks of {}, {} held", chunk, held));
      proto::StartPrefill start = cluster.request(++id, 200);
      start.held_blocks = held;
      const uint64_t before = rows_sent(cluster);
      run(cluster, start);
      uint64_t rows = 0;
      for (uint32_t layer = 0; layer < cluster.shape.kv_layers(); ++layer)
        rows += 200 - model::slots_in_blocks(cluster.shape, layer, held);
      EXPECT_EQ(rows_sent(cluster) - before, rows);
    }
    EXPECT_TRUE(cluster.coordinator().failures.empty());
  }
}

TEST_P(HeldBlocks, MayBeAllThereAre) {
  Cluster cluster(options());
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(1, GetParam() > 0 ? 129 : 128);
  start.held_blocks = 2;
  run(cluster, start);
  // A drafting model's layers have one row more, its block none.
  EXPECT_EQ(rows_sent(cluster), GetParam() > 0 ? uint64_t{cluster.shape.layers} : 0);
}

TEST_P(HeldBlocks, AreNotShippedOutOfTheStoreEither) {
  for (const uint32_t held : {1u, 2u, 3u, 4u}) {
    Cluster cluster(options());
    cluster.await_ready();
    proto::StartPrefill first = cluster.request(7, 64 * 3 + 5);
    run(cluster, first);
    proto::StartPrefill second = cluster.request(8, 300);
    std::copy_n(first.tokens.begin(), 64 * 3, second.tokens.begin());
    Cluster::name_blocks(second);
    second.store = cluster.coordinator().node("store-0");
    second.cached_blocks = 3;
    second.held_blocks = held;
    cluster.sim.network().loss = 0.05;
    cluster.sim.network().reorder = 0.2;
    cluster.sim.network().duplicate = 0.2;
    run(cluster, second);
    EXPECT_TRUE(cluster.coordinator().failures.empty());
  }
}

TEST_P(HeldBlocks, BeyondThePromptAreRefused) {
  Cluster cluster(options());
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 128);
  for (const uint32_t held : {3u, 1u << 26, UINT32_MAX}) {
    start.held_blocks = held;
    EXPECT_EQ(cluster.start_at(0, start), Outcome::kCorrupt);
  }
  start.held_blocks = 2;  // the drafting block's last row of them is made of a token behind
  EXPECT_EQ(cluster.start_at(0, start), GetParam() > 0 ? Outcome::kCorrupt : Outcome::kOk);
}

INSTANTIATE_TEST_SUITE_P(WithoutAndWithDrafts, HeldBlocks, ::testing::Values(0u, 3u));

}  // namespace
}  // namespace prefill_test
