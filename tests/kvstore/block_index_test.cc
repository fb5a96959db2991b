#include "kvstore/block_index.h"

#include <gtest/gtest.h>

#include "tests/kvstore/blocks.h"

namespace kvstore_test {
namespace {

using kvstore::BlockIndex;
using kvstore::IndexLimits;
using proto::Outcome;

IndexLimits room_for(uint32_t blocks) {
  IndexLimits limits;
  limits.bytes = blocks * block_cost();
  return limits;
}

TEST(BlockIndex, ABlockIsFoundOnlyWhenAllItsLayersAreThere) {
  BlockIndex index{IndexLimits{}};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_EQ(index.lookup(lookup_of(1, 1, {5}), at_ms(0)), 0u);
    EXPECT_EQ(put_entry(index, 5, layer), Outcome::kOk);
  }
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {5}), at_ms(0)), 1u);
  EXPECT_EQ(index.counters().hits, 1u);
  EXPECT_EQ(index.counters().misses, 3u);
}

TEST(BlockIndex, TheFoundPrefixEndsAtTheFirstGap) {
  BlockIndex index{IndexLimits{}};
  for (const uint32_t block : {1u, 2u, 4u}) put_block(index, block);
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {1, 2, 3, 4}), at_ms(0)), 2u);
}

TEST(BlockIndex, OtherTokensUnderAKeyAreNotFoundAndNotReplaced) {
  BlockIndex index{IndexLimits{}};
  put_block(index, 1);
  proto::LookupPrefix asked = lookup_of(1, 1, {1});
  asked.tokens[2] ^= 1;
  EXPECT_EQ(index.lookup(asked, at_ms(0)), 0u);
  proto::PutKv put = put_of(1, 0);
  put.tokens[0] ^= 1;
  EXPECT_EQ(index.put(put, blob_of(1, 0)), Outcome::kNoRoom);
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {1}), at_ms(0)), 1u);
}

TEST(BlockIndex, ALookupWhoseTokensDoNotDivideFindsNothing) {
  BlockIndex index{IndexLimits{}};
  put_block(index, 1);
  proto::LookupPrefix asked = lookup_of(1, 1, {1});
  asked.keys.push_back(key_of(2));
  asked.tokens.push_back(9);
  EXPECT_EQ(index.lookup(asked, at_ms(0)), 0u);
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {}), at_ms(0)), 0u);
}

TEST(BlockIndex, AnEntryComesBackWithItsDigest) {
  BlockIndex index{IndexLimits{}};
  put_block(index, 1);
  put_block(index, 2);
  const kvstore::Fetched got = index.fetch(fetch_of({1, 2}, 2));
  ASSERT_EQ(got.outcome, Outcome::kOk);
  ASSERT_EQ(got.blobs.size(), 2u);
  EXPECT_EQ(base::hash128(got.blobs[1].view()), got.digests[1]);
  EXPECT_EQ(got.digests[1], put_of(2, 2).digest);
}

TEST(BlockIndex, WhatIsNotThereIsMissingAsAWhole) {
  BlockIndex index{IndexLimits{}};
  put_block(index, 1);
  put_entry(index, 2, 0);
  for (const auto& asked :
       {fetch_of({1, 9}, 0), fetch_of({1, 2}, 1), fetch_of({1}, kLayers), fetch_of({}, 0)}) {
    const kvstore::Fetched got = index.fetch(asked);
    EXPECT_EQ(got.outcome, Outcome::kMissing);
    EXPECT_TRUE(got.blobs.empty());
    EXPECT_TRUE(got.digests.empty());
  }
}

TEST(BlockIndex, ADoubledPutChangesNothing) {
  BlockIndex index{IndexLimits{}};
  put_block(index, 1);
  const uint64_t bytes = index.bytes();
  EXPECT_EQ(put_entry(index, 1, 0), Outcome::kOk);
  EXPECT_EQ(index.bytes(), bytes);
  EXPECT_EQ(index.counters().stored, kLayers);
}

TEST(BlockIndex, AMalformedOrDamagedPutIsRefused) {
  BlockIndex index{IndexLimits{}};
  proto::PutKv wrong_digest = put_of(1, 0), wrong_layer = put_of(1, 0), no_tokens = put_of(1, 0),
               many_layers = put_of(1, 0);
  wrong_digest.digest.low ^= 1;
  wrong_layer.layer = kLayers;
  no_tokens.tokens.clear();
  many_layers.layers = UINT32_MAX;
  for (const auto& put : {wrong_digest, wrong_layer, no_tokens, many_layers})
    EXPECT_EQ(index.put(put, blob_of(1, 0)), Outcome::kCorrupt);
  EXPECT_EQ(index.put(put_of(1, 0), blob_of(1, 1)), Outcome::kCorrupt);
  EXPECT_EQ(index.blocks(), 0u);
  EXPECT_EQ(index.bytes(), 0u);
  EXPECT_EQ(index.counters().corrupt, 5u);
}

TEST(BlockIndex, ADamagedEntryIsDroppedOnReadAndCanBePutAgain) {
  BlockIndex index{IndexLimits{}};
  put_block(index, 1);
  put_block(index, 2);
  flip_bit(index, 2, 0, 403);  // a bit flips in memory
  EXPECT_EQ(index.fetch(fetch_of({1, 2}, 0)).outcome, Outcome::kMissing);
  EXPECT_EQ(index.counters().corrupt, 1u);
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {1, 2}), at_ms(0)), 1u);
  EXPECT_EQ(put_entry(index, 2, 0), Outcome::kOk);
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {1, 2}), at_ms(0)), 2u);
}

TEST(BlockIndex, TheBlockUnusedForLongestGoesFirst) {
  BlockIndex index{room_for(3)};
  for (const uint32_t block : {1u, 2u, 3u}) put_block(index, block);
  index.fetch(fetch_of({1}, 0));  // 2 is the oldest now
  put_block(index, 4);
  EXPECT_EQ(index.fetch(fetch_of({2}, 0)).outcome, Outcome::kMissing);
  EXPECT_EQ(index.fetch(fetch_of({1, 3, 4}, 0)).outcome, Outcome::kOk);
  EXPECT_EQ(index.counters().evictions, 1u);
  EXPECT_LE(index.bytes(), index.limits().bytes);
}

TEST(BlockIndex, OfAReleasedPrefixTheEndGoesFirst) {
  BlockIndex index{room_for(3)};
  for (const uint32_t block : {1u, 2u, 3u}) put_block(index, block);
  ASSERT_EQ(index.lookup(lookup_of(1, 1, {1, 2, 3}), at_ms(0)), 3u);
  index.release({1}, 1);
  put_block(index, 4);
  EXPECT_EQ(index.fetch(fetch_of({1, 2, 4}, 0)).outcome, Outcome::kOk);
  EXPECT_EQ(index.fetch(fetch_of({3}, 0)).outcome, Outcome::kMissing);
}

TEST(BlockIndex, LeasedBlocksStayUntilReleaseOrExpiry) {
  for (const bool released : {true, false}) {
    BlockIndex index{room_for(2)};
    put_block(index, 1);
    put_block(index, 2);
    ASSERT_EQ(index.lookup(lookup_of(1, 1, {1, 2}, 1000), at_ms(0)), 2u);
    EXPECT_EQ(put_entry(index, 3, 0), Outcome::kNoRoom);
    EXPECT_EQ(index.counters().no_room, 1u);
    index.expire(at_ms(999));
    EXPECT_EQ(put_entry(index, 3, 0), Outcome::kNoRoom);
    if (released) {
      index.release({1}, 1);
    } else {
      index.expire(at_ms(1000));
    }
    EXPECT_EQ(index.leases(), 0u);
    EXPECT_EQ(put_entry(index, 3, 0), Outcome::kOk);
  }
}

TEST(BlockIndex, ARepeatedLookupHoldsOnceAndReleaseEndsLowerAttempts) {
  BlockIndex index{room_for(1)};
  put_block(index, 1);
  for (const uint32_t attempt : {1u, 1u, 2u, 3u})
    index.lookup(lookup_of(9, attempt, {1}), at_ms(0));
  EXPECT_EQ(index.leases(), 3u);
  index.release({9}, 2);
  EXPECT_EQ(index.leases(), 1u);
  EXPECT_EQ(put_entry(index, 2, 0), Outcome::kNoRoom);
  index.release({9}, 2);  // a doubled release
  index.release({8}, 9);
  EXPECT_EQ(put_entry(index, 2, 0), Outcome::kNoRoom);
  index.release({9}, 3);
  EXPECT_EQ(put_entry(index, 2, 0), Outcome::kOk);
}

TEST(BlockIndex, ALeaseOnABlockThatWasDroppedDoesNotHoldItsSuccessor) {
  BlockIndex index{IndexLimits{}};
  proto::PutKv put = put_of(1, 0);
  put.layers = 1;
  index.put(put, blob_of(1, 0));
  ASSERT_EQ(index.lookup(lookup_of(1, 1, {1}), at_ms(0)), 1u);
  flip_bit(index, 1, 0, 0);
  index.fetch(fetch_of({1}, 0));
  EXPECT_EQ(index.blocks(), 0u);
  EXPECT_EQ(index.bytes(), 0u);
  index.put(put, blob_of(1, 0));
  ASSERT_EQ(index.lookup(lookup_of(2, 1, {1}), at_ms(0)), 1u);
  index.release({1}, 1);  // of the block before
  index.release({2}, 1);
  EXPECT_EQ(index.leases(), 0u);
}

TEST(BlockIndex, ALookupAfterItsReleaseLeasesNothing) {
  BlockIndex index{room_for(2)};
  put_block(index, 1);
  ASSERT_EQ(index.lookup(lookup_of(1, 2, {1}), at_ms(0)), 1u);
  index.release({1}, 2);
  EXPECT_EQ(index.lookup(lookup_of(1, 2, {1}), at_ms(0)), 0u);  // doubled on the way
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {1}), at_ms(0)), 0u);
  EXPECT_EQ(index.leases(), 0u);
  EXPECT_EQ(index.lookup(lookup_of(1, 3, {1}), at_ms(0)), 1u);  // the next attempt
}

TEST(BlockIndex, AtTheBoundOfLeasesNothingIsFound) {
  IndexLimits limits;
  limits.leases = 2;
  BlockIndex index{limits};
  put_block(index, 1);
  EXPECT_EQ(index.lookup(lookup_of(1, 1, {1}), at_ms(0)), 1u);
  EXPECT_EQ(index.lookup(lookup_of(2, 1, {1}), at_ms(0)), 1u);
  EXPECT_EQ(index.lookup(lookup_of(3, 1, {1}), at_ms(0)), 0u);
  EXPECT_EQ(index.lookup(lookup_of(2, 1, {1}), at_ms(0)), 1u);
  EXPECT_EQ(index.leases(), 2u);
}

TEST(BlockIndex, AnEntryLargerThanTheBudgetEvictsNothing) {
  BlockIndex index{room_for(2)};
  put_block(index, 1);
  EXPECT_EQ(index.put(put_of(2, 0, 100'000), blob_of(2, 0, 100'000)), Outcome::kNoRoom);
  EXPECT_EQ(index.blocks(), 1u);
}

TEST(BlockIndex, EachRunIsFoundFromItsFirstBlockOn) {
  BlockIndex index{IndexLimits{}};
  for (const uint32_t block : {1u, 2u, 10u, 11u, 12u, 20u}) put_block(index, block);
  proto::LookupPrefix asked = lookup_of(1, 1, {1, 2, 3, 10, 11, 21, 20});
  asked.runs = {{3, {}}, {2, {}}, {2, {}}};
  const proto::PrefixFound found = index.find(asked, at_ms(0));
  EXPECT_EQ(found.runs, (std::vector<uint32_t>{2, 2, 0}));
  EXPECT_EQ(found.blocks, 2u);
  EXPECT_EQ(index.leases(), 1u);
  EXPECT_EQ(index.counters().hits, 4u);
  EXPECT_EQ(index.counters().misses, 3u);
  index.release({1}, 1);
  EXPECT_EQ(index.leases(), 0u);
  asked.request = {2};
  asked.runs.pop_back();  // not all of the keys
  EXPECT_EQ(index.find(asked, at_ms(0)).runs, (std::vector<uint32_t>{0, 0}));
  EXPECT_EQ(index.leases(), 0u);
}

TEST(BlockIndex, ARunIsChainedToItsOwnParent) {
  BlockIndex index{IndexLimits{}};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    proto::PutKv put = put_of(10, layer);
    put.parent = key_of(9);
    index.put(put, blob_of(10, layer));
  }
  proto::LookupPrefix asked = lookup_of(1, 1, {10});
  asked.runs = {{1, key_of(9)}};
  EXPECT_EQ(index.find(asked, at_ms(0)).blocks, 1u);
  asked.runs = {{1, key_of(8)}};
  EXPECT_EQ(index.find(asked, at_ms(0)).blocks, 0u);
}

}  // namespace
}  // namespace kvstore_test
