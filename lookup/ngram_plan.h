// Which rank is asked for which n-gram rows of a pass. Pure.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lookup {

// What one rank is asked for: every (table, id) once, tables ascending, ids ascending in a table.
struct NgramShare {
  struct Use {
    uint32_t entry;  // in tables and ids
    uint32_t slot;   // in the pass's [tables, rows]
  };
  uint32_t owner = 0;  // index of the rank
  std::vector<uint16_t> tables;
  std::vector<uint64_t> ids;
  std::vector<Use> uses;  // one or more an entry

  size_t entries() const { return ids.size(); }
};

// ids: [tables, rows], as NgramTables::ids_of() gives them. Rows go to NgramShard::owner() among
// `ranks`; ranks that own none of them have no share.
std::vector<NgramShare> plan_lookup(std::span<const uint64_t> ids, uint32_t tables, uint32_t ranks);

// values: [entries, dim] → their places in ngram: [tables, rows, dim].
void place_rows(const NgramShare& share, std::span<const float> values, uint32_t dim,
                std::span<float> ngram);

}  // namespace lookup
