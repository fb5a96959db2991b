#include "coordinator/stage_layers.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace coordinator {
namespace {

using Ranges = std::vector<model::LayerRange>;

StageCosts equal(uint32_t layers, uint64_t first = 0, uint64_t last = 0) {
  return {std::vector<uint64_t>(layers, 100), first, last};
}

TEST(StageLayers, EqualLayersGiveEvenSharesWithTheRemainderFirst) {
  EXPECT_EQ(divide_layers(equal(4), 1).stages, (Ranges{{0, 4}}));
  EXPECT_EQ(divide_layers(equal(4), 2).stages, (Ranges{{0, 2}, {2, 4}}));
  EXPECT_EQ(divide_layers(equal(5), 2).stages, (Ranges{{0, 3}, {3, 5}}));
  EXPECT_EQ(divide_layers(equal(38), 5).stages,
            (Ranges{{0, 8}, {8, 16}, {16, 24}, {24, 31}, {31, 38}}));
  EXPECT_EQ(divide_layers(equal(3), 3).stages, (Ranges{{0, 1}, {1, 2}, {2, 3}}));
}

TEST(StageLayers, TheImbalanceIsTheLargestStageOverTheMean) {
  EXPECT_DOUBLE_EQ(divide_layers(equal(4), 2).imbalance, 0);
  EXPECT_DOUBLE_EQ(divide_layers(equal(5), 2).imbalance, 0.2);
  EXPECT_DOUBLE_EQ(divide_layers(equal(4, 100), 2).imbalance, 0.2);
}

TEST(StageLayers, EmbeddingAndHeadTakeTheirShareFromTheEnds) {
  EXPECT_EQ(divide_layers(equal(10, 200), 2).stages, (Ranges{{0, 4}, {4, 10}}));
  EXPECT_EQ(divide_layers(equal(10, 0, 200), 2).stages, (Ranges{{0, 6}, {6, 10}}));
}

TEST(StageLayers, UnequalLayersAreDividedByCost) {
  StageCosts costs;
  costs.layers = {900, 100, 100, 100, 100, 100, 100, 100, 100, 100};
  EXPECT_EQ(divide_layers(costs, 2).stages, (Ranges{{0, 1}, {1, 10}}));
}

TEST(StageLayers, NoOtherDivisionHasASmallerLargestStage) {
  base::Rng rng(3);
  for (int round = 0; round < 200; ++round) {
    StageCosts costs;
    const auto layers = static_cast<uint32_t>(3 + rng.below(10));
    for (uint32_t i = 0; i < layers; ++i) costs.layers.push_back(1 + rng.below(50));
    costs.first = rng.below(60);
    costs.last = rng.below(60);
    const StageDivision division = divide_layers(costs, 3);
    const auto cost = [&](uint32_t begin, uint32_t end) {
      uint64_t sum = (begin == 0 ? costs.first : 0) + (end == layers ? costs.last : 0);
      for (uint32_t i = begin; i < end; ++i) sum += costs.layers[i];
      return sum;
    };
    uint64_t most = 0, least = UINT64_MAX, next = 0;
    for (const model::LayerRange& range : division.stages) {
      EXPECT_EQ(range.begin, next);
      EXPECT_GT(range.end, range.begin);
      next = range.end;
      most = std::max(most, cost(range.begin, range.end));
    }
    EXPECT_EQ(next, layers);
    for (uint32_t a = 1; a + 1 < layers; ++a) {
      for (uint32_t b = a + 1; b < layers; ++b)
        least = std::min(least, std::max({cost(0, a), cost(a, b), cost(b, layers)}));
    }
    EXPECT_EQ(most, least);
  }
}

TEST(StageLayers, ThePublishedModelsDivideWithinTenPerCent) {
  model::Shape shape;
  shape.layers = 38;
  shape.max_context = 1u << 20;
  shape.cost = {.embed = 67'000'000,
                .row = 1'000'000'000,
                .pair = 139'264,
                .attended = 2048,
                .score = 4096,
                .head = 1'000'000'000};
  for (const uint32_t stages : {1u, 2u, 3u, 4u, 8u})
    EXPECT_LE(divide_layers(stage_costs(shape), stages).imbalance, 0.10) << stages;
}

}  // namespace
}  // namespace coordinator
