// What may enter: the checks a submission must pass before it is a request, and the limits it gets.
// Pure.
#pragma once
#include <cstdint>

#include "base/result.h"
#include "coordinator/gateway.h"

namespace coordinator {

struct AdmissionLimits {
  uint32_t vocab = 0;
  uint32_t max_context = 0;  // tokens of prompt and answer together
  // KV tokens of the largest decode rank; 0: not known yet. An answer of unstated length is cut to
  // what fits there.
  uint64_t largest_rank_tokens = 0;
};

// Checks the submission and sets sampling.max_tokens when it was 0 (as much as the context holds).
// kInvalidArgument, kContextLength.
base::Status admit(Submission& submission, const AdmissionLimits& limits);

// Blocks of 64 tokens that a decode rank needs for `prompt` tokens and `max_tokens` more.
uint32_t kv_blocks(uint64_t prompt, uint64_t max_tokens);

}  // namespace coordinator
