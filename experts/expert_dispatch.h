// ExpertDispatch: sends the rows of a pass to the ranks that own their experts and brings the
// outputs home; what this rank owns goes to its compute pool.
//
// A peer that left the view or did not answer in time is avoided for a while and its pairs are
// dispatched again among the others; with nobody left this rank computes them. So it fails only
// when this rank's own life ended.
#pragma once
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "actor/context.h"
#include "experts/dispatch_table.h"
#include "experts/expert_groups.h"
#include "experts/expert_job.h"
#include "experts/load_window.h"
#include "proto/experts.h"

namespace experts {

// Where rows go, and who counts them.
class Routes {
 public:
  virtual ~Routes() = default;
  // Null: by owner_of(). May change whenever the reactor turns.
  virtual const DispatchTable* table() const = 0;
  virtual LoadWindow* window() = 0;  // may be null
};

class ExpertDispatch {
 public:
  static constexpr size_t kAnswerMost = 16u << 20;  // bytes of pairs asked for in one call

  // All outlive the dispatch. `actor`: who answers ExpertIn at the ranks. Without routes experts
  // are where owner_of() says.
  ExpertDispatch(actor::Context& ctx, model::Engine& engine, uint16_t actor,
                 ExpertCounters& counters, Routes* routes = nullptr)
      : ctx_(ctx), engine_(engine), actor_(actor), counters_(counters), routes_(routes) {}

  // Fills pass.expert_out for the routed experts of `layer`. `ranks`: all who own a share of them,
  // in order, this one among them or not. False: our own life has ended. The rows of several passes
  // may be away at once.
  base::Task<bool> run(uint32_t layer, model::Pass& pass, std::vector<NodeId> ranks);

  uint32_t in_flight() const { return in_flight_; }  // calls to peers

 private:
  enum class Fate : uint8_t {
    kHome,   // the outputs are in the pass
    kAgain,  // this peer cannot; dispatch the pairs again
    kVoid,   // our own life ended
  };
  std::vector<NodeId> answering(const std::vector<NodeId>& ranks);
  std::vector<ExpertGroup> groups_of(uint32_t layer, std::span<const uint32_t> slots,
                                     const model::Pass& pass,
                                     const std::vector<NodeId>& ranks) const;
  base::Task<Fate> ask(uint32_t layer, model::Pass& pass, const ExpertGroup& group);
  base::Task<Fate> run_here(uint32_t layer, model::Pass& pass, const ExpertGroup& group);
  bool bring_home(const actor::Incoming<proto::ExpertOut>& answer, const ExpertGroup& group,
                  model::Pass& pass);
  void avoid(NodeId node, std::string_view why);

  // Constant after construction.
  actor::Context& ctx_;
  model::Engine& engine_;
  const uint16_t actor_;
  ExpertCounters& counters_;
  Routes* const routes_;
  // Owned state.
  std::map<NodeId, base::Time> avoided_;  // until when
  uint32_t in_flight_ = 0;
};

}  // namespace experts
