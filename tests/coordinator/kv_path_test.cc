// What decode ranks and stages say of the KV between them, and what the coordinator makes of it.
#include <gtest/gtest.h>

#include "fake_cluster.h"

namespace coordinator {
namespace {

using std::chrono::seconds;

TEST(KvPath, TheStagesHearHowManyBlocksTheRankHolds) {
  FakeCluster cluster({});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(200, 5);
  ASSERT_TRUE(cluster.run_until_ended());
  cluster.knobs.held_blocks = 3;
  cluster.submit(200, 5);
  ASSERT_TRUE(cluster.run_until_ended());
  EXPECT_EQ(cluster.knobs.held, (std::vector<uint32_t>{0, 3}));
}

TEST(KvPath, ARankThatAStageReachesSlowlyIsUsedOnlyIfThereIsNoOther) {
  FakeCluster cluster({.ranks = 2});
  ASSERT_TRUE(cluster.wait_ready());
  const auto ranks_of = [&](int requests) {
    std::map<std::string, int> of_rank;
    for (int i = 0; i < requests; ++i) {
      const int number = cluster.submit(100, 20);
      const auto placed = [&] {
        for (const auto& [name, live] : cluster.knobs.sequences)
          if (live > 0) return true;
        return false;
      };
      EXPECT_TRUE(cluster.sim.run_until(placed, cluster.sim.now().time_since_epoch() + seconds(5)));
      for (const auto& [name, live] : cluster.knobs.sequences)
        if (live > 0) ++of_rank[name];
      EXPECT_TRUE(cluster.run_until_ended());
      EXPECT_EQ(cluster.ended(number).usage.attempts, 1u);
    }
    return of_rank;
  };
  EXPECT_EQ(ranks_of(3)["decode-0"], 3);  // the first of equals
  const auto id = [&](const char* name) { return cluster.sim.context(name)->self().node; };
  cluster.knobs.slow_ranks = {id("decode-0")};
  cluster.sim.run_for(seconds(1));
  EXPECT_EQ(ranks_of(3)["decode-1"], 3);
  cluster.knobs.slow_ranks = {id("decode-0"), id("decode-1")};
  cluster.sim.run_for(seconds(1));
  EXPECT_EQ(ranks_of(3)["decode-0"], 3);
  cluster.knobs.slow_ranks = {id("decode-1")};
  cluster.sim.kill("decode-0");
  cluster.sim.run_for(seconds(3));
  EXPECT_EQ(ranks_of(1)["decode-1"], 1);
}

}  // namespace
}  // namespace coordinator
