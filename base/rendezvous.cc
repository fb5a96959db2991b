#include "base/rendezvous.h"

#include <algorithm>
#include <array>

namespace base {

namespace {

// The best of `weight` draws: a site of weight w wins w times as often as one of weight 1, and
// changing a weight moves only keys to or from that site.
uint64_t score(const Hash128& key, const Site& site) {
  uint64_t best = 0;
  for (uint32_t draw = 0; draw < site.weight; ++draw) {
    const std::array<uint64_t, 3> what{key.low, key.high, draw};
    best = std::max(best, hash64(std::as_bytes(std::span(what)), site.id));
  }
  return best;
}

}  // namespace

uint64_t site_id(std::string_view name) { return hash64(as_bytes(name)); }

std::vector<size_t> sites_of(const Hash128& key, std::span<const Site> sites, size_t count) {
  struct Ranked {
    uint64_t score, id;
    size_t index;
  };
  std::vector<Ranked> ranked;
  for (size_t i = 0; i < sites.size(); ++i) {
    if (sites[i].weight > 0) ranked.push_back({score(key, sites[i]), sites[i].id, i});
  }
  count = std::min(count, ranked.size());
  const auto better = [](const Ranked& a, const Ranked& b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
  };
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count),
                    ranked.end(), better);
  std::vector<size_t> chosen;
  for (size_t i = 0; i < count; ++i) chosen.push_back(ranked[i].index);
  return chosen;
}

size_t copies_of(uint32_t uses, size_t sites) {
  size_t copies = 1;
  for (uint64_t hot = kHotUses; uses >= hot; hot *= 4) ++copies;
  return std::min(copies, sites);
}

}  // namespace base
