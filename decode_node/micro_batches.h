// MicroBatches: the members of a step in one pass or two. Two are under way at once: this rank
// computes one while rows of the other are with their experts' owners. A member's rows stay
// together, and what a row becomes does not depend on its pass, so tokens are the same either way.
// No Context.
#pragma once
#include <array>
#include <span>
#include <string>

#include "decode_node/step_batch.h"

namespace decode {

class MicroBatches {
 public:
  static constexpr uint32_t kMost = 2;

  // How many passes pay: `most` of them where experts are with peers and each has at least
  // `least_rows`, for a pass reads all dense weights whatever its rows.
  static uint32_t passes_for(std::span<Sequence* const> members, uint32_t most, uint32_t least_rows,
                             bool peers);
  // The first members go to the first pass, about half of all rows.  REQUIRES: passes ≤ members
  void assemble(std::span<Sequence* const> members, model::KvPool& pool, const model::Shape& shape,
                uint32_t passes);
  std::span<StepBatch> passes() { return std::span(batches_).first(passes_); }

  uint32_t rows() const;
  // Of a member of the step, as StepBatch has it.
  const StepBatch::Next& next(size_t member) const;
  std::string fault(size_t member) const;

 private:
  std::array<StepBatch, kMost> batches_;
  uint32_t passes_ = 1;
  size_t first_ = 0;  // members of the first pass
};

}  // namespace decode
