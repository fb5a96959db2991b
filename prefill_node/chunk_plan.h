// ChunkPlan: where the chunks of a prompt end. Fixed: `base` tokens each. Dynamic: each costs what
// the first `base` tokens cost, so that a stage is busy as long with every chunk and the stage
// after it never waits for a growing context (reference: chunked pipeline parallelism with dynamic
// chunks). A function of the position alone: the ranks of a stage decide the same without a word.
#pragma once
#include <cstdint>

#include "model/prefill_cost.h"

namespace prefill {

struct ChunkPlan {
  // A chunk shrinks to this part of the base and no further: small chunks compute slowly.
  static constexpr uint32_t kLeastPart = 4;
  // Sizes are multiples of this where the base is large enough.
  static constexpr uint32_t kGrain = 16;

  uint32_t base = 256;
  bool dynamic = false;
  model::PrefillCost cost;

  // Tokens of the chunk at `done` of a prompt of `total`.  REQUIRES: done < total
  uint32_t next(uint32_t done, uint32_t total) const;
};

}  // namespace prefill
