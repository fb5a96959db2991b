#include "model/prefill_cost.h"

#include <gtest/gtest.h>

#include "model/config.h"

namespace model {
namespace {

TEST(PrefillCost, IsTheSumOverTokensAndPositions) {
  const PrefillCost cost{.row = 7, .pair = 3, .attended = 5, .score = 2};
  uint64_t sum = 0;
  for (uint32_t position = 4; position < 12; ++position) {
    const uint64_t seen = position + 1;
    sum += 7 + 3 * std::min<uint64_t>(seen, 5) + (seen > 5 ? 2 * seen : 0);
  }
  EXPECT_EQ(cost.tokens(4, 12), sum);
  EXPECT_EQ(cost.tokens(4, 4), 0u);
  EXPECT_EQ(cost.tokens(0, 12), cost.tokens(0, 4) + sum);
}

TEST(PrefillCost, OfAPublishedModelComesFromItsShapes) {
  const auto config = ModelConfig::load(std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny");
  ASSERT_TRUE(config);
  const PrefillCost cost = prefill_cost(*config);
  const ModelConfig& c = *config;
  const uint64_t mlps = uint64_t{6} * c.hidden * c.ffn;
  EXPECT_GT(cost.row, mlps);
  EXPECT_EQ(cost.pair, uint64_t{2} * c.heads * (2 * c.kv_lora + c.rope));
  EXPECT_EQ(cost.head, uint64_t{c.vocab} * c.hidden);
  EXPECT_EQ(cost.attended, c.indexer ? c.indexer->topk : UINT32_MAX);
}

TEST(PrefillCost, AMillionTokensOfTheLargestModelDoNotOverflow) {
  const PrefillCost cost{
      .row = 2'000'000'000, .pair = 140'000, .attended = UINT32_MAX, .score = 8192};
  EXPECT_GT(cost.tokens(0, 1u << 20), cost.tokens(0, (1u << 20) - 1));
}

}  // namespace
}  // namespace model
