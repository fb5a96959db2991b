// Placement: which ranks hold which experts of each layer, by a plan of the coordinator
// (experts/eplb.h) or, without one, an even share each. Plain data and pure functions.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "actor/message.h"
#include "base/ids.h"
#include "proto/experts.h"

namespace experts {

using base::NodeId;

struct Placement {
  uint64_t epoch = 0;  // 0: of no plan
  uint32_t layers = 0, experts = 0, slots = 0;
  std::vector<NodeId> ranks;
  std::vector<uint16_t> expert;  // [layers, slots], rank by rank as first_of_pack() deals them

  std::span<const uint16_t> layer(uint32_t layer) const {
    return std::span(expert).subspan(static_cast<size_t>(layer) * slots, slots);
  }
  // What rank `rank` of `ranks` holds of a layer.
  std::span<const uint16_t> share(uint32_t layer, uint32_t rank) const;
  // The index of a node in `ranks`, if it is there.
  std::optional<uint32_t> rank_of(NodeId node) const;
  bool operator==(const Placement&) const = default;
};

// Without a plan: expert e is at rank ⌊e·R/E⌋ (experts/expert_groups.h).
Placement even_placement(std::vector<NodeId> ranks, uint32_t layers, uint32_t experts);

// The plan for loads [layers, experts] with `redundant` more copies in each layer, as far as there
// are ranks to hold them apart. Ranks that could change places are given the places where they have
// most experts already by `former`.
Placement plan_placement(std::span<const float> loads, std::vector<NodeId> ranks,
                         uint32_t redundant, const Placement& former);

// What each rank has to do in a layer under these loads.
std::vector<double> rank_loads(const Placement& placement, uint32_t layer,
                               std::span<const float> loads);
// Σ over layers of the ranks' mean load, over Σ of the largest: what share of the time in expert
// layers the average rank computes. In (0, 1].
double balancedness(const Placement& placement, std::span<const float> loads);

// The table as it travels.
base::Blob to_blob(const Placement& placement);
// The plan of a message, or nothing when it does not fit the model or its digest.
std::optional<Placement> placement_of(const actor::Incoming<proto::ExpertPlan>& in, uint32_t layers,
                                      uint32_t experts);

}  // namespace experts
