#include "prefill_node/chunk_scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/rng.h"

namespace {

using prefill::ChunkScheduler;
using prefill::JobKey;

JobKey key(uint64_t request) { return {{request}, 1}; }
const auto kAll = [](const JobKey&) { return std::optional<uint64_t>(1); };

TEST(ChunkScheduler, JobsTakeTurns) {
  ChunkScheduler scheduler;
  for (const uint64_t request : {1, 2, 3}) scheduler.add(key(request));
  for (const uint64_t request : {1, 2, 3, 1, 2, 3}) EXPECT_EQ(scheduler.next(kAll), key(request));
}

TEST(ChunkScheduler, AJobThatCannotRunKeepsItsPlace) {
  ChunkScheduler scheduler;
  for (const uint64_t request : {1, 2, 3}) scheduler.add(key(request));
  const auto not_one = [](const JobKey& k) {
    return k == key(1) ? std::nullopt : std::optional<uint64_t>(1);
  };
  EXPECT_EQ(scheduler.next(not_one), key(2));
  EXPECT_EQ(scheduler.next(not_one), key(3));
  EXPECT_EQ(scheduler.next(kAll), key(1));
  EXPECT_EQ(scheduler.next(kAll), key(2));
}

TEST(ChunkScheduler, WithNothingToRunThereIsNoTurn) {
  ChunkScheduler scheduler;
  EXPECT_EQ(scheduler.next(kAll), std::nullopt);
  scheduler.add(key(1));
  EXPECT_EQ(scheduler.next([](const JobKey&) { return std::optional<uint64_t>(); }), std::nullopt);
  scheduler.remove(key(1));
  scheduler.remove(key(1));
  EXPECT_EQ(scheduler.next(kAll), std::nullopt);
  EXPECT_EQ(scheduler.size(), 0u);
}

TEST(ChunkScheduler, AShortPromptGoesBeforeTheNextChunksOfLongOnes) {
  ChunkScheduler scheduler;
  const auto cost = [](const JobKey& k) { return std::optional<uint64_t>(k == key(9) ? 10 : 100); };
  for (const uint64_t request : {1, 2, 3}) scheduler.add(key(request));
  for (int turn = 0; turn < 8; ++turn) scheduler.next(cost);
  scheduler.add(key(9));
  EXPECT_EQ(scheduler.next(cost), key(9));
}

TEST(ChunkScheduler, EachGetsTheSameShareOfCostWhateverItsChunks) {
  ChunkScheduler scheduler;
  std::map<JobKey, uint64_t> had;
  const auto cost = [](const JobKey& k) { return std::optional<uint64_t>(7 * k.request.value); };
  for (const uint64_t request : {1, 4, 20}) scheduler.add(key(request));
  for (int turn = 0; turn < 20'000; ++turn) {
    const JobKey next = *scheduler.next(cost);
    had[next] += *cost(next);
    uint64_t least = UINT64_MAX, most = 0;
    for (const uint64_t request : {1, 4, 20}) {
      least = std::min(least, had[key(request)]);
      most = std::max(most, had[key(request)]);
    }
    ASSERT_LE(most - least, 3u * 7 * 20) << "turn " << turn;
  }
}

TEST(ChunkScheduler, WhoWaitedForItsInputGoesFirstOnceAndHasSavedNothing) {
  ChunkScheduler scheduler;
  bool there = false;
  const auto cost = [&there](const JobKey& k) {
    return k == key(1) && !there ? std::nullopt : std::optional<uint64_t>(5);
  };
  for (const uint64_t request : {1, 2}) scheduler.add(key(request));
  for (int turn = 0; turn < 50; ++turn) EXPECT_EQ(scheduler.next(cost), key(2));
  there = true;
  for (const uint64_t request : {1, 2, 1, 2}) EXPECT_EQ(scheduler.next(cost), key(request));
}

TEST(ChunkScheduler, ShortPromptsWithoutEndDoNotStarveALongOne) {
  ChunkScheduler scheduler;
  const auto cost = [](const JobKey& k) { return std::optional<uint64_t>(k == key(1) ? 100 : 10); };
  scheduler.add(key(1));
  uint32_t turns = 0;
  for (uint64_t request = 2; request < 1002; ++request) {
    scheduler.add(key(request));
    const JobKey next = *scheduler.next(cost);
    if (next == key(1)) ++turns;
    if (next != key(1)) scheduler.remove(next);
  }
  EXPECT_GE(turns, 10u);
}

TEST(ChunkScheduler, NobodyWaitsLongerThanOneRound) {
  base::Rng rng(1);
  ChunkScheduler scheduler;
  std::map<JobKey, size_t> waited;  // turns of others since its own, while it could run
  for (int step = 0; step < 5000; ++step) {
    if (waited.size() < 20 && rng.chance(0.2)) {
      const JobKey added = key(static_cast<uint64_t>(step) + 100);
      scheduler.add(added);
      waited[added] = 0;
    }
    if (!waited.empty() && rng.chance(0.1)) {
      const JobKey removed = waited.begin()->first;
      scheduler.remove(removed);
      waited.erase(removed);
    }
    const auto got = scheduler.next(kAll);
    ASSERT_EQ(got.has_value(), !waited.empty());
    if (!got) continue;
    for (auto& [k, turns] : waited) ASSERT_LE(++turns, 20u);
    waited[*got] = 0;
  }
}

}  // namespace
