// What a pass must read and compute, from the config and the formats in memory: the denominators of
// "% of bandwidth" and "% of peak".
#pragma once
#include <cstdint>

#include "model/quantise.h"

namespace bench {

class Costs {
 public:
  Costs(const model::Checkpoint& checkpoint, model::WeightChoice weights);

  uint64_t elements() const { return elements_; }       // of the checkpoint's trunk
  uint64_t active() const { return active_elements_; }  // a token multiplies with
  // Bytes that one pass reads: every matrix once (lm_head too), of each layer's experts those that
  // any row chose. Scales included; norms and table rows are too few to count.
  double weight_bytes(uint64_t experts_chosen /* summed over the layers */) const {
    return dense_bytes_ + static_cast<double>(experts_chosen) * expert_bytes_;
  }
  // Operations of `rows` rows of which `heads` go through lm_head, at `positions` positions
  // attended, summed over the rows (the same in every attention).
  double operations(uint64_t rows, uint64_t heads, double positions) const;
  // Bytes of KV that a row reads which attends `positions` positions.
  double kv_bytes(double positions) const;

 private:
  model::ModelConfig config_;
  uint64_t elements_ = 0, active_elements_ = 0, head_elements_ = 0;
  double dense_bytes_ = 0, expert_bytes_ = 0;
};

}  // namespace bench
