// DispatchTable: where the rows of one rank go under one placement, made once an epoch. Which of an
// expert's replicas computes a row never changes the row's bits, so the choice is for speed alone;
// it follows from the pass and the table, so that a run can be repeated.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "experts/expert_groups.h"
#include "experts/expert_placement.h"

namespace experts {

class DispatchTable {
 public:
  // The replicas of an expert stand in the order in which `self` tries them: its own, then those of
  // the ranks after it. Ranks begin at different replicas, so that equals share them.
  DispatchTable(const Placement& placement, NodeId self);

  // Who computes each of `slots` (ascending, of routed pairs): an index into `alive`, the ranks
  // that may be asked, this one too. Experts with one replica first, then each pair goes to the
  // replica whose rank has least of this pass. Without a replica alive: owner_of() among `alive`.
  std::vector<uint32_t> choose(uint32_t layer, std::span<const uint32_t> slots,
                               const model::Pass& pass, const model::Shape& shape,
                               std::span<const NodeId> alive) const;
  uint64_t epoch() const { return epoch_; }

 private:
  std::span<const uint16_t> holders(uint32_t layer, uint32_t expert) const {
    const size_t at = size_t{layer} * experts_ + expert;
    return std::span(holders_).subspan(first_[at], first_[at + 1] - first_[at]);
  }

  // Constant after construction.
  const uint64_t epoch_;
  const uint32_t experts_;
  const std::vector<NodeId> ranks_;
  std::vector<uint32_t> first_;    // [layers · experts + 1], in holders_
  std::vector<uint16_t> holders_;  // indices into ranks_, in the order of trying
};

}  // namespace experts
