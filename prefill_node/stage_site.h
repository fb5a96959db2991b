// StageSite: where a chunk of a job runs: on this node's compute pool, but for experts that another
// rank of the stage owns where these are shared, and n-gram rows likewise. A job that ends
// meanwhile computes nothing more.
#pragma once
#include "experts/expert_dispatch.h"
#include "lookup/ngram_lookup.h"
#include "model/forward.h"
#include "prefill_node/job.h"

namespace prefill {

// For the simulated host's clock; about a small model's speed.
inline actor::Cost cost_of_rows(uint32_t rows) {
  return {std::chrono::microseconds(20 + 2 * uint64_t{rows})};
}

class StageSite final : public model::Site {
 public:
  // `dispatch`: null where every rank runs all experts of its rows; `lookup`: null where it reads
  // all n-gram rows.
  StageSite(Context& ctx, model::Engine& engine, Job& job, experts::ExpertDispatch* dispatch,
            lookup::NgramLookup* lookup)
      : ctx_(ctx), engine_(engine), job_(job), dispatch_(dispatch), lookup_(lookup) {}
  Task<void> compute(std::function<void()> job, uint32_t rows) override;
  Task<bool> run_experts(uint32_t layer, model::Pass& pass) override;
  Task<void> look_up(model::Pass& pass) override;
  bool has_kv(uint32_t layer) override { return job_.has_kv(layer); }
  Task<void> await_kv(uint32_t layer) override { return job_.await_kv(layer); }
  void kv_ready(uint32_t layer, model::Pass& pass) override;
  // In compute(), what waits there for other passes included.
  double seconds() const { return seconds_; }
  bool shares_sequence() const override { return job_.shares_sequence(); }
  Task<bool> gather(uint32_t layer, uint32_t j, model::Pass& pass) override;

 private:
  // The job goes on and so do its rows: they are finite and come from sound arithmetic.
  bool sound(model::Pass& pass);

  Context& ctx_;
  model::Engine& engine_;
  Job& job_;
  double seconds_ = 0;
  experts::ExpertDispatch* const dispatch_;
  lookup::NgramLookup* const lookup_;
};

}  // namespace prefill
