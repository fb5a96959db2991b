// ExpertJob: some experts on some rows, this rank's or another's. Jobs of one layer that wait when
// a compute thread is free are computed by one call of the engine, so that weights are read once
// for all of them; none is waited for. What a row becomes does not depend on its company.
#pragma once
#include <span>

#include "actor/context.h"
#include "base/bytes.h"
#include "experts/load_window.h"
#include "model/engine.h"

namespace experts {

// For /metrics. Grows only.
struct ExpertCounters {
  uint64_t expert_rows_sent = 0, expert_rows_received = 0;
  uint64_t expert_calls = 0, expert_redispatched = 0;  // calls to peers; pairs sent a second time
  uint64_t corrupt = 0;        // messages whose bytes did not match their digest or shape
  uint64_t expert_layers = 0;  // passes' layers of which rows were away; what follows is of these
  // Packing and sending; until the last outputs of peers were here; bringing them home.
  double dispatch_seconds = 0, away_seconds = 0, combine_seconds = 0;
  // Experts computed here for anybody: jobs, calls of the engine that did them, (row, expert)
  // pairs, time in the engine, and time that jobs waited for a thread and for their company.
  uint64_t expert_jobs = 0, expert_batches = 0, expert_pairs = 0;
  double expert_seconds = 0, expert_queue_seconds = 0;
};

// What `rows` rows cost the simulated host in one job.
inline actor::Cost cost_of_rows(size_t rows) { return {std::chrono::microseconds(20 + 2 * rows)}; }

class ExpertJob : public actor::JointJob {
 public:
  // Of jobs done together: rows, and pairs. A bound on how long the first waits for the others.
  static constexpr size_t kTogetherMost = 1024;

  // `x`: f32 [rows, hidden]; `picked`: which of its rows, all if empty. Pairs as
  // model::Engine::experts() has them, over the picked rows. All outlive the job.
  ExpertJob(model::Engine& engine, uint32_t layer, base::ByteView x,
            std::span<const uint32_t> picked, std::span<const uint16_t> pair_rows,
            std::span<const uint16_t> pair_experts)
      : engine_(engine),
        layer_(layer),
        x_(x),
        picked_(picked),
        pair_rows_(pair_rows),
        pair_experts_(pair_experts) {}

  // Runs it and counts it; `window` may be null.
  base::Task<void> compute(actor::Context& ctx, actor::Turn turn, ExpertCounters& counters,
                           LoadWindow* window);
  void run(std::span<actor::JointJob* const> all) override;

 protected:
  // The outputs, f32 [pairs, hidden]. On a compute thread, before compute() ends.
  virtual void take(std::span<const float> out) = 0;

 private:
  size_t row_bytes() const { return engine_.shape().hidden * sizeof(float); }
  size_t rows() const { return picked_.empty() ? x_.size() / row_bytes() : picked_.size(); }
  void append_rows(std::vector<float>& x) const;

  model::Engine& engine_;
  const uint32_t layer_;
  const base::ByteView x_;
  const std::span<const uint32_t> picked_;
  const std::span<const uint16_t> pair_rows_, pair_experts_;
  bool led_ = false;  // this one did the work of its company
};

}  // namespace experts
