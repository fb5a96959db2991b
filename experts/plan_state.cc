#include "experts/plan_state.h"

#include <algorithm>

#include "experts/expert_groups.h"

namespace experts {

PlanState::Taken PlanState::take(const actor::Incoming<proto::ExpertPlan>& in) {
  using Phase = proto::ExpertPlan::Phase;
  const uint64_t epoch = in->epoch;
  const bool held = coming_ && coming_->epoch == epoch;
  switch (in->phase) {
    case Phase::kSettled:
      if (epoch != active_epoch() || settled_ == epoch) return Taken::kNothing;
      settled_ = epoch;
      return Taken::kChanged;
    case Phase::kAborted:
      aborted_ = std::max(aborted_, epoch);
      if (!coming_ || confirmed_ || coming_->epoch > epoch) return Taken::kNothing;
      coming_.reset();
      return Taken::kChanged;
    case Phase::kPrepare:
    case Phase::kActive:
      break;
    default:
      return Taken::kCorrupt;
  }
  const bool confirms = in->phase == Phase::kActive;
  if (epoch <= active_epoch() || (!confirms && epoch <= aborted_)) return Taken::kNothing;
  if (held && (confirmed_ || !confirms)) return Taken::kNothing;
  if (coming_ && coming_->epoch > epoch) return Taken::kNothing;
  if (!held) {
    std::optional<Placement> plan = placement_of(in, layers_, experts_);
    if (!plan) return Taken::kCorrupt;
    coming_ = std::move(plan);
  }
  confirmed_ = confirms;
  return Taken::kChanged;
}

bool PlanState::step() {
  if (!coming_ || !confirmed_) return false;
  active_ = std::move(coming_);
  coming_.reset();
  confirmed_ = false;
  return true;
}

void PlanState::clear() {
  active_.reset();
  coming_.reset();
  confirmed_ = false;
  aborted_ = settled_ = 0;
}

void PlanState::mark_share(const Placement& placement, NodeId self,
                           std::vector<bool>& wanted) const {
  const std::optional<uint32_t> rank = placement.rank_of(self);
  if (!rank) return;
  for (uint32_t layer = 0; layer < layers_; ++layer) {
    for (const uint16_t expert : placement.share(layer, *rank))
      wanted[size_t{layer} * experts_ + expert] = true;
  }
}

std::vector<bool> PlanState::wanted(NodeId self, std::span<const NodeId> alive, Duty duty) const {
  std::vector<bool> wanted(size_t{layers_} * experts_, false);
  if (active_) mark_share(*active_, self, wanted);
  if (coming_) mark_share(*coming_, self, wanted);
  std::vector<bool> held(wanted.size(), false);
  if (active_) {
    for (const NodeId node : alive) mark_share(*active_, node, held);
  }
  for (size_t i = 0; i < held.size(); ++i) {
    const auto expert = static_cast<uint32_t>(i % experts_);
    if (!held[i] && owner_of(expert, experts_, duty.ranks) == duty.index) wanted[i] = true;
  }
  return wanted;
}

}  // namespace experts
