#include "prefill_node/stage_site.h"

#include <fmt/core.h>

#include <algorithm>

#include "experts/expert_service.h"

namespace prefill {

Task<void> StageSite::compute(std::function<void()> job, uint32_t rows) {
  if (job_.over()) co_return;
  const base::Time begun = ctx_.now();
  Task<void> run = ctx_.offload(std::move(job), cost_of_rows(rows));
  co_await std::move(run);
  seconds_ += base::seconds(ctx_.now() - begun);
}

Task<bool> StageSite::run_experts(uint32_t layer, model::Pass& pass) {
  if (job_.over()) co_return false;
  if (dispatch_ != nullptr && job_.shares_sequence()) {
    base::Task<bool> away = dispatch_->run(layer, pass, job_.ranks_of_stage());
    const bool home = co_await std::move(away);
    co_return home && !job_.over();
  }
  std::function<void()> job = [this, layer, &pass] { engine_.routed_experts(layer, pass); };
  Task<void> run = ctx_.offload(std::move(job), cost_of_rows(pass.rows()));
  co_await std::move(run);
  co_return !job_.over();
}

Task<void> StageSite::look_up(model::Pass& pass) {
  if (lookup_ == nullptr || !job_.shares_sequence() || job_.over()) co_return;
  Task<void> run = lookup_->run(pass, job_.ranks_of_stage());
  co_await std::move(run);
}

// KV that is not a number, or comes from arithmetic caught in a fault, stays here.
bool StageSite::sound(model::Pass& pass) {
  if (job_.over() || !experts::can_be_trusted(ctx_, engine_)) return false;
  const auto faulty = std::ranges::find_if(pass.faulty, [](uint32_t at) { return at != 0; });
  if (faulty == pass.faulty.end()) return true;
  job_.numerical_error(fmt::format("the hidden row of layer {} is not finite", *faulty - 1));
  return false;
}

void StageSite::kv_ready(uint32_t layer, model::Pass& pass) {
  if (sound(pass)) job_.layer_done(layer);
}

Task<bool> StageSite::gather(uint32_t layer, uint32_t j, model::Pass& pass) {
  if (!sound(pass)) co_return false;
  Task<bool> others = job_.gather(layer, j);
  const bool all = co_await std::move(others);
  co_return all;
}

}  // namespace prefill
