#include "kvstore/eviction.h"

#include <gtest/gtest.h>

#include "kvstore/block_index.h"
#include "tests/kvstore/blocks.h"

namespace kvstore_test {
namespace {

using kvstore::BlockIndex;
using kvstore::find_policy;
using kvstore::IndexLimits;

IndexLimits limits_of(const char* policy, uint32_t blocks) {
  IndexLimits limits;
  limits.bytes = blocks * block_cost();
  limits.policy = find_policy(policy);
  return limits;
}

bool has(BlockIndex& index, uint32_t block) {
  return index.fetch(fetch_of({block}, 0)).outcome == proto::Outcome::kOk;
}

void ask(BlockIndex& index, uint32_t block) {
  static uint64_t request = 0;
  ASSERT_EQ(index.lookup(lookup_of(++request, 1, {block}), at_ms(0)), 1u);
  index.release({request}, 1);
}

void put_at(BlockIndex& index, uint32_t block, uint32_t depth, uint32_t chain) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    proto::PutKv put = put_of(block, layer);
    put.depth = depth;
    put.chain = chain;
    ASSERT_EQ(index.put(put, blob_of(block, layer)), proto::Outcome::kOk);
  }
}

TEST(Eviction, EveryPolicyOfTheTableIsFoundByItsName) {
  for (const kvstore::Policy& policy : kvstore::policies())
    EXPECT_EQ(find_policy(policy.name), &policy);
  EXPECT_EQ(find_policy("fifo"), nullptr);
  EXPECT_STREQ(IndexLimits{}.policy->name, "lru");
}

TEST(Eviction, LruForgetsWhatWasUsedLongestAgoHoweverOften) {
  BlockIndex index{limits_of("lru", 3)};
  for (const uint32_t block : {1u, 2u, 3u}) put_block(index, block);
  for (int i = 0; i < 9; ++i) ask(index, 1);
  ask(index, 2);
  ask(index, 3);
  put_block(index, 4);
  EXPECT_FALSE(has(index, 1));
}

TEST(Eviction, LfuKeepsWhatIsAskedForOften) {
  BlockIndex index{limits_of("lfu", 3)};
  for (const uint32_t block : {1u, 2u, 3u}) put_block(index, block);
  for (int i = 0; i < 9; ++i) ask(index, 1);
  ask(index, 2);
  ask(index, 3);
  put_block(index, 4);
  EXPECT_TRUE(has(index, 1));
}

TEST(Eviction, LfuLetsGoOfAFavouriteOfYesterday) {
  BlockIndex index{limits_of("lfu", 3)};
  for (const uint32_t block : {1u, 2u, 3u}) put_block(index, block);
  for (int i = 0; i < 9; ++i) ask(index, 1);
  for (uint32_t block = 4; block < 60; ++block) put_block(index, block);
  EXPECT_EQ(index.lookup(lookup_of(9999, 1, {1}), at_ms(0)), 0u);
}

TEST(Eviction, CostAwareKeepsTheLongChainOfTwoUsedAlike) {
  for (const bool deep_first : {true, false}) {
    BlockIndex index{limits_of("cost_aware", 2)};
    put_at(index, deep_first ? 1 : 2, deep_first ? 500 : 0, deep_first ? 501 : 1);
    put_at(index, deep_first ? 2 : 1, deep_first ? 0 : 500, deep_first ? 1 : 501);
    put_at(index, 3, 500, 501);
    EXPECT_TRUE(has(index, 1)) << deep_first;
    EXPECT_FALSE(has(index, 2)) << deep_first;
  }
}

TEST(Eviction, OfEqualBlocksOfAChainTheDeepestGoesFirst) {
  for (const char* policy : {"lfu", "cost_aware"}) {
    BlockIndex index{limits_of(policy, 3)};
    for (const uint32_t block : {1u, 2u, 3u}) put_at(index, block, block - 1, 3);
    put_at(index, 4, 0, 3);
    EXPECT_FALSE(has(index, 3)) << policy;
    EXPECT_TRUE(has(index, 1)) << policy;
  }
}

TEST(Eviction, RecomputingCostsMoreTheDeeperTheBlock) {
  EXPECT_EQ(kvstore::recompute_cost(0), 1.0);
  EXPECT_EQ(kvstore::recompute_cost(108), 2.0);
}

}  // namespace
}  // namespace kvstore_test
