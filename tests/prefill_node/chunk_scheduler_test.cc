#include "prefill_node/chunk_scheduler.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"

namespace {

using prefill::ChunkScheduler;
using prefill::JobKey;

JobKey key(uint64_t request) { return {{request}, 1}; }
const auto kAll = [](const JobKey&) { return true; };

TEST(ChunkScheduler, JobsTakeTurns) {
  ChunkScheduler scheduler;
  for (const uint64_t request : {1, 2, 3}) scheduler.add(key(request));
  for (const uint64_t request : {1, 2, 3, 1, 2, 3}) EXPECT_EQ(scheduler.next(kAll), key(request));
}

TEST(ChunkScheduler, AJobThatCannotRunKeepsItsPlace) {
  ChunkScheduler scheduler;
  for (const uint64_t request : {1, 2, 3}) scheduler.add(key(request));
  const auto not_one = [](const JobKey& k) { return k != key(1); };
  EXPECT_EQ(scheduler.next(not_one), key(2));
  EXPECT_EQ(scheduler.next(not_one), key(3));
  EXPECT_EQ(scheduler.next(kAll), key(1));
  EXPECT_EQ(scheduler.next(kAll), key(2));
}

TEST(ChunkScheduler, WithNothingToRunThereIsNoTurn) {
  ChunkScheduler scheduler;
  EXPECT_EQ(scheduler.next(kAll), std::nullopt);
  scheduler.add(key(1));
  EXPECT_EQ(scheduler.next([](const JobKey&) { return false; }), std::nullopt);
  scheduler.remove(key(1));
  scheduler.remove(key(1));
  EXPECT_EQ(scheduler.next(kAll), std::nullopt);
  EXPECT_EQ(scheduler.size(), 0u);
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
