// Whole requests through a real coordinator and fake nodes: who is placed when there is no room for
// all.
#include <gtest/gtest.h>

#include <algorithm>

#include "fake_cluster.h"

namespace coordinator {
namespace {

using std::chrono::seconds;

TEST(CoordinatorFlow, AsksAFullClusterOncePerChangeAndNotOncePerRequest) {
  constexpr int kRequests = 300;
  FakeCluster cluster({.max_requests = kRequests});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.stage_jobs = 4;
  for (int i = 0; i < kRequests; ++i) cluster.submit(20, 10);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, kRequests);
  // The first burst, then at most a question per first token and per end.
  EXPECT_LT(cluster.knobs.reserves, 4u * kRequests);
  EXPECT_TRUE(cluster.idle(seconds(1))) << cluster.held();
}

TEST(CoordinatorFlow, PlacesInTheOrderOfAdmissionWhateverTheSize) {
  FakeCluster cluster({.ranks = 1, .stores = 0});
  cluster.knobs.blocks_total = 10;
  ASSERT_TRUE(cluster.wait_ready());
  cluster.submit(500, 50);                             // 9 blocks
  cluster.submit(500, 50);                             // has to wait
  for (int i = 0; i < 4; ++i) cluster.submit(10, 20);  // would fit beside the first
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 6);
  EXPECT_TRUE(std::is_sorted(cluster.knobs.reserved.begin(), cluster.knobs.reserved.end()));
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, PlacesTheLowerPriorityNumberFirstAndTenantsInTurns) {
  FakeCluster cluster({.ranks = 1, .stores = 0});
  cluster.knobs.blocks_total = 10;
  ASSERT_TRUE(cluster.wait_ready());
  const auto submit = [&](int32_t priority, std::string tenant) {
    Submission submission;
    submission.prompt.assign(500, 9);
    submission.sampling.max_tokens = 20;
    submission.sampling.seed = 5;
    submission.has_seed = true;
    submission.priority = priority;
    submission.tenant = std::move(tenant);
    cluster.submit(std::move(submission));
  };
  submit(0, "a");  // takes the rank; the others wait
  submit(0, "a"), submit(0, "a"), submit(0, "b"), submit(-1, "c");
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 5);
  std::vector<uint64_t> order;
  for (const base::RequestId id : cluster.knobs.reserved) order.push_back(id.value & 0xFFFFFFFF);
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 5, 2, 4, 3}));
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

TEST(CoordinatorFlow, GivingWayIsNoFailureHoweverOften) {
  FakeCluster cluster({.ranks = 1});
  ASSERT_TRUE(cluster.wait_ready());
  cluster.knobs.preempt_decodes = 30;  // more than attempts may fail
  cluster.submit(100, 40);
  ASSERT_TRUE(cluster.run_until_ended());
  expect_right(cluster, 1);
  EXPECT_EQ(cluster.ended(0).usage.attempts, 31u);
  EXPECT_EQ(counter(cluster, "preemptions_total"), 30.0);
  EXPECT_EQ(counter(cluster, "resumed_total"), 30.0);
  EXPECT_EQ(counter(cluster, "failovers_total"), 0.0);
  EXPECT_TRUE(cluster.idle(seconds(1)));
}

}  // namespace
}  // namespace coordinator
