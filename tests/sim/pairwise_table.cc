#include "tests/sim/pairwise_table.h"

#include <algorithm>
#include <array>
#include <set>

#include "base/rng.h"

namespace simulation {

namespace {

constexpr uint32_t kCandidates = 60;  // rows tried for each row taken
constexpr uint32_t kNone = 0xffffffff;

// Up to three (factor, level), ascending by factor; a pair ends in kNone.
using Meeting = std::array<std::array<uint32_t, 2>, 3>;

void visit_pairs(const Levels& row, const auto& visit) {
  for (uint32_t a = 0; a < row.size(); ++a) {
    for (uint32_t b = a + 1; b < row.size(); ++b)
      visit(Meeting{{{a, row[a]}, {b, row[b]}, {kNone, kNone}}});
  }
}

void visit_triples(const Levels& row, const auto& visit) {
  for (uint32_t a = 0; a < row.size(); ++a) {
    for (uint32_t b = a + 1; b < row.size(); ++b) {
      for (uint32_t c = b + 1; c < row.size(); ++c)
        visit(Meeting{{{a, row[a]}, {b, row[b]}, {c, row[c]}}});
    }
  }
}

size_t count_pairs(std::span<const uint32_t> levels) {
  size_t pairs = 0;
  for (size_t a = 0; a < levels.size(); ++a) {
    for (size_t b = a + 1; b < levels.size(); ++b) pairs += size_t{levels[a]} * levels[b];
  }
  return pairs;
}

struct Met {
  std::set<Meeting> pairs, triples;

  // New pairs first, then new triples.
  size_t worth(const Levels& row) const {
    size_t fresh_pairs = 0, fresh_triples = 0;
    visit_pairs(row, [&](const Meeting& m) { fresh_pairs += pairs.contains(m) ? 0 : 1; });
    visit_triples(row, [&](const Meeting& m) { fresh_triples += triples.contains(m) ? 0 : 1; });
    return fresh_pairs * 1000 + fresh_triples;
  }
  void take(const Levels& row) {
    visit_pairs(row, [&](const Meeting& m) { pairs.insert(m); });
    visit_triples(row, [&](const Meeting& m) { triples.insert(m); });
  }
};

}  // namespace

std::vector<Levels> pairwise_table(std::span<const uint32_t> levels, size_t rows) {
  std::vector<Levels> table;
  Met met;
  base::Rng rng(1);
  const size_t pairs = count_pairs(levels);
  while (table.size() < rows || met.pairs.size() < pairs) {
    Levels best;
    size_t most = 0;
    for (uint32_t i = 0; i < kCandidates; ++i) {
      Levels row;
      for (const uint32_t count : levels) row.push_back(static_cast<uint32_t>(rng.below(count)));
      const size_t worth = met.worth(row);
      if (!best.empty() && worth <= most) continue;
      best = std::move(row);
      most = worth;
    }
    met.take(best);
    table.push_back(std::move(best));
  }
  return table;
}

size_t pairs_missing(std::span<const uint32_t> levels, std::span<const Levels> table) {
  size_t missing = 0;
  for (size_t a = 0; a < levels.size(); ++a) {
    for (size_t b = a + 1; b < levels.size(); ++b) {
      for (uint32_t i = 0; i < levels[a]; ++i) {
        for (uint32_t j = 0; j < levels[b]; ++j) {
          missing += std::ranges::none_of(
                         table, [&](const Levels& row) { return row[a] == i && row[b] == j; })
                         ? 1
                         : 0;
        }
      }
    }
  }
  return missing;
}

}  // namespace simulation
