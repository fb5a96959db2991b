#include "prefill_node/chunk_plan.h"

#include <algorithm>

#include "base/check.h"

namespace prefill {

uint32_t ChunkPlan::next(uint32_t done, uint32_t total) const {
  CHECK(done < total && base > 0, "a chunk at {} of {} tokens", done, total);
  if (!dynamic) return std::min(base, total - done);
  const uint64_t budget = cost.tokens(0, base);
  uint32_t fits = std::max(base / kLeastPart, 1u), too_many = base + 1;
  while (fits + 1 < too_many) {
    const uint32_t middle = fits + (too_many - fits) / 2;
    (cost.tokens(done, done + middle) <= budget ? fits : too_many) = middle;
  }
  if (base >= kLeastPart * kGrain) fits -= fits % kGrain;
  return std::min(fits, total - done);
}

}  // namespace prefill
