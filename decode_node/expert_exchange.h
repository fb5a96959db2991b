// ExpertExchange: where a decode step runs. Jobs go to the compute pool; expert rows go to the
// ranks that own the experts, those of this rank to the compute pool too, and the layer ends when
// all are home.
//
// A peer that left the view or did not answer in time is avoided for a while and its pairs are
// dispatched again among the others; with nobody left this rank computes them. So a pass fails only
// when this rank's own life ended.
#pragma once
#include <map>
#include <vector>

#include "actor/context.h"
#include "decode_node/counters.h"
#include "decode_node/expert_groups.h"
#include "model/forward.h"
#include "node/membership_client.h"
#include "proto/experts.h"

namespace decode {

// What `rows` rows cost the simulated host in one job.
inline actor::Cost cost_of_rows(size_t rows) { return {std::chrono::microseconds(20 + 2 * rows)}; }

class ExpertExchange final : public model::Site {
 public:
  // All outlive the exchange. One pass at a time.
  ExpertExchange(actor::Context& ctx, model::Engine& engine, const node::View& view,
                 Counters& counters)
      : ctx_(ctx), engine_(engine), view_(view), counters_(counters) {}

  base::Task<void> compute(std::function<void()> job, uint32_t rows) override;
  base::Task<bool> run_experts(uint32_t layer, model::Pass& pass) override;

  uint32_t in_flight() const { return in_flight_; }  // calls to peers

 private:
  enum class Fate : uint8_t {
    kHome,   // the outputs are in the pass
    kAgain,  // this peer cannot; dispatch the pairs again
    kVoid,   // our own life ended
  };
  std::vector<NodeId> ranks();
  base::Task<Fate> ask(uint32_t layer, model::Pass& pass, const ExpertGroup& group);
  base::Task<Fate> run_here(uint32_t layer, model::Pass& pass, const ExpertGroup& group);
  bool bring_home(const actor::Incoming<proto::ExpertOut>& answer, const ExpertGroup& group,
                  model::Pass& pass);
  void avoid(NodeId node, std::string_view why);

  // Constant after construction.
  actor::Context& ctx_;
  model::Engine& engine_;
  const node::View& view_;
  Counters& counters_;
  // Owned state.
  std::map<NodeId, base::Time> avoided_;  // until when
  uint32_t in_flight_ = 0;
  bool computing_ = false;    // a job of the pass is out
  base::Time computed_at_{};  // when the last one came home
};

}  // namespace decode
