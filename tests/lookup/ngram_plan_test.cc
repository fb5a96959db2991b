// Which rank is asked for which rows: every row of the pass once, from its owner.
#include "lookup/ngram_plan.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"
#include "model/ngram_tables.h"

namespace lookup {
namespace {

// Few enough ids that rows of a pass share entries.
std::vector<uint64_t> random_ids(base::Rng& rng, size_t count) {
  std::vector<uint64_t> ids(count);
  for (uint64_t& id : ids) id = rng.below(1000);
  return ids;
}

TEST(NgramPlan, EverySlotIsFilledOnceFromTheOwnerOfItsRow) {
  base::Rng rng(1);
  for (const uint32_t ranks : {1u, 2u, 3u, 5u, 40u}) {
    for (const uint32_t rows : {1u, 7u, 256u}) {
      constexpr uint32_t kTables = 3;
      const std::vector<uint64_t> ids = random_ids(rng, kTables * rows);
      std::vector<uint32_t> filled(ids.size());
      for (const NgramShare& share : plan_lookup(ids, kTables, ranks)) {
        ASSERT_EQ(share.tables.size(), share.ids.size());
        for (const NgramShare::Use& use : share.uses) {
          EXPECT_EQ(share.ids[use.entry], ids[use.slot]);
          EXPECT_EQ(share.tables[use.entry], use.slot / rows);
          EXPECT_EQ(model::NgramShard::owner(ids[use.slot], ranks), share.owner);
          ++filled[use.slot];
        }
      }
      EXPECT_EQ(filled, std::vector<uint32_t>(ids.size(), 1));
    }
  }
}

TEST(NgramPlan, ARowThatSeveralTokensNeedIsAskedForOnce) {
  base::Rng rng(2);
  const std::vector<uint64_t> ids = random_ids(rng, 4 * 512);
  size_t entries = 0;
  for (const NgramShare& share : plan_lookup(ids, 4, 3)) {
    std::set<std::pair<uint16_t, uint64_t>> once;
    for (size_t i = 0; i < share.ids.size(); ++i) once.emplace(share.tables[i], share.ids[i]);
    EXPECT_EQ(once.size(), share.ids.size());
    entries += share.ids.size();
  }
  EXPECT_LT(entries, ids.size());
}

TEST(NgramPlan, OneIdInTwoTablesIsTwoRows) {
  const std::vector<uint64_t> ids = {5, 5};
  const std::vector<NgramShare> shares = plan_lookup(ids, 2, 1);
  ASSERT_EQ(shares.size(), 1u);
  EXPECT_EQ(shares[0].tables, (std::vector<uint16_t>{0, 1}));
  std::vector<float> ngram(2 * 2);
  place_rows(shares[0], std::vector<float>{1, 2, 3, 4}, 2, ngram);
  EXPECT_EQ(ngram, (std::vector<float>{1, 2, 3, 4}));
}

}  // namespace
}  // namespace lookup
