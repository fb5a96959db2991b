// Fault row R32: ten thousand bit flips, one at a time, in each place where a block can be hit, and
// a million clean blocks: every flip is noticed, nothing clean is refused.
#include <gtest/gtest.h>

#include <cstring>

#include "base/rng.h"
#include "tests/kvstore/tiers.h"

namespace kvstore_test {
namespace {

using kvstore::BlockIndex;
using kvstore::IndexLimits;
using proto::Outcome;

constexpr int kFlips = 10'000;

template <class Bytes>
void flip(Bytes& bytes, uint64_t bit) {
  auto& byte = bytes[bit / 8];
  byte = static_cast<std::remove_reference_t<decltype(byte)>>(static_cast<uint8_t>(byte) ^
                                                              (1u << bit % 8));
}

base::Bytes bytes_of(const base::Blob& blob) { return {blob.view().begin(), blob.view().end()}; }

proto::PutKv bound_put(uint32_t block, uint32_t layer) {
  proto::PutKv put = put_of(block, layer);
  put.parent = key_of(block - 1);
  put.depth = block;
  put.chain = block + 3;
  put.space = {8, 8};
  put.bound = proto::bound_of(put);
  return put;
}

TEST(Integrity, EveryFlipInRamIsNoticed) {
  base::Rng rng(1);
  BlockIndex index{IndexLimits{}};
  uint64_t noticed = 0;
  for (int i = 0; i < kFlips; ++i) {
    const auto block = static_cast<uint32_t>(rng.below(50));
    const auto layer = static_cast<uint32_t>(rng.below(kLayers));
    put_entry(index, block, layer);
    flip_bit(index, block, layer, rng.below(800));
    noticed += index.fetch(fetch_of({block}, layer)).outcome == Outcome::kMissing ? 1 : 0;
  }
  EXPECT_EQ(noticed, static_cast<uint64_t>(kFlips));
  EXPECT_EQ(index.counters().corrupt, static_cast<uint64_t>(kFlips));
}

TEST(Integrity, EveryFlipOnDiskIsNoticed) {
  base::Rng rng(2);
  kvstore::SimMedium medium(2);
  {
    Tiers store(tier_limits(10), medium);
    put_block(store.index, 1);
    store.flush();
  }
  const std::map<std::string, std::string> clean = medium.values;
  ASSERT_EQ(clean.size(), kLayers + 1u);
  int noticed = 0;
  for (int i = 0; i < kFlips; ++i) {
    medium.values = clean;
    auto at = medium.values.begin();
    std::advance(at, static_cast<long>(rng.below(clean.size())));
    flip(at->second, rng.below(8 * at->second.size()));
    Tiers store(tier_limits(10), medium);
    bool all = true;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const kvstore::Fetched got = store.fetch({1}, layer);
      all = all && got.outcome == Outcome::kOk;
      for (const base::Blob& blob : got.blobs)
        ASSERT_TRUE(std::ranges::equal(blob.view(), blob_of(1, layer).view()));
    }
    noticed += all ? 0 : 1;
  }
  EXPECT_EQ(noticed, kFlips);
}

// A flip that leaves a message saying what it said before (msgpack has two ways to say some things)
// changed nothing; any other is refused.
TEST(Integrity, EveryFlipInAPutIsNoticed) {
  base::Rng rng(3);
  const proto::PutKv sent = bound_put(5, 1);
  const std::string body = encode(sent);
  const base::Bytes rows = bytes_of(blob_of(5, 1));
  int noticed = 0, same = 0;
  for (int i = 0; i < kFlips; ++i) {
    BlockIndex index{IndexLimits{}};
    std::string text = body;
    base::Bytes bytes = rows;
    if (i % 2 == 0) {
      flip(text, rng.below(8 * text.size()));
    } else {
      flip(bytes, rng.below(8 * bytes.size()));
    }
    proto::PutKv came;
    const bool decoded = decode(base::as_bytes(text), came).has_value();
    const bool refused = !decoded || index.put(came, base::Blob(bytes)) != Outcome::kOk;
    noticed += refused ? 1 : 0;
    if (refused) continue;
    ++same;
    EXPECT_EQ(bytes, rows);
    EXPECT_EQ(came.key, sent.key);
    EXPECT_EQ(came.layer, sent.layer);
    EXPECT_EQ(came.layers, sent.layers);
    EXPECT_EQ(came.tokens, sent.tokens);
    EXPECT_EQ(came.digest, sent.digest);
  }
  EXPECT_EQ(noticed + same, kFlips);
  EXPECT_LE(same, kFlips / 100);
}

TEST(Integrity, EveryFlipInAFetchOrItsAnswerIsNoticed) {
  base::Rng rng(4);
  BlockIndex index{IndexLimits{}};
  for (uint32_t block = 1; block < 5; ++block) put_block(index, block);
  const proto::FetchKv asked = fetch_of({1, 3}, 1);
  int noticed = 0;
  for (int i = 0; i < kFlips; ++i) {
    std::string question = encode(asked);
    if (i % 3 == 0) flip(question, rng.below(8 * question.size()));
    proto::FetchKv heard;
    if (!decode(base::as_bytes(question), heard)) {
      ++noticed;
      continue;
    }
    const kvstore::Fetched got = index.fetch(heard);
    proto::KvData data{got.outcome, got.digests, proto::bound_of(heard, got.digests)};
    ASSERT_TRUE(i % 3 == 0 || proto::answers(asked, data, got.blobs));
    std::string body = encode(data);
    base::Blobs blobs = got.blobs;
    if (i % 3 == 1) flip(body, rng.below(8 * body.size()));
    if (i % 3 == 2) {
      base::Bytes bytes = bytes_of(blobs[i % 2]);
      flip(bytes, rng.below(8 * bytes.size()));
      blobs[i % 2] = base::Blob(bytes);
    }
    proto::KvData came;
    const bool good = decode(base::as_bytes(body), came) && proto::answers(asked, came, blobs);
    // Used all the same only if what came is what should have come.
    const bool same = good && heard.keys == asked.keys && heard.layer == asked.layer &&
                      came.digests == got.digests && blobs.size() == got.blobs.size();
    ASSERT_EQ(good, same);
    noticed += good ? 0 : 1;
    ASSERT_FALSE(good && i % 3 == 2);
  }
  EXPECT_GE(noticed, kFlips * 99 / 100);
}

TEST(Integrity, OfAMillionCleanBlocksNoneIsRefused) {
  IndexLimits limits;
  limits.bytes = 4u << 20;
  BlockIndex index{limits};
  base::Rng rng(5);
  base::Bytes rows(64);
  uint64_t refused = 0;
  for (uint32_t i = 0; i < 1'000'000; ++i) {
    const uint64_t value = rng.next();
    std::memcpy(rows.data(), &value, sizeof value);
    proto::PutKv put;
    put.key = {i, 9};
    put.layers = 1;
    put.tokens = {i};
    put.digest = base::hash128(rows);
    put.bound = proto::bound_of(put);
    const base::Blob blob = base::Blob::copy_of(rows);
    proto::FetchKv asked;
    asked.keys = {put.key};
    refused += index.put(put, blob) == Outcome::kOk ? 0 : 1;
    const kvstore::Fetched got = index.fetch(asked);
    const proto::KvData data{got.outcome, got.digests, proto::bound_of(asked, got.digests)};
    refused += proto::answers(asked, data, got.blobs) ? 0 : 1;
  }
  EXPECT_EQ(refused, 0u);
  EXPECT_EQ(index.counters().corrupt, 0u);
  EXPECT_GT(index.counters().evictions, 900'000u);
}

// Equal keys and equal tokens are not enough: the blocks before must be the same as well.
TEST(Integrity, ABlockAfterAnotherPrefixIsNotFoundUnderAnEqualKey) {
  BlockIndex index{IndexLimits{}};
  for (const uint32_t block : {1u, 2u}) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      proto::PutKv put = put_of(block, layer);
      put.parent = block == 1 ? base::Hash128{50, 50} : base::Hash128{66, 66};  // not block 1
      ASSERT_EQ(index.put(put, blob_of(block, layer)), Outcome::kOk);
    }
  }
  proto::LookupPrefix asked = lookup_of(1, 1, {1, 2});
  EXPECT_EQ(index.lookup(asked, at_ms(0)), 1u);
  asked.parent = {50, 50};
  EXPECT_EQ(index.lookup(asked, at_ms(0)), 1u);
  asked.parent = {51, 50};  // another root: other model, layout or tenant
  EXPECT_EQ(index.lookup(asked, at_ms(0)), 0u);
  proto::PutKv other = put_of(2, 0);
  other.parent = key_of(1);
  EXPECT_EQ(index.put(other, blob_of(2, 0)), Outcome::kNoRoom);
}

}  // namespace
}  // namespace kvstore_test
