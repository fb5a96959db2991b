// StageSender: carries the hidden rows of one job's chunks to the next stage, two chunks
// unacknowledged at most.
#pragma once
#include "prefill_node/delivery.h"
#include "prefill_node/job_key.h"
#include "prefill_node/task_set.h"

namespace prefill {

class StageSender {
 public:
  static constexpr uint32_t kWindow = 2;

  StageSender(Context& ctx, Party& party, JobKey key, Address next, DeliveryCounters& counters)
      : ctx_(ctx), party_(party), key_(key), next_(next), counters_(counters) {}

  // rows: f32, those of this rank's tokens of the chunk.  REQUIRES: !full()
  void push(uint32_t begin, uint32_t count, base::Blob rows);

  bool full() const { return unacknowledged_ >= kWindow; }
  bool idle() const { return unacknowledged_ == 0; }
  uint32_t unacknowledged() const { return unacknowledged_; }

 private:
  Task<void> send(proto::StageInput message, base::Blob rows);

  // Constant after construction.
  Context& ctx_;
  Party& party_;
  const JobKey key_;
  const Address next_;
  DeliveryCounters& counters_;
  // Owned state.
  uint32_t unacknowledged_ = 0;
  TaskSet tasks_;
};

}  // namespace prefill
