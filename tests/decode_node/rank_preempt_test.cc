// A rank whose KV runs short, and one that schedules several steps at once.
#include "tests/decode_node/rank_fixture.h"

namespace decode {
namespace {

// 4 layers × 16 bytes × 64 tokens.
constexpr uint64_t kBlock = 4096;

class ScheduleTest : public RankTest {
 protected:
  uint32_t preempted(uint32_t count) {
    uint32_t all = 0;
    for (uint32_t id = 1; id <= count; ++id) all += cluster().request(id).preempted;
    return all;
  }
  // From kReady on.
  double seconds_of(uint32_t id) {
    return base::seconds(cluster().request(id).ended.time_since_epoch() - kReady);
  }
};

TEST_F(ScheduleTest, WhoGivesWayGoesOnLaterWithTheSameTokensAndNobodyWaitsForLong) {
  build({.ranks = 1, .kv_bytes = 10 * kBlock});
  submit_at(kReady, plain_request(1, 40, 300));  // 340 tokens: 6 blocks
  ASSERT_TRUE(run(60s));
  const double alone = seconds_of(1);
  for (const uint32_t steps : {1u, 8u}) {
    SCOPED_TRACE(steps);
    build({.ranks = 1, .kv_bytes = 10 * kBlock, .steps_per_schedule = steps});
    for (uint32_t id = 1; id <= 6; ++id) submit_at(kReady, plain_request(id, 40, 300));
    ASSERT_TRUE(run(60s));
    for (uint32_t id = 1; id <= 6; ++id) {
      expect_oracle_tokens(id);
      EXPECT_TRUE(cluster().request(id).failures.empty());
      EXPECT_LE(seconds_of(id), 10 * alone);
    }
    EXPECT_EQ(cluster().request(1).preempted, 0u);  // the first of all
    EXPECT_GT(preempted(6), 0u);
    EXPECT_EQ(rank(0).counters().preempted, preempted(6));
    expect_idle(1);
  }
}

TEST_F(ScheduleTest, TheLowestPriorityNumberNeverGivesWay) {
  build({.ranks = 1, .kv_bytes = 10 * kBlock});
  for (uint32_t id = 1; id <= 4; ++id) {
    Request request = plain_request(id, 40, 300);
    request.priority = id == 3 ? -1 : 0;
    submit_at(kReady, request);
  }
  ASSERT_TRUE(run(60s));
  for (uint32_t id = 1; id <= 4; ++id) expect_oracle_tokens(id);
  EXPECT_EQ(cluster().request(3).preempted, 0u);
  EXPECT_GT(preempted(4), 0u);
  expect_idle(1);
}

TEST_F(ScheduleTest, NobodyGivesWayWhereAllHaveTheirBlocksFromTheStart) {
  build({.ranks = 1, .kv_bytes = 10 * kBlock});
  for (uint32_t id = 1; id <= 4; ++id) {
    Request request = plain_request(id, 40, 300);
    request.whole = true;
    submit_at(kReady, request);
  }
  ASSERT_TRUE(run(60s));
  for (uint32_t id = 1; id <= 4; ++id) expect_oracle_tokens(id);
  EXPECT_EQ(preempted(4), 0u);
  expect_idle(1);
}

TEST_F(ScheduleTest, SeveralStepsAtOnceGiveTheSameTokensInAsManySteps) {
  uint64_t rows = 0;
  for (const uint32_t steps : {1u, 3u, 8u, 64u}) {
    SCOPED_TRACE(steps);
    build({.ranks = 2, .max_batch = 3, .steps_per_schedule = steps});
    for (const Request& request : mixed_requests(12)) submit_at(kReady, request);
    ASSERT_TRUE(run(60s));
    for (uint32_t id = 1; id <= 12; ++id) expect_oracle_tokens(id);
    const uint64_t all = rank(0).counters().batch_rows + rank(1).counters().batch_rows;
    if (steps == 1) rows = all;
    EXPECT_EQ(all, rows);  // one that has ended has no row in the steps that are left
    expect_idle(2);
  }
}

TEST_F(ScheduleTest, TokensLeaveAfterEachStepThoughManyAreScheduled) {
  build({.ranks = 1, .steps_per_schedule = 64});
  submit_at(kReady, plain_request(1, 20, 64));
  sim->run_until([] { return false; }, kReady);
  size_t seen = 0, moments = 0;
  const auto look = [&] {
    const size_t now = cluster().request(1).emitted.size();
    moments += now > seen;
    seen = now;
    return now == 64;
  };
  sim->run_for(1ms);
  ASSERT_TRUE(sim->run_until(look, 60s));
  EXPECT_GT(moments, 60u);
}

TEST_F(ScheduleTest, ACancelledSequenceHasNoRowInTheStepsThatAreLeft) {
  build({.ranks = 1, .steps_per_schedule = 64});
  submit_at(kReady, plain_request(1, 20, 2000));
  submit_at(kReady, plain_request(2, 20, 200));
  cancel_at(kReady + 60ms, 1);
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(2);
  const size_t first = cluster().request(1).emitted.size();
  EXPECT_GT(first, 5u);
  EXPECT_LE(rank(0).counters().batch_rows, 199u + first + 2);
  expect_idle(1);
}

TEST_F(ScheduleTest, ShortKvManyStepsDraftsLossAndADeathChangeNoToken) {
  oracle.mtp_steps = 3;
  uint32_t all = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    build({.seed = seed,
           .ranks = 2,
           .max_batch = 4,
           .kv_bytes = 16 * 5 * kBlock / 4,  // the drafting block's KV is a fifth layer
           .mtp_steps = seed % 2 == 0 ? 3u : 0u,
           .max_rows = 7,
           .steps_per_schedule = seed % 3 == 0 ? 1u : 8u});
    sim->network().loss = seed % 4 == 0 ? 0.0 : 0.05;
    sim->network().duplicate = sim->network().reorder = 0.05;
    for (uint32_t id = 1; id <= 10; ++id) {
      Request request = plain_request(id, 20 + id * 9, 200 + id * 7);
      request.priority = static_cast<int32_t>(id % 3);
      submit_at(kReady + 2s + id * 3ms, request);
    }
    cancel_at(kReady + 2s + 400ms, 4);
    if (seed % 2 == 1) sim->at(kReady + 2s + seed * 31ms, [this] { sim->kill("decode-1"); });
    sim->run_until([] { return false; }, kReady + 2s + 50ms);
    ASSERT_TRUE(run(300s));
    for (uint32_t id = 1; id <= 10; ++id)
      if (id != 4) expect_oracle_tokens(id);
    all += preempted(10);
    sim->network() = {};
    expect_idle(seed % 2 == 1 ? 1 : 2);
  }
  EXPECT_GT(all, 12u);
}

}  // namespace
}  // namespace decode
