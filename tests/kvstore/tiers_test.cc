#include "tests/kvstore/tiers.h"

#include <gtest/gtest.h>

#include <set>

namespace kvstore_test {
namespace {

using kvstore::Fetched;
using kvstore::SimMedium;
using proto::Outcome;

bool right(const Fetched& got, uint32_t block, uint32_t layer) {
  return got.outcome == Outcome::kOk && got.blobs.size() == 1 &&
         std::ranges::equal(got.blobs[0].view(), rows_of(block, layer).view());
}

TEST(Tiers, WhatLeavesRamIsReadBackFromDisk) {
  SimMedium medium(1);
  Tiers store(tier_limits(4), medium);
  for (uint32_t block = 1; block <= 10; ++block) {
    put_rows(store.index, block);
    EXPECT_TRUE(store.flush());
  }
  EXPECT_LE(store.index.bytes(), store.index.limits().bytes);
  EXPECT_EQ(store.index.disk_blocks(), 10u);
  EXPECT_EQ(store.index.counters().evictions, 0u);
  EXPECT_GT(store.index.counters().demotions, 0u);
  for (uint32_t block = 1; block <= 10; ++block) {
    for (uint32_t layer = 0; layer < kLayers; ++layer)
      EXPECT_TRUE(right(store.fetch({block}, layer), block, layer)) << block;
  }
  EXPECT_GT(store.index.counters().promotions, 0u);
}

TEST(Tiers, WhatWasReadBackIsInRamAgain) {
  SimMedium medium(1);
  Tiers store(tier_limits(4), medium);
  for (uint32_t block = 1; block <= 10; ++block) {
    put_rows(store.index, block);
    store.flush();
  }
  store.fetch({1}, 2);
  const uint64_t reads = medium.reads;
  EXPECT_TRUE(right(store.fetch({1}, 2), 1, 2));
  EXPECT_EQ(medium.reads, reads);
}

TEST(Tiers, ALookupFindsAPrefixThatIsPartlyOnDisk) {
  SimMedium medium(1);
  Tiers store(tier_limits(4), medium);
  for (uint32_t block = 1; block <= 8; ++block) {
    put_rows(store.index, block);
    store.flush();
  }
  EXPECT_EQ(store.lookup(1, {1, 2, 3, 4, 5, 6, 7, 8, 9}), 8u);
}

TEST(Tiers, ARestartServesAllThatWasWritten) {
  SimMedium medium(1);
  {
    Tiers store(tier_limits(100), medium);
    for (uint32_t block = 1; block <= 5; ++block) put_rows(store.index, block);
    store.flush();
    put_rows(store.index, 6);  // not written yet: lost
  }
  Tiers store(tier_limits(100), medium);
  EXPECT_EQ(store.index.disk_blocks(), 5u);
  EXPECT_EQ(store.lookup(1, {1, 2, 3, 4, 5, 6}), 5u);
  for (uint32_t block = 1; block <= 5; ++block)
    EXPECT_TRUE(right(store.fetch({block}, 1), block, 1));
  put_rows(store.index, 6);
  EXPECT_EQ(store.lookup(2, {1, 2, 3, 4, 5, 6}), 6u);
}

TEST(Tiers, IncompleteBlocksAreNotWritten) {
  SimMedium medium(1);
  Tiers store(tier_limits(100), medium);
  put_row(store.index, 1, 0);
  put_row(store.index, 1, 1);
  EXPECT_TRUE(store.index.next_batch(20'000).empty());
  put_row(store.index, 1, 2);
  EXPECT_EQ(store.index.next_batch(20'000).writes.size(), 1u);
}

TEST(Tiers, TheDiskKeepsItsBudgetAndForgetsTheOldestFirst) {
  SimMedium medium(1);
  kvstore::IndexLimits limits = tier_limits(100);
  {
    Tiers probe(limits, medium);
    put_rows(probe.index, 1);
    probe.flush();
    limits.disk_bytes = 3 * probe.index.disk_bytes();
  }
  medium.values.clear();
  limits.bytes = tier_limits(2).bytes;
  Tiers store(limits, medium);
  for (uint32_t block = 1; block <= 5; ++block) {
    put_rows(store.index, block);
    store.flush();
    EXPECT_LE(store.index.disk_bytes(), limits.disk_bytes);
  }
  EXPECT_EQ(store.index.disk_blocks(), 3u);
  EXPECT_EQ(store.fetch({1}, 0).outcome, Outcome::kMissing);
  EXPECT_TRUE(right(store.fetch({3}, 0), 3, 0));
  EXPECT_EQ(medium.values.size(),
            3u * (kLayers + 1));  // what was evicted is gone from the disk too
}

TEST(Tiers, BookkeepingOfBlocksOnDiskTakesAQuarterOfTheRam) {
  SimMedium medium(1);
  Tiers store(tier_limits(8, 1 << 30), medium);
  for (uint32_t block = 1; block <= 2000; ++block) {
    put_rows(store.index, block);
    store.flush();
    ASSERT_LE(store.index.bytes(), store.index.limits().bytes);
  }
  EXPECT_GT(store.index.disk_blocks(), 20u);
  EXPECT_LT(store.index.disk_blocks(), 80u);
  Tiers again(tier_limits(8, 1 << 30), medium);
  EXPECT_LE(again.index.bytes(), again.index.limits().bytes);
}

TEST(Tiers, ARefusedWriteKeepsTheBlocksInRamAndIsTriedAgain) {
  SimMedium medium(1);
  Tiers store(tier_limits(100), medium);
  for (uint32_t block = 1; block <= 5; ++block) put_rows(store.index, block);
  medium.faults.write_error = 1;
  EXPECT_FALSE(store.flush());
  EXPECT_EQ(store.index.disk_blocks(), 0u);
  EXPECT_EQ(store.index.disk_bytes(), 0u);
  EXPECT_EQ(store.lookup(1, {1, 2, 3, 4, 5}), 5u);
  medium.faults.write_error = 0;
  EXPECT_TRUE(store.flush());
  EXPECT_EQ(store.index.disk_blocks(), 5u);
}

TEST(Tiers, AFullDiskLeavesTheStoreWorkingInRam) {
  SimMedium medium(1);
  Tiers store(tier_limits(4), medium);
  medium.faults.capacity = 30'000;
  for (uint32_t block = 1; block <= 30; ++block) {
    put_rows(store.index, block);
    store.flush();
    EXPECT_TRUE(right(store.fetch({block}, 0), block, 0));
    ASSERT_LE(store.index.bytes(), store.index.limits().bytes);
  }
  EXPECT_LE(medium.bytes, 34'000u);
}

TEST(Tiers, ADamagedEntryOnDiskIsAMissAndTheBlockCanComeAgain) {
  SimMedium medium(1);
  medium.faults.rot = 1;
  {
    Tiers store(tier_limits(100), medium);
    for (uint32_t block = 1; block <= 3; ++block) put_rows(store.index, block);
    store.flush();
  }
  medium.faults.rot = 0;
  Tiers store(tier_limits(100), medium);  // the records rotted as well: nothing is trusted
  EXPECT_EQ(store.lookup(1, {1}), 0u);
  put_rows(store.index, 1);
  store.flush();
  Tiers again(tier_limits(100), medium);
  EXPECT_TRUE(right(again.fetch({1}, 0), 1, 0));
}

TEST(Tiers, OfADamagedRowTheWholeCopyOnDiskIsDropped) {
  SimMedium medium(1);
  {
    Tiers store(tier_limits(100), medium);
    put_rows(store.index, 1);
    store.flush();
  }
  for (auto& [name, value] : medium.values) {
    if (name[0] == 'e' && name.back() == '1') value[17] ^= 2;
  }
  Tiers store(tier_limits(100), medium);
  EXPECT_EQ(store.lookup(1, {1}), 1u);
  EXPECT_TRUE(right(store.fetch({1}, 0), 1, 0));
  EXPECT_EQ(store.fetch({1}, 1).outcome, Outcome::kMissing);
  EXPECT_EQ(store.index.counters().corrupt, 1u);
  EXPECT_EQ(store.lookup(2, {1}), 0u);
  store.flush();
  EXPECT_TRUE(medium.values.empty());
}

TEST(Tiers, ADamagedRowInRamIsReadFromDisk) {
  SimMedium medium(1);
  Tiers store(tier_limits(100), medium);
  put_rows(store.index, 1);
  store.flush();
  flip_bit(store.index, 1, 1, 77);
  EXPECT_TRUE(right(store.fetch({1}, 1), 1, 1));
  EXPECT_EQ(store.index.counters().corrupt, 1u);
  EXPECT_EQ(medium.reads, 1u);
}

// The ABA of faults row R33: between the lookup of an answer and its coming, the block goes and
// comes again.
TEST(Tiers, AReadOfABlockThatWentAndCameAgainChangesNothing) {
  SimMedium medium(1);
  Tiers store(tier_limits(4), medium);
  for (uint32_t block = 1; block <= 8; ++block) {
    put_rows(store.index, block);
    store.flush();
  }
  Fetched late = store.index.fetch(fetch_of({1}, 0));
  ASSERT_EQ(late.reads.size(), 1u);
  store.index.bad(late.reads[0], true);
  EXPECT_EQ(store.index.fetch(fetch_of({1}, 0)).outcome, Outcome::kMissing);
  put_rows(store.index, 1);  // another generation
  const uint64_t bytes = store.index.bytes();
  store.index.came(late.reads[0], rows_of(5, 0).view());
  store.index.bad(late.reads[0], true);
  EXPECT_EQ(store.index.bytes(), bytes);
  EXPECT_TRUE(right(store.fetch({1}, 0), 1, 0));
}

TEST(Tiers, ABlockBeingWrittenStaysInRamUntilItIsWritten) {
  SimMedium medium(1);
  Tiers store(tier_limits(3), medium);
  put_rows(store.index, 1);
  const kvstore::DiskBatch batch = store.index.next_batch(20'000);
  for (uint32_t block = 2; block <= 6; ++block) put_rows(store.index, block);
  EXPECT_TRUE(right(store.index.fetch(fetch_of({1}, 0)), 1, 0));
  ASSERT_TRUE(store.tier->write(batch));
  store.index.wrote(batch, true);
  put_rows(store.index, 7);
  EXPECT_TRUE(right(store.fetch({1}, 0), 1, 0));
}

TEST(Tiers, ALeasedBlockLeavesNeitherTier) {
  SimMedium medium(1);
  kvstore::IndexLimits limits = tier_limits(4, 30'000);
  Tiers store(limits, medium);
  put_rows(store.index, 1);
  store.flush();
  ASSERT_EQ(store.lookup(1, {1}), 1u);
  for (uint32_t block = 2; block <= 40; ++block) {
    put_rows(store.index, block);
    store.flush();
  }
  EXPECT_GT(store.index.counters().disk_evictions, 0u);
  EXPECT_EQ(store.lookup(2, {1}), 1u);
  EXPECT_TRUE(store.index.fetch(fetch_of({1}, 0)).reads.empty());
}

TEST(Tiers, BlocksOfAnotherModelAreDroppedWhenTheNewOneSpeaks) {
  SimMedium medium(1);
  const auto put_in_space = [](kvstore::BlockIndex& index, uint32_t block, uint64_t space) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      proto::PutKv put = put_of(block, layer, kRowBytes);
      put.space = {space, 1};
      index.put(put, rows_of(block, layer));
    }
  };
  {
    Tiers store(tier_limits(100), medium);
    for (uint32_t block = 1; block <= 3; ++block) put_in_space(store.index, block, 1);
    store.flush();
  }
  Tiers store(tier_limits(100), medium);
  EXPECT_EQ(store.index.disk_blocks(), 3u);
  put_in_space(store.index, 4, 2);
  EXPECT_EQ(store.index.blocks(), 1u);
  EXPECT_EQ(store.index.counters().foreign, 3u);
  store.flush();
  EXPECT_EQ(medium.values.size(), kLayers + 1u);
}

TEST(Tiers, TheScrubFindsDamageInBothTiersWithinOneRound) {
  SimMedium medium(1);
  Tiers store(tier_limits(100), medium);
  for (uint32_t block = 1; block <= 20; ++block) put_rows(store.index, block);
  store.flush();
  put_rows(store.index, 30);
  flip_bit(store.index, 30, 1, 5);
  flip_bit(store.index, 7, 2, 5);
  const std::string damaged = medium.values.lower_bound("e")->first;
  medium.values[damaged][9] ^= 1;
  for (int step = 0; step < 7; ++step) {
    Fetched read;
    read.reads = store.index.scrub(3, 1 << 20);
    read.blobs.resize(1);
    store.finish(read);
  }
  EXPECT_EQ(store.index.counters().corrupt, 3u);
  EXPECT_EQ(store.index.counters().scrubbed, 21u * kLayers);
}

// Seeded random use with a disk that does all it should not: nothing wrong is ever served, budgets
// hold, and in the end everything is free.
TEST(Tiers, UnderEveryDiskFaultNothingWrongIsServed) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    base::Rng rng(seed);
    SimMedium medium(seed);
    const auto policies = kvstore::policies();
    kvstore::IndexLimits limits = tier_limits(3 + rng.below(10), 14'000 + rng.below(400'000));
    limits.policy = &policies[rng.below(policies.size())];
    auto store = std::make_unique<Tiers>(limits, medium);
    uint64_t served = 0;
    for (int step = 0; step < 1500; ++step) {
      const auto block = static_cast<uint32_t>(rng.below(40));
      const auto layer = static_cast<uint32_t>(rng.below(kLayers));
      const uint64_t request = 1 + rng.below(5);
      switch (rng.below(10)) {
        case 0:
          medium.faults = {rng.chance(0.3) ? 0.3 : 0, rng.chance(0.3) ? 0.2 : 0,
                           rng.chance(0.3) ? 0.2 : 0, rng.chance(0.3) ? 0.2 : 0,
                           rng.chance(0.3) ? 0.2 : 0};
          medium.faults.capacity = rng.chance(0.2) ? 40'000 : UINT64_MAX;
          break;
        case 1:
        case 2:
          put_rows(store->index, block);
          break;
        case 3:
          put_row(store->index, block, layer);
          break;
        case 4:
          store->flush();
          break;
        case 5:
          store->lookup(request, {block, block + 1, block + 2});
          break;
        case 6:
          store->index.release({request}, 0);
          if (rng.chance(0.1)) store->index.release_all();
          break;
        case 7: {
          Fetched scrub;
          scrub.reads = store->index.scrub(2, 30'000);
          scrub.blobs.resize(1);
          store->finish(scrub);
          break;
        }
        case 8:
          if (rng.chance(0.05)) store = std::make_unique<Tiers>(limits, medium);  // kill -9
          break;
        default: {
          const Fetched got = store->fetch({block}, layer);
          if (got.outcome != Outcome::kOk) break;
          ++served;
          ASSERT_TRUE(right(got, block, layer)) << step;
        }
      }
      ASSERT_LE(store->index.bytes(), limits.bytes) << step;
      ASSERT_LE(store->index.disk_bytes(), limits.disk_bytes) << step;
    }
    store->index.release_all();
    EXPECT_GT(served, 0u);
    EXPECT_EQ(store->index.leases(), 0u);
    medium.faults = {};
    EXPECT_TRUE(store->flush());
  }
}

}  // namespace
}  // namespace kvstore_test
