#include "prefill_node/chunk_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace prefill {
namespace {

// A dense model whose context costs as much as its rows at position 1000.
ChunkPlan plan(uint32_t base) {
  ChunkPlan plan;
  plan.base = base;
  plan.dynamic = true;
  plan.cost = {.row = 1000, .pair = 1};
  return plan;
}

std::vector<uint32_t> chunks(const ChunkPlan& plan, uint32_t from, uint32_t total) {
  std::vector<uint32_t> out;
  for (uint32_t done = from; done < total; done += out.back())
    out.push_back(plan.next(done, total));
  return out;
}

TEST(ChunkPlan, FixedChunksAreAllOfOneSizeButTheLast) {
  ChunkPlan fixed = plan(256);
  fixed.dynamic = false;
  EXPECT_EQ(chunks(fixed, 0, 600), (std::vector<uint32_t>{256, 256, 88}));
  EXPECT_EQ(chunks(fixed, 64, 65), (std::vector<uint32_t>{1}));
}

TEST(ChunkPlan, DynamicChunksCostTheSameUntilTheyAreTheSmallest) {
  const ChunkPlan dynamic = plan(1024);
  const double first = static_cast<double>(dynamic.cost.tokens(0, 1024));
  uint32_t done = 0, checked = 0;
  for (const uint32_t count : chunks(dynamic, 0, 100'000)) {
    const bool last = done + count == 100'000;
    if (count > 1024 / ChunkPlan::kLeastPart && !last) {
      const double cost = static_cast<double>(dynamic.cost.tokens(done, done + count)) / first;
      EXPECT_LE(cost, 1.0) << "at " << done;
      EXPECT_GE(cost, 0.93) << "at " << done;  // a grain less
      ++checked;
    }
    done += count;
  }
  EXPECT_GT(checked, 5u);
  EXPECT_EQ(done, 100'000u);
}

TEST(ChunkPlan, ChunksShrinkToAQuarterAndNoFurther) {
  const std::vector<uint32_t> sizes = chunks(plan(256), 0, 50'000);
  EXPECT_EQ(sizes.front(), 256u);
  EXPECT_TRUE(std::ranges::is_sorted(sizes.begin(), sizes.end() - 1, std::ranges::greater()));
  EXPECT_EQ(*(sizes.end() - 2), 64u);
  for (auto size = sizes.begin(); size + 1 != sizes.end(); ++size) EXPECT_EQ(*size % 16, 0u);
}

TEST(ChunkPlan, WhereContextCostsNothingDynamicIsFixed) {
  ChunkPlan flat = plan(256);
  flat.cost = {.row = 1000};
  EXPECT_EQ(chunks(flat, 0, 600), (std::vector<uint32_t>{256, 256, 88}));
}

TEST(ChunkPlan, SparseAttentionStopsTheGrowthAtItsBudget) {
  ChunkPlan sparse = plan(256);
  sparse.cost.attended = 500;
  const std::vector<uint32_t> sizes = chunks(sparse, 0, 50'000);
  EXPECT_EQ(sizes[10], *(sizes.end() - 2));
  EXPECT_GT(sizes[10], 64u);
}

TEST(ChunkPlan, AfterACachedPrefixItGoesOnAsIfItHadBeenComputed) {
  const ChunkPlan dynamic = plan(256);
  EXPECT_EQ(dynamic.next(4096, 50'000), dynamic.next(4096, 8192));
  EXPECT_LT(dynamic.next(4096, 50'000), 256u);
}

TEST(ChunkPlan, SmallBasesAndShortPromptsWork) {
  for (const uint32_t base : {1u, 2u, 7u, 16u, 63u, 64u}) {
    for (const uint32_t total : {1u, 2u, 65u, 5000u}) {
      uint32_t sum = 0;
      for (const uint32_t count : chunks(plan(base), 0, total)) {
        EXPECT_GT(count, 0u);
        EXPECT_LE(count, base);
        sum += count;
      }
      EXPECT_EQ(sum, total);
    }
  }
}

}  // namespace
}  // namespace prefill
