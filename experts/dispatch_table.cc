#include "experts/dispatch_table.h"

#include <algorithm>
#include <limits>

namespace experts {

namespace {
constexpr uint32_t kNobody = std::numeric_limits<uint32_t>::max();
}  // namespace

DispatchTable::DispatchTable(const Placement& placement, NodeId self)
    : epoch_(placement.epoch), experts_(placement.experts), ranks_(placement.ranks) {
  const auto ranks = static_cast<uint32_t>(ranks_.size());
  const uint32_t begin = placement.rank_of(self).value_or(0);
  std::vector<std::vector<uint16_t>> of(experts_);
  first_.push_back(0);
  for (uint32_t layer = 0; layer < placement.layers; ++layer) {
    for (auto& holders : of) holders.clear();
    for (uint32_t step = 0; step < ranks; ++step) {
      const uint32_t rank = (begin + step) % ranks;
      for (const uint16_t expert : placement.share(layer, rank)) {
        const bool twice = !of[expert].empty() && of[expert].back() == rank;
        if (!twice) of[expert].push_back(static_cast<uint16_t>(rank));
      }
    }
    for (const auto& holders : of) {
      holders_.insert(holders_.end(), holders.begin(), holders.end());
      first_.push_back(static_cast<uint32_t>(holders_.size()));
    }
  }
}

std::vector<uint32_t> DispatchTable::choose(uint32_t layer, std::span<const uint32_t> slots,
                                            const model::Pass& pass, const model::Shape& shape,
                                            std::span<const NodeId> alive) const {
  std::vector<uint32_t> place(ranks_.size(), kNobody);  // of each rank among the alive
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    const auto found = std::ranges::find(alive, ranks_[rank]);
    if (found != alive.end()) place[rank] = static_cast<uint32_t>(found - alive.begin());
  }
  std::vector<uint32_t> load(alive.size(), 0), chosen(slots.size(), kNobody);
  std::vector<size_t> open;  // pairs with a choice
  for (size_t i = 0; i < slots.size(); ++i) {
    const uint32_t expert = pass.expert_ids[slots[i]];
    uint32_t living = 0, only = kNobody;
    for (const uint16_t rank : holders(layer, expert)) {
      if (place[rank] == kNobody) continue;
      only = place[rank];
      if (++living > 1) break;
    }
    if (living == 0) only = owner_of(expert, shape.experts, static_cast<uint32_t>(alive.size()));
    if (living > 1) {
      open.push_back(i);
    } else {
      chosen[i] = only;
      ++load[only];
    }
  }
  for (const size_t i : open) {
    uint32_t best = kNobody;
    for (const uint16_t rank : holders(layer, pass.expert_ids[slots[i]])) {
      const uint32_t at = place[rank];
      if (at != kNobody && (best == kNobody || load[at] < load[best])) best = at;
    }
    chosen[i] = best;
    ++load[best];
  }
  return chosen;
}

}  // namespace experts
