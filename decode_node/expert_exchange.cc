#include "decode_node/expert_exchange.h"

namespace decode {

base::Task<void> ExpertExchange::compute(std::function<void()> job, uint32_t rows) {
  ++jobs_;
  base::Task<void> run = ctx_.offload(std::move(job), cost_of_rows(rows));
  co_await std::move(run);
  --jobs_;
  computed_at_ = ctx_.now();
}

std::vector<NodeId> ExpertExchange::ready_ranks() const {
  std::vector<NodeId> ranks;
  for (const proto::ViewNode* rank : view_.ready(proto::Role::kDecode)) ranks.push_back(rank->node);
  return ranks;
}

base::Task<void> ExpertExchange::look_up(model::Pass& pass) {
  if (!lookup_) co_return;
  std::vector<NodeId> ranks = ready_ranks();
  base::Task<void> run = lookup_->run(pass, std::move(ranks));
  co_await std::move(run);
}

base::Task<bool> ExpertExchange::run_experts(uint32_t layer, model::Pass& pass) {
  std::vector<NodeId> ranks = ready_ranks();
  base::Task<bool> away = dispatch_.run(layer, pass, std::move(ranks));
  const bool home = co_await std::move(away);
  if (jobs_ == 0) {
    counters_.expert_wait_seconds += base::seconds(ctx_.now() - computed_at_);
    computed_at_ = ctx_.now();
  }
  co_return home;
}

}  // namespace decode
