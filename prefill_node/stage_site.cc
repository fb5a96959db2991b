#include "prefill_node/stage_site.h"

namespace prefill {

Task<void> StageSite::compute(std::function<void()> job, uint32_t rows) {
  if (job_.over()) co_return;
  Task<void> run = ctx_.offload(std::move(job), cost_of_rows(rows));
  co_await std::move(run);
}

Task<bool> StageSite::run_experts(uint32_t layer, model::Pass& pass) {
  if (job_.over()) co_return false;
  std::function<void()> job = [this, layer, &pass] {
    model::run_all_experts(engine_, layer, pass);
  };
  Task<void> run = ctx_.offload(std::move(job), cost_of_rows(pass.rows()));
  co_await std::move(run);
  co_return !job_.over();
}

void StageSite::kv_ready(uint32_t layer, model::Pass&) {
  if (!job_.over()) job_.layer_done(layer);
}

}  // namespace prefill
