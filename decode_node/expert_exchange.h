// ExpertExchange: where a decode step runs. Jobs go to the compute pool; expert rows go to the
// ready ranks of the view that own the experts (experts/expert_dispatch.h), and the layer ends when
// all are home.
#pragma once
#include "decode_node/counters.h"
#include "experts/expert_dispatch.h"
#include "model/forward.h"
#include "node/membership_client.h"

namespace decode {

using base::NodeId;
using experts::cost_of_rows;

class ExpertExchange final : public model::Site {
 public:
  // All outlive the exchange. One pass at a time.
  ExpertExchange(actor::Context& ctx, model::Engine& engine, const node::View& view,
                 Counters& counters, experts::Routes& routes)
      : ctx_(ctx),
        view_(view),
        counters_(counters),
        dispatch_(ctx, engine, proto::kDecode, counters, &routes) {}

  base::Task<void> compute(std::function<void()> job, uint32_t rows) override;
  base::Task<bool> run_experts(uint32_t layer, model::Pass& pass) override;

  uint32_t in_flight() const { return dispatch_.in_flight(); }  // calls to peers

 private:
  // Constant after construction.
  actor::Context& ctx_;
  const node::View& view_;
  Counters& counters_;
  // Owned state.
  experts::ExpertDispatch dispatch_;
  bool computing_ = false;    // a job of the pass is out
  base::Time computed_at_{};  // when the last one came home
};

}  // namespace decode
