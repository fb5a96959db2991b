// ExpertExchange: where a decode step runs. Jobs go to the compute pool; expert rows go to the
// ready ranks of the view that own the experts (experts/expert_dispatch.h), and the layer ends when
// all are home. N-gram rows may come from the ranks that share the tables (lookup/).
#pragma once
#include <optional>
#include <vector>

#include "decode_node/counters.h"
#include "decode_node/shard_exchange.h"
#include "experts/expert_dispatch.h"
#include "lookup/ngram_lookup.h"
#include "model/forward.h"
#include "node/membership_client.h"

namespace decode {

using base::NodeId;
using experts::cost_of_rows;

class ExpertExchange final : public model::Site {
 public:
  // All outlive the exchange.
  ExpertExchange(actor::Context& ctx, model::Engine& engine, const node::View& view,
                 Counters& counters, experts::Routes& routes)
      : ctx_(ctx),
        engine_(engine),
        view_(view),
        counters_(counters),
        dispatch_(ctx, engine, proto::kDecode, counters, &routes),
        shards_(ctx, engine, counters) {}

  base::Task<void> compute(std::function<void()> job, uint32_t rows) override;
  base::Task<bool> run_experts(uint32_t layer, model::Pass& pass) override;
  base::Task<void> look_up(model::Pass& pass) override;
  base::Task<bool> attend_shards(uint32_t layer, uint32_t j, model::Pass& pass) override {
    return shards_.attend(*this, layer, j, pass);
  }

  // The passes of a step begin; several may be under way at once.
  void begin_step() { computed_at_ = ctx_.now(); }
  bool has_peers() const { return ready_ranks().size() > 1; }

  ShardExchange& shards() { return shards_; }
  // From now on the ready ranks share the n-gram tables.
  void share_ngram() { lookup_.emplace(ctx_, engine_, proto::kDecode, counters_); }
  // Calls to peers.
  uint32_t in_flight() const {
    return dispatch_.in_flight() + shards_.in_flight() + (lookup_ ? lookup_->in_flight() : 0);
  }

 private:
  std::vector<NodeId> ready_ranks() const;

  // Constant after construction.
  actor::Context& ctx_;
  model::Engine& engine_;
  const node::View& view_;
  Counters& counters_;
  // Owned state.
  experts::ExpertDispatch dispatch_;
  ShardExchange shards_;
  std::optional<lookup::NgramLookup> lookup_;  // where n-gram tables are shared
  uint32_t jobs_ = 0;                          // of the step's passes, not done yet
  base::Time computed_at_{};                   // when there was one last
};

}  // namespace decode
