#include "experts/expert_placement.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "experts/eplb.h"

namespace experts {

namespace {

constexpr size_t kRanksMost = 4096, kSlotsMost = 1u << 16;

// How many of `share` are in `held`.
uint32_t common(std::span<const uint16_t> share, std::span<const uint16_t> held) {
  return static_cast<uint32_t>(std::ranges::count_if(
      share, [&](uint16_t e) { return std::ranges::find(held, e) != held.end(); }));
}

// `made` is a layer's experts device by device. Which rank takes which device's share is free among
// devices of the same size: the pairs with most in common first.
void take_places(Placement& plan, uint32_t layer, std::span<const uint16_t> made,
                 const Placement& former) {
  const auto ranks = static_cast<uint32_t>(plan.ranks.size());
  const auto begin = [&](uint32_t rank) { return first_of_pack(rank, ranks, plan.slots); };
  const auto part = [&](uint32_t device) {
    return made.subspan(begin(device), begin(device + 1) - begin(device));
  };
  struct Pair {
    uint32_t rank, device, common;
  };
  std::vector<Pair> pairs;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    const std::optional<uint32_t> held = former.rank_of(plan.ranks[rank]);
    for (uint32_t device = 0; device < ranks; ++device) {
      if (part(device).size() != begin(rank + 1) - begin(rank)) continue;
      const uint32_t same = held ? common(part(device), former.share(layer, *held)) : 0;
      pairs.push_back({rank, device, same});
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& a, const Pair& b) { return a.common > b.common; });
  std::vector<bool> placed(ranks, false), taken(ranks, false);
  for (const Pair& pair : pairs) {
    if (placed[pair.rank] || taken[pair.device]) continue;
    placed[pair.rank] = taken[pair.device] = true;
    std::ranges::copy(
        part(pair.device),
        plan.expert.begin() + static_cast<std::ptrdiff_t>(layer) * plan.slots + begin(pair.rank));
  }
}

}  // namespace

std::span<const uint16_t> Placement::share(uint32_t layer, uint32_t rank) const {
  const auto all = static_cast<uint32_t>(ranks.size());
  const uint32_t begin = first_of_pack(rank, all, slots);
  return this->layer(layer).subspan(begin, first_of_pack(rank + 1, all, slots) - begin);
}

std::optional<uint32_t> Placement::rank_of(NodeId node) const {
  const auto found = std::ranges::find(ranks, node);
  if (found == ranks.end()) return std::nullopt;
  return static_cast<uint32_t>(found - ranks.begin());
}

Placement even_placement(std::vector<NodeId> ranks, uint32_t layers, uint32_t experts) {
  Placement even;
  even.layers = layers;
  even.experts = even.slots = experts;
  even.ranks = std::move(ranks);
  even.expert.resize(static_cast<size_t>(layers) * experts);
  for (size_t i = 0; i < even.expert.size(); ++i) {
    even.expert[i] = static_cast<uint16_t>(i % experts);
  }
  return even;
}

Placement plan_placement(std::span<const float> loads, std::vector<NodeId> ranks,
                         uint32_t redundant, const Placement& former) {
  CHECK(!ranks.empty() && loads.size() == size_t{former.layers} * former.experts,
        "a plan for nobody, or loads of another model");
  Placement plan;
  plan.layers = former.layers;
  plan.experts = former.experts;
  const auto devices = static_cast<uint32_t>(ranks.size());
  plan.slots = static_cast<uint32_t>(
      std::min<uint64_t>(uint64_t{plan.experts} + redundant, uint64_t{plan.experts} * devices));
  plan.ranks = std::move(ranks);
  plan.expert.resize(static_cast<size_t>(plan.layers) * plan.slots);
  for (uint32_t layer = 0; layer < plan.layers; ++layer) {
    const auto own = loads.subspan(static_cast<size_t>(layer) * plan.experts, plan.experts);
    const LayerPlan made = balance_layer(own, {.slots = plan.slots, .devices = devices});
    const std::vector<uint16_t> narrow(made.expert.begin(), made.expert.end());
    take_places(plan, layer, narrow, former);
  }
  return plan;
}

std::vector<double> rank_loads(const Placement& placement, uint32_t layer,
                               std::span<const float> loads) {
  const auto own = loads.subspan(static_cast<size_t>(layer) * placement.experts, placement.experts);
  return device_loads(own, placement.layer(layer), static_cast<uint32_t>(placement.ranks.size()));
}

double balancedness(const Placement& placement, std::span<const float> loads) {
  double mean = 0, most = 0;
  for (uint32_t layer = 0; layer < placement.layers; ++layer) {
    const std::vector<double> ranks = rank_loads(placement, layer, loads);
    mean += std::accumulate(ranks.begin(), ranks.end(), 0.0) / static_cast<double>(ranks.size());
    most += *std::ranges::max_element(ranks);
  }
  return most == 0 ? 1 : mean / most;
}

base::Blob to_blob(const Placement& placement) {
  return base::Blob::of(std::span<const uint16_t>(placement.expert));
}

std::optional<Placement> placement_of(const actor::Incoming<proto::ExpertPlan>& in, uint32_t layers,
                                      uint32_t experts) {
  Placement plan;
  plan.epoch = in->epoch;
  plan.layers = layers;
  plan.experts = experts;
  plan.slots = in->slots;
  plan.ranks = in->ranks;
  if (plan.epoch == 0 || plan.ranks.empty() || plan.ranks.size() > kRanksMost) return std::nullopt;
  if (plan.slots < experts || plan.slots > kSlotsMost + experts) return std::nullopt;
  const size_t entries = static_cast<size_t>(layers) * plan.slots;
  if (in.blobs.size() != 1 || in.blobs[0].size() != entries * sizeof(uint16_t)) return std::nullopt;
  if (base::hash128(in.blobs[0].view()) != in->digest) return std::nullopt;
  plan.expert = in.blobs[0].to_vector<uint16_t>();
  for (uint32_t layer = 0; layer < layers; ++layer) {
    std::vector<bool> there(experts, false);
    for (const uint16_t expert : plan.layer(layer)) {
      if (expert >= experts) return std::nullopt;
      there[expert] = true;
    }
    if (std::ranges::find(there, false) != there.end()) return std::nullopt;
  }
  return plan;
}

}  // namespace experts
