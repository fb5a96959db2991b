// ExpertPlans: which experts' weights this rank has packed, and the table by which its rows find
// theirs. Follows the coordinator's plans: loads what a plan wants in the background, says when it
// is ready, changes tables at a step boundary, and lets go what no plan in use needs. Where nothing
// is planned it has the even share of the view.
//
// Loading leaves the steps their time: while steps or other ranks' rows are computed it packs one
// expert at a time and then pauses for many times as long. What stands in for a dead rank's experts
// is not paced: without it a step would pack them itself.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "decode_node/counters.h"
#include "experts/expert_dispatch.h"
#include "experts/plan_state.h"
#include "model/engine.h"
#include "node/membership_client.h"

namespace decode {

using actor::Context;
using actor::Incoming;
using base::NodeId;
using base::Task;

struct ExpertPlanOptions {
  bool on = false;  // the coordinator makes plans: it is told of loads and progress
  base::Duration window = std::chrono::seconds(60);
};

class ExpertPlans final : public experts::Routes {
 public:
  // All outlive the plans. `busy`: steps or other ranks' rows are being computed.
  ExpertPlans(const model::Shape& shape, ExpertPlanOptions options, Counters& counters,
              std::function<bool()> busy);

  void start(Context& ctx);  // from Actor::start
  // This rank's place, before the view shows it. Asks for the plan that is active.
  void welcomed(Context& ctx, uint32_t position, uint32_t positions);
  // The engine is there: loads what is wanted at first. Returns when it is.
  Task<void> load(Context& ctx, model::Engine& engine);
  void view_changed(Context& ctx, const node::View& view);
  void on(Context& ctx, const Incoming<proto::ExpertPlan>& in);
  void life_lost();

  // Around each step; rows of it are dispatched by one table.
  void begin_step(Context& ctx);
  void end_steps(Context& ctx);  // for now

  // Routes
  const experts::DispatchTable* table() const override { return table_.get(); }
  experts::LoadWindow* window() override { return options_.on ? &window_ : nullptr; }

  uint32_t loading() const { return static_cast<uint32_t>(to_load_.size()); }  // experts
  uint32_t load_percent() const;
  const experts::PlanState& state() const { return state_; }
  uint64_t epoch() const { return state_.active_epoch(); }
  uint64_t resident() const;  // experts loaded by plan, of all layers

 private:
  struct Expert {
    uint32_t layer;
    uint16_t id;
  };
  void changed(Context& ctx);
  void activate(Context& ctx);
  Task<void> work(Context& ctx);
  Task<void> load_some(Context& ctx);
  void drop_loaded();
  Task<void> release_layer(Context& ctx);
  bool release_due() const { return release_at_ && state_.may_release() && !state_.coming(); }
  Task<void> tell_regularly(Context& ctx);
  void tell(Context& ctx, bool with_loads);

  // Constant after construction.
  const uint32_t layers_, experts_;
  const ExpertPlanOptions options_;
  Counters& counters_;
  const std::function<bool()> busy_;
  // Owned state.
  model::Engine* engine_ = nullptr;  // null until loaded
  experts::PlanState state_;
  experts::LoadWindow window_;
  std::unique_ptr<experts::DispatchTable> table_;  // of the active plan
  experts::PlanState::Duty duty_;
  std::vector<NodeId> alive_;            // ready decode ranks
  std::vector<bool> wanted_, resident_;  // [layers · experts]
  std::vector<Expert> to_load_;          // wanted and not resident; those of no plan first
  size_t urgent_ = 0;                    // so many of them
  uint32_t planned_ = 0;                 // how many the held plan made load
  std::optional<uint32_t> release_at_;   // the next layer to be looked through, if any
  uint64_t ready_ = 0, settled_ = 0;     // epochs, as told
  bool positioned_ = false, stepping_ = false, working_ = false;
};

}  // namespace decode
