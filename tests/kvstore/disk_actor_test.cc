// A store with a disk on the simulated host: what survives a kill, and what a bad disk costs.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/kvstore/store_on_host.h"

namespace kvstore_test {
namespace {

constexpr size_t kRows = 4096;

kvstore::IndexLimits small_ram() {
  kvstore::IndexLimits limits;
  limits.bytes = 128u << 10;  // some nine blocks
  limits.disk_bytes = 64u << 20;
  return limits;
}

class DiskActorTest : public testing::Test {
 protected:
  void put_block(StoreOnHost& store, uint32_t block) {
    for (uint32_t layer = 0; layer < kLayers; ++layer)
      EXPECT_EQ(store.put(block, layer, kRows), Outcome::kOk);
  }
  // Whether the rows came; wrong ones fail the test.
  bool fetch(StoreOnHost& store, uint32_t block, uint32_t layer) {
    const proto::FetchKv asked = fetch_of({block}, layer);
    const auto data = store.call<proto::KvData>(asked);
    if (data->outcome != Outcome::kOk) return false;
    EXPECT_TRUE(proto::answers(asked, data.msg, data.blobs));
    EXPECT_TRUE(std::ranges::equal(data.blobs[0].view(), blob_of(block, layer, kRows).view()));
    return true;
  }
  uint32_t fetch_all(StoreOnHost& store, uint32_t blocks) {
    uint32_t came = 0;
    for (uint32_t block = 1; block <= blocks; ++block) {
      for (uint32_t layer = 0; layer < kLayers; ++layer) came += fetch(store, block, layer) ? 1 : 0;
    }
    return came;
  }
  kvstore::SimMedium medium{9};
};

TEST_F(DiskActorTest, ManyTimesTheRamIsServed) {
  StoreOnHost store(&medium, small_ram());
  for (uint32_t block = 1; block <= 40; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  EXPECT_EQ(fetch_all(store, 40), 40 * kLayers);
  EXPECT_GT(store.counter("kvstore_disk_reads_total"), 0);
  EXPECT_EQ(store.counter("kvstore_evictions_total"), 0);
  EXPECT_LE(store.counter("kvstore_bytes"), 128u << 10);
}

TEST_F(DiskActorTest, AfterAKillTheWarmHitRateReturns) {
  StoreOnHost store(&medium, small_ram());
  for (uint32_t block = 1; block <= 40; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  store.kill_and_restart();
  std::vector<uint32_t> all;
  for (uint32_t block = 1; block <= 40; ++block) all.push_back(block);
  EXPECT_EQ(store.call<proto::PrefixFound>(lookup_of(1, 1, all))->blocks, 40u);
  EXPECT_EQ(fetch_all(store, 40), 40 * kLayers);
}

TEST_F(DiskActorTest, AKillAtAnyMomentLeavesOnlyWholeBlocks) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    kvstore::SimMedium platter(seed);
    StoreOnHost store(&platter, small_ram(), seed);
    for (uint32_t block = 1; block <= 10 + seed; ++block) put_block(store, block);
    store.sim.run_for(std::chrono::microseconds(20 * seed));
    store.kill_and_restart();
    const uint32_t came = fetch_all(store, 40);
    EXPECT_EQ(came % kLayers, 0u);
    EXPECT_EQ(came, store.store().index().disk_blocks() * kLayers);
    EXPECT_EQ(store.store().index().counters().corrupt, 0u);
  }
}

TEST_F(DiskActorTest, AFullDiskCostsHitsOnly) {
  StoreOnHost store(&medium, small_ram());
  medium.faults.capacity = 40'000;
  for (uint32_t block = 1; block <= 40; ++block) {
    put_block(store, block);
    EXPECT_TRUE(fetch(store, block, 0));
  }
  EXPECT_GT(store.counter("kvstore_disk_write_errors_total"), 0);
  medium.faults.capacity = UINT64_MAX;
  store.sim.run_for(seconds(60));
  for (uint32_t block = 41; block <= 50; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  EXPECT_EQ(store.store().index().disk_blocks() > 10, true);
}

TEST_F(DiskActorTest, ADiskThatCannotBeOpenedLeavesAStoreInRamAndIsTriedAgain) {
  medium.faults.will_not_open = true;
  StoreOnHost store(&medium, small_ram());
  put_block(store, 1);
  EXPECT_TRUE(fetch(store, 1, 0));
  EXPECT_EQ(store.counter("kvstore_disk_open"), 0);
  medium.faults.will_not_open = false;
  store.sim.run_for(seconds(60));
  EXPECT_EQ(store.counter("kvstore_disk_open"), 1);
  put_block(store, 2);
  store.sim.run_for(seconds(1));
  EXPECT_EQ(store.store().index().disk_blocks(), 2u);
}

TEST_F(DiskActorTest, ADiskThatRefusesAgainAndAgainIsOpenedAnew) {
  StoreOnHost store(&medium, small_ram());
  for (uint32_t block = 1; block <= 20; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  medium.faults.write_error = 1;
  put_block(store, 21);
  store.sim.run_for(seconds(10));
  EXPECT_GT(store.counter("kvstore_disk_reopened_total"), 0);
  EXPECT_TRUE(fetch(store, 21, 0));  // in RAM only
  medium.faults.write_error = 0;
  store.sim.run_for(seconds(60));
  EXPECT_EQ(store.store().index().disk_blocks(), 21u);
  EXPECT_EQ(fetch_all(store, 21), 21 * kLayers);
}

// Better a miss than silence: a stage gives an attempt up after 2 s without an answer.
TEST_F(DiskActorTest, ADiskThatHangsIsAMissWithinASecond) {
  StoreOnHost store(&medium, small_ram());
  for (uint32_t block = 1; block <= 20; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  medium.faults.slow = 1;
  medium.faults.slow_most = seconds(100);
  uint32_t misses = 0;
  for (uint32_t block = 1; block <= 5; ++block) {
    const base::Time asked = store.sim.now();
    misses += fetch(store, block, 0) ? 0 : 1;
    EXPECT_LE(store.sim.now() - asked, milliseconds(1100));
  }
  EXPECT_GT(misses, 0u);
  EXPECT_GT(store.counter("kvstore_disk_slow_reads_total"), 0);
  EXPECT_TRUE(fetch(store, 20, 0));  // what is in RAM needs no disk
}

TEST_F(DiskActorTest, ARepeatedFetchIsAnsweredOnceAndReadOnce) {
  StoreOnHost store(&medium, small_ram());
  for (uint32_t block = 1; block <= 20; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  medium.faults.slow = 1;
  medium.faults.slow_most = milliseconds(900);
  const uint64_t reads = medium.reads;
  EXPECT_TRUE(fetch(store, 1, 0));  // the call repeats every 50 ms
  EXPECT_EQ(medium.reads, reads + 1);
}

TEST_F(DiskActorTest, DamageOnDiskIsFoundByTheScrubWhileNobodyAsks) {
  kvstore::IndexLimits roomy;
  roomy.disk_bytes = 64u << 20;
  StoreOnHost store(&medium, roomy);
  for (uint32_t block = 1; block <= 30; ++block) put_block(store, block);
  store.sim.run_for(seconds(1));
  for (auto& [name, value] : medium.values) value[5] ^= 16;
  store.sim.run_for(std::chrono::minutes(50));
  const double half = store.counter("kvstore_corrupt_total");
  EXPECT_GT(half, 10);  // half of the blocks; a block goes with its first bad entry
  EXPECT_LT(half, 30 * kLayers);
  store.sim.run_for(std::chrono::minutes(70));
  EXPECT_EQ(store.store().index().disk_blocks(), 30u);  // written anew from RAM, where all is well
  EXPECT_EQ(fetch_all(store, 30), 30 * kLayers);
}

// Garbage counts: a disk that does not give room back is not filled beyond its limit.
TEST_F(DiskActorTest, TheDeviceIsNeverFilledBeyondTheLimit) {
  kvstore::IndexLimits limits = small_ram();
  limits.disk_bytes = 400'000;
  StoreOnHost store(&medium, limits);
  medium.faults.hoards = true;
  for (uint32_t block = 1; block <= 200; ++block) {
    put_block(store, block);
    store.sim.run_for(milliseconds(300));
    ASSERT_LE(medium.bytes + medium.garbage, 400'000u + 2 * kLayers * kRows);
  }
  EXPECT_GT(medium.garbage, 50'000u);
  const uint64_t written = store.store().disk().counters().written;
  medium.faults.hoards = false;
  store.sim.run_for(seconds(2));
  put_block(store, 201);
  store.sim.run_for(seconds(2));
  EXPECT_GT(store.store().disk().counters().written, written);
}

// Fault row R34 with every fault at once, over lives: nothing wrong is served, nobody waits.
TEST_F(DiskActorTest, UnderEveryDiskFaultRequestsAreAnsweredRightly) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    kvstore::SimMedium platter(seed);
    platter.faults = {0.2, 0.1, 0.05, 0.05, 0.05, 0.1};
    StoreOnHost store(&platter, small_ram(), seed);
    uint32_t came = 0;
    for (uint32_t round = 0; round < 4; ++round) {
      for (uint32_t block = 1; block <= 25; ++block) put_block(store, block);
      store.sim.run_for(seconds(1));
      came += fetch_all(store, 25);
      if (round % 2 == 1) store.kill_and_restart();
    }
    EXPECT_GT(came, 100u);
    EXPECT_GT(platter.injected, 0u);
    EXPECT_EQ(store.sim.error_logs(), 0u);
  }
}

}  // namespace
}  // namespace kvstore_test
