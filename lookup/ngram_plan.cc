#include "lookup/ngram_plan.h"

#include <algorithm>

#include "base/check.h"
#include "model/ngram_tables.h"

namespace lookup {

std::vector<NgramShare> plan_lookup(std::span<const uint64_t> ids, uint32_t tables,
                                    uint32_t ranks) {
  CHECK(tables > 0 && ranks > 0, "{} tables, {} ranks", tables, ranks);
  const size_t rows = ids.size() / tables;
  std::vector<uint32_t> slots;
  std::vector<NgramShare> shares(ranks);
  for (uint32_t rank = 0; rank < ranks; ++rank) shares[rank].owner = rank;
  for (uint32_t table = 0; table < tables; ++table) {
    slots.resize(rows);
    for (size_t row = 0; row < rows; ++row) slots[row] = static_cast<uint32_t>(table * rows + row);
    std::ranges::sort(slots, {}, [&](uint32_t slot) { return std::pair(ids[slot], slot); });
    for (const uint32_t slot : slots) {
      NgramShare& share = shares[model::NgramShard::owner(ids[slot], ranks)];
      if (share.ids.empty() || share.ids.back() != ids[slot] || share.tables.back() != table) {
        share.tables.push_back(static_cast<uint16_t>(table));
        share.ids.push_back(ids[slot]);
      }
      share.uses.push_back({static_cast<uint32_t>(share.ids.size() - 1), slot});
    }
  }
  std::erase_if(shares, [](const NgramShare& share) { return share.ids.empty(); });
  return shares;
}

void place_rows(const NgramShare& share, std::span<const float> values, uint32_t dim,
                std::span<float> ngram) {
  for (const NgramShare::Use& use : share.uses)
    std::ranges::copy(values.subspan(size_t{use.entry} * dim, dim),
                      ngram.subspan(size_t{use.slot} * dim, dim).begin());
}

}  // namespace lookup
