#include <gtest/gtest.h>

#include <map>

#include "tests/kvstore/store_on_host.h"

namespace kvstore_test {
namespace {

class KvstoreActorTest : public testing::Test, protected StoreOnHost {};

TEST_F(KvstoreActorTest, WhatWasPutIsFoundAndFetchedUnderLossAndDoubles) {
  sim.network().loss = 0.2;
  sim.network().duplicate = 0.2;
  for (const uint32_t block : {1u, 2u}) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) EXPECT_EQ(put(block, layer), Outcome::kOk);
  }
  EXPECT_EQ(call<proto::PrefixFound>(lookup_of(1, 1, {1, 2, 3}))->blocks, 2u);
  const auto data = call<proto::KvData>(fetch_of({1, 2}, 1));
  ASSERT_EQ(data->outcome, Outcome::kOk);
  ASSERT_EQ(data.blobs.size(), 2u);
  EXPECT_EQ(base::hash128(data.blobs[1].view()), put_of(2, 1).digest);
  EXPECT_EQ(data->digests[1], put_of(2, 1).digest);
  EXPECT_EQ(call<proto::KvData>(fetch_of({9}, 1))->outcome, Outcome::kMissing);
}

TEST_F(KvstoreActorTest, LeasesEndByReleaseByTimeAndWithTheLife) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) put(1, layer);
  uint32_t attempt = 0;
  const auto lease = [&] { call<proto::PrefixFound>(lookup_of(1, ++attempt, {1}, 2000)); };
  lease();
  EXPECT_EQ(store().index().leases(), 1u);
  proto::ReleaseLease release;
  release.request = {1};
  release.attempt = 1;
  call<proto::Done>(release);
  EXPECT_EQ(store().index().leases(), 0u);
  lease();
  sim.run_for(milliseconds(1500));
  EXPECT_EQ(store().index().leases(), 1u);
  sim.run_for(milliseconds(1500));
  EXPECT_EQ(store().index().leases(), 0u);
  lease();
  caller().alive = false;  // the store hears that it was declared dead
  EXPECT_TRUE(
      sim.run_until([&] { return caller().alive; }, sim.now().time_since_epoch() + seconds(5)));
  EXPECT_EQ(store().index().leases(), 0u);
  EXPECT_EQ(store().index().blocks(), 1u);  // what it knows is still true
}

TEST_F(KvstoreActorTest, HeartbeatsCarryTheLedger) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) put(1, layer);
  call<proto::PrefixFound>(lookup_of(1, 1, {1, 2}, 60'000));
  sim.run_for(milliseconds(200));
  std::map<std::string, double> counters(caller().beat.counters.begin(),
                                         caller().beat.counters.end());
  EXPECT_EQ(counters["kvstore_blocks"], 1);
  EXPECT_EQ(counters["kvstore_leases"], 1);
  EXPECT_EQ(counters["kvstore_hits_total"], 1);
  EXPECT_EQ(counters["kvstore_misses_total"], 1);
  EXPECT_EQ(counters["kvstore_bytes"], static_cast<double>(block_cost()));
}

TEST_F(KvstoreActorTest, APutWithoutItsBlobIsCorruptAndAHugeFetchIsMissing) {
  EXPECT_EQ(call<proto::Done>(put_of(1, 0))->outcome, Outcome::kCorrupt);
  EXPECT_EQ(call<proto::KvData>(fetch_of(std::vector<uint32_t>(1000, 1), 0))->outcome,
            Outcome::kMissing);
}

}  // namespace
}  // namespace kvstore_test
