// PlanState: a rank's side of the expert plans (docs/PROTOCOL.md "Expert plans"): which placement
// its steps dispatch by, which one is to come, and what of the experts' weights that asks for.
// Pure; messages may come late, twice or in any order.
#pragma once
#include <optional>
#include <span>
#include <vector>

#include "experts/expert_placement.h"

namespace experts {

class PlanState {
 public:
  PlanState(uint32_t layers, uint32_t experts) : layers_(layers), experts_(experts) {}

  enum class Taken : uint8_t {
    kNothing,  // known, or overtaken
    kChanged,  // other experts are wanted, or some may go: wanted(), may_release()
    kCorrupt,  // it does not fit its digest or the model
  };
  Taken take(const actor::Incoming<proto::ExpertPlan>& in);
  // A step boundary: a plan that was confirmed becomes the active one. True when one did.
  bool step();
  // Forgets all plans: the coordinator is another, or this life is.
  void clear();

  const Placement* active() const { return active_ ? &*active_ : nullptr; }
  const Placement* coming() const { return coming_ ? &*coming_ : nullptr; }
  bool confirmed() const { return confirmed_; }  // coming() waits for a step boundary only
  uint64_t active_epoch() const { return active_ ? active_->epoch : 0; }
  uint64_t held_epoch() const { return coming_ ? coming_->epoch : active_epoch(); }
  // True when no rank dispatches by an older plan than the active one.
  bool may_release() const { return settled_ == active_epoch(); }

  // Who stands in for experts that no living rank holds: rank `index` of `ranks` ready ones.
  struct Duty {
    uint32_t index = 0, ranks = 1;
    bool operator==(const Duty&) const = default;
  };
  // [layers · experts]: what `self` must have loaded: its shares of both placements, and what the
  // active one leaves to it by owner_of() with only `alive` alive.
  std::vector<bool> wanted(NodeId self, std::span<const NodeId> alive, Duty duty) const;

 private:
  void mark_share(const Placement& placement, NodeId self, std::vector<bool>& wanted) const;

  const uint32_t layers_, experts_;
  std::optional<Placement> active_, coming_;
  bool confirmed_ = false;  // coming_ is to become active_ at the next boundary
  uint64_t aborted_ = 0, settled_ = 0;
};

}  // namespace experts
