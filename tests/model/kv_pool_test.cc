#include "model/kv_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "model/kv_layout.h"
#include "model/numerics.h"

namespace {

using model::BlockId;
using model::KvPool;
using model::KvView;
using model::LayerRange;

TEST(KvPool, GivesEachBlockOnceAndTakesItBack) {
  KvPool pool(5, LayerRange{0, 2}, 16);
  auto a = pool.allocate(2), b = pool.allocate(3);
  ASSERT_TRUE(a && b);
  std::vector<BlockId> all = *a;
  all.insert(all.end(), b->begin(), b->end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (std::vector<BlockId>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.used(), 5u);
  pool.release(*b);
  EXPECT_EQ(pool.used(), 2u);
  pool.release(*a);
  EXPECT_EQ(pool.used(), 0u);
}

TEST(KvPool, RefusesMoreThanIsFreeAndThenAllocatesNothing) {
  KvPool pool(4, LayerRange{0, 1}, 8);
  auto a = pool.allocate(3);
  ASSERT_TRUE(a);
  auto b = pool.allocate(2);
  ASSERT_FALSE(b);
  EXPECT_EQ(b.error().code, base::Code::kExhausted);
  EXPECT_EQ(pool.used(), 3u);
  EXPECT_TRUE(pool.allocate(1));
  EXPECT_TRUE(pool.allocate(0));
}

TEST(KvPool, ChecksDoubleFrees) {
  KvPool pool(2, LayerRange{0, 1}, 8);
  auto a = pool.allocate(1);
  ASSERT_TRUE(a);
  pool.release(*a);
  EXPECT_DEATH(pool.release(*a), "not taken");
}

TEST(KvPool, EntriesOfBlocksAndLayersDoNotOverlap) {
  constexpr uint32_t kBlocks = 3, kRow = 24;
  const LayerRange layers{2, 5};
  KvPool pool(kBlocks, layers, kRow);
  for (BlockId block = 0; block < kBlocks; ++block)
    for (uint32_t layer = layers.begin; layer < layers.end; ++layer)
      std::memset(pool.entry(block, layer), static_cast<int>(block * 16 + layer),
                  pool.entry_bytes());
  for (BlockId block = 0; block < kBlocks; ++block)
    for (uint32_t layer = layers.begin; layer < layers.end; ++layer)
      for (size_t i = 0; i < pool.entry_bytes(); ++i)
        ASSERT_EQ(pool.entry(block, layer)[i], std::byte(block * 16 + layer));
}

TEST(KvView, PackedRowsSurviveTheTripAcrossBlockBounds) {
  constexpr uint32_t kRow = 12, kTokens = 150;
  KvPool pool(6, LayerRange{0, 2}, kRow);
  const std::vector<BlockId> from_blocks{4, 0, 2}, to_blocks{1, 5, 3};
  const KvView from{&pool, from_blocks}, to{&pool, to_blocks};
  for (uint32_t p = 0; p < kTokens; ++p)
    for (uint32_t i = 0; i < kRow; ++i) from.row(1, p)[i] = std::byte((p * 7 + i) % 251);
  for (const auto& [begin, count] : {std::pair{0u, kTokens}, {63u, 2u}, {64u, 64u}, {10u, 129u}}) {
    std::vector<std::byte> packed(static_cast<size_t>(count) * kRow);
    model::copy_rows_out(from, 1, begin, count, packed.data());
    model::copy_rows_in(to, 1, begin, count, packed.data());
    for (uint32_t p = begin; p < begin + count; ++p) {
      EXPECT_EQ(std::memcmp(packed.data() + (p - begin) * kRow, from.row(1, p), kRow), 0);
      EXPECT_EQ(std::memcmp(to.row(1, p), from.row(1, p), kRow), 0);
    }
  }
}

TEST(KvLayout, ARowHoldsBothAttentionsAndTheIndexKeyRoundedToTheWireType) {
  model::ModelConfig config;
  config.kv_lora = 24;
  config.rope = 8;
  config.indexer.emplace();
  config.indexer->head_dim = 16;
  const model::KvLayout bf16(config, model::KvType::kBf16), f32(config, model::KvType::kF32);
  EXPECT_EQ(bf16.row_bytes(), 2u * (32 + 32 + 16));
  EXPECT_EQ(f32.row_bytes(), 4u * (32 + 32 + 16));
  EXPECT_EQ(bf16.latent_at(1), 64u);
  EXPECT_EQ(bf16.index_key_at(), 128u);

  std::vector<float> values(32), back(32);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 1.0f / static_cast<float>(i + 3);
  std::vector<std::byte> row(f32.row_bytes() + 1);
  f32.store_part(row.data() + 1, values);  // unaligned
  f32.load_part(row.data() + 1, back);
  EXPECT_EQ(back, values);
  bf16.store_part(row.data() + 1, values);
  bf16.load_part(row.data() + 1, back);
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(back[i], model::from_bf16(model::to_bf16(values[i])));

  config.indexer.reset();
  EXPECT_EQ(model::KvLayout(config, model::KvType::kBf16).row_bytes(), 128u);
}

}  // namespace
