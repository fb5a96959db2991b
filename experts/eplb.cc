#include "experts/eplb.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace experts {

namespace {

// Packs as they fill.
class Packer {
 public:
  Packer(std::span<const float> weights, uint32_t packs, std::span<const uint32_t> kinds)
      : weights_(weights), kinds_(kinds), items_(packs), load_(packs, 0.0f) {
    const auto count = static_cast<uint32_t>(weights.size());
    for (uint32_t pack = 0; pack < packs; ++pack)
      room_.push_back(first_of_pack(pack + 1, packs, count) - first_of_pack(pack, packs, count));
  }

  void place(uint32_t item) {
    uint32_t pack = lightest(item, /*apart=*/true);
    if (pack == kNone) pack = make_way(item);
    items_[pack].push_back(item);
    load_[pack] += weights_[item];
  }

  Packing packing() const {
    Packing made{std::vector<uint32_t>(weights_.size()), std::vector<uint32_t>(weights_.size())};
    for (uint32_t pack = 0; pack < items_.size(); ++pack) {
      for (uint32_t rank = 0; rank < items_[pack].size(); ++rank) {
        made.pack[items_[pack][rank]] = pack;
        made.rank[items_[pack][rank]] = rank;
      }
    }
    return made;
  }

 private:
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

  bool has_kind_of(uint32_t pack, uint32_t item) const {
    if (kinds_.empty()) return false;
    const auto same = [&](uint32_t other) { return kinds_[other] == kinds_[item]; };
    return std::ranges::any_of(items_[pack], same);
  }

  uint32_t lightest(uint32_t item, bool apart) const {
    uint32_t best = kNone;
    for (uint32_t pack = 0; pack < items_.size(); ++pack) {
      if (items_[pack].size() >= room_[pack]) continue;
      if (apart && has_kind_of(pack, item)) continue;
      if (best == kNone || load_[pack] < load_[best]) best = pack;
    }
    return best;
  }

  // Every pack with room has the item's kind: an item of a full pack moves to one with room and
  // leaves its place. The swap that leaves the lighter of the two packs' maxima; with none, the
  // item joins its kind.
  uint32_t make_way(uint32_t item) {
    const uint32_t open = lightest(item, /*apart=*/false);
    CHECK(open != kNone, "more items than places");
    uint32_t best_pack = kNone;
    size_t best_at = 0;
    float best = 0;
    for (uint32_t pack = 0; pack < items_.size(); ++pack) {
      if (pack == open || has_kind_of(pack, item)) continue;
      for (size_t at = 0; at < items_[pack].size(); ++at) {
        const uint32_t other = items_[pack][at];
        if (has_kind_of(open, other)) continue;
        const float gives = load_[pack] - weights_[other] + weights_[item];
        const float most = std::max(gives, load_[open] + weights_[other]);
        if (best_pack != kNone && most >= best) continue;
        best_pack = pack, best_at = at, best = most;
      }
    }
    if (best_pack == kNone) return open;
    const uint32_t moved = items_[best_pack][best_at];
    items_[best_pack].erase(items_[best_pack].begin() + static_cast<std::ptrdiff_t>(best_at));
    load_[best_pack] -= weights_[moved];
    items_[open].push_back(moved);
    load_[open] += weights_[moved];
    return best_pack;
  }

  const std::span<const float> weights_;
  const std::span<const uint32_t> kinds_;
  std::vector<uint32_t> room_;                // [packs]
  std::vector<std::vector<uint32_t>> items_;  // [packs]
  std::vector<float> load_;                   // [packs]
};

// The experts, node by node, in the order in which a node numbers its own.
std::vector<uint32_t> experts_by_node(std::span<const float> loads, uint32_t groups,
                                      uint32_t nodes) {
  const auto size = static_cast<uint32_t>(loads.size()) / groups;
  std::vector<float> sums(groups, 0.0f);
  for (uint32_t expert = 0; expert < loads.size(); ++expert) sums[expert / size] += loads[expert];
  const Packing packing = pack_items(sums, nodes);
  std::vector<uint32_t> order(loads.size());
  for (uint32_t expert = 0; expert < loads.size(); ++expert) {
    const uint32_t group = expert / size;
    const uint32_t place = packing.pack[group] * (groups / nodes) + packing.rank[group];
    order[place * size + expert % size] = expert;
  }
  return order;
}

// The plan of one node's experts: `order` is that node's part of experts_by_node().
void balance_node(std::span<const float> loads, std::span<const uint32_t> order, uint32_t slots,
                  uint32_t devices, bool distinct, LayerPlan& plan) {
  std::vector<float> own(order.size());
  for (size_t i = 0; i < order.size(); ++i) own[i] = loads[order[i]];
  const Replicas replicas = distinct ? replicate(own, slots, devices) : replicate(own, slots);
  std::vector<float> shares(slots);
  for (uint32_t slot = 0; slot < slots; ++slot) {
    const uint32_t expert = replicas.expert[slot];
    shares[slot] = own[expert] / static_cast<float>(replicas.count[expert]);
  }
  const std::span<const uint32_t> kinds(replicas.expert);
  const Packing packing =
      pack_items(shares, devices, distinct ? kinds : std::span<const uint32_t>{});
  const auto base = static_cast<uint32_t>(plan.expert.size());
  plan.expert.resize(base + slots);
  plan.rank.resize(base + slots);
  for (uint32_t slot = 0; slot < slots; ++slot) {
    const uint32_t at =
        base + first_of_pack(packing.pack[slot], devices, slots) + packing.rank[slot];
    plan.expert[at] = order[replicas.expert[slot]];
    plan.rank[at] = replicas.rank[slot];
  }
  for (size_t i = 0; i < order.size(); ++i) plan.count[order[i]] = replicas.count[i];
}

}  // namespace

Packing pack_items(std::span<const float> weights, uint32_t packs,
                   std::span<const uint32_t> kinds) {
  CHECK(packs > 0, "no packs");
  std::vector<uint32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0u);
  if (weights.size() == packs) return {order, std::vector<uint32_t>(packs, 0)};
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return weights[a] > weights[b]; });
  Packer packer(weights, packs, kinds);
  for (const uint32_t item : order) packer.place(item);
  return packer.packing();
}

Replicas replicate(std::span<const float> weights, uint32_t slots, uint32_t most) {
  const auto experts = static_cast<uint32_t>(weights.size());
  CHECK(experts > 0 && slots >= experts, "{} slots for {} experts", slots, experts);
  Replicas made;
  made.expert.resize(experts);
  std::iota(made.expert.begin(), made.expert.end(), 0u);
  made.rank.assign(experts, 0);
  made.count.assign(experts, 1);
  while (made.expert.size() < slots) {
    uint32_t best = experts;
    const bool all_have_most =
        std::ranges::all_of(made.count, [&](uint32_t c) { return c >= most; });
    for (uint32_t expert = 0; expert < experts; ++expert) {
      if (!all_have_most && made.count[expert] >= most) continue;
      const auto load = [&](uint32_t e) { return weights[e] / static_cast<float>(made.count[e]); };
      if (best == experts || load(expert) > load(best)) best = expert;
    }
    made.expert.push_back(best);
    made.rank.push_back(made.count[best]++);
  }
  return made;
}

LayerPlan balance_layer(std::span<const float> loads, const Topology& topology) {
  const auto experts = static_cast<uint32_t>(loads.size());
  CHECK(topology.devices > 0 && topology.slots >= experts, "{} slots for {} experts",
        topology.slots, experts);
  uint32_t groups = topology.groups, nodes = topology.nodes;
  const bool divides = groups > 0 && nodes > 0 && groups % nodes == 0 && experts % groups == 0 &&
                       topology.slots % nodes == 0 && topology.devices % nodes == 0;
  if (!divides) groups = nodes = 1;
  const std::vector<uint32_t> order = experts_by_node(loads, groups, nodes);
  LayerPlan plan;
  plan.count.resize(experts);
  for (uint32_t node = 0; node < nodes; ++node) {
    const auto part = std::span(order).subspan(node * (experts / nodes), experts / nodes);
    balance_node(loads, part, topology.slots / nodes, topology.devices / nodes, topology.distinct,
                 plan);
  }
  return plan;
}

std::vector<double> device_loads(std::span<const float> loads, std::span<const uint16_t> expert,
                                 uint32_t devices) {
  std::vector<uint32_t> count(loads.size(), 0);
  for (const uint16_t e : expert) ++count[e];
  const auto slots = static_cast<uint32_t>(expert.size());
  std::vector<double> sums(devices, 0.0);
  for (uint32_t device = 0; device < devices; ++device) {
    for (uint32_t slot = first_of_pack(device, devices, slots);
         slot < first_of_pack(device + 1, devices, slots); ++slot) {
      sums[device] += static_cast<double>(loads[expert[slot]]) / count[expert[slot]];
    }
  }
  return sums;
}

double balancedness(std::span<const double> device_loads) {
  double sum = 0, most = 0;
  for (const double load : device_loads) sum += load, most = std::max(most, load);
  return most == 0 ? 1 : sum / static_cast<double>(device_loads.size()) / most;
}

}  // namespace experts
