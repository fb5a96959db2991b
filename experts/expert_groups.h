// Which rank computes which (row, expert) pairs: pure functions of the pass and the list of ranks.
// docs/PROTOCOL.md "Experts".
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "model/engine.h"

namespace experts {

using base::NodeId;

// Index of the owner of `expert` among `ranks` ready ranks: ⌊e·R/E⌋.
uint32_t owner_of(uint32_t expert, uint32_t experts, uint32_t ranks);
// The experts that rank `index` of `ranks` owns, ascending.
std::vector<uint16_t> share_of(uint32_t index, uint32_t ranks, uint32_t experts);

// The pairs that one rank is asked for.
struct ExpertGroup {
  NodeId owner;
  std::vector<uint32_t> rows;          // of the pass, ascending, each once
  std::vector<uint16_t> pair_rows;     // indices into `rows`
  std::vector<uint16_t> pair_experts;  // of each pair
  std::vector<uint32_t> slots;         // of each pair in Pass::expert_out: row · topk + k
};

// The slots of all routed pairs of the pass (experts that own weights), ascending.
std::vector<uint32_t> routed_slots(const model::Pass& pass, const model::Shape& shape);
// `slots` by who was chosen for each, an index into `ranks`, in the order of `ranks`; ranks that
// have none of them are left out.  REQUIRES: slots ascending
std::vector<ExpertGroup> group_by_choice(std::span<const uint32_t> slots,
                                         std::span<const uint32_t> choice, const model::Pass& pass,
                                         const model::Shape& shape, std::span<const NodeId> ranks);
// `slots` by owner, in the order of `ranks`; ranks that own none of them are left out.
// REQUIRES: slots ascending, ranks not empty.
std::vector<ExpertGroup> group_by_owner(std::span<const uint32_t> slots, const model::Pass& pass,
                                        const model::Shape& shape, std::span<const NodeId> ranks);

}  // namespace experts
