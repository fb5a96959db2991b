// Sampling as a pure function: the token at `index` depends on the logits, the request's settings
// and (seed, choice, index) only, so a draft, a second attempt or another rank draws the same
// token.
#pragma once
#include <span>

#include "base/generation.h"

namespace model {

using base::TokenId;

struct SampleInput {
  std::span<const float> logits;  // [vocab], finite
  std::span<const TokenId> prompt;
  std::span<const TokenId> emitted;  // its size is the index of the token being drawn
  std::span<const TokenId> eos;
};
struct Sampled {
  TokenId token = 0;
  base::TokenLogprobs logprobs;  // filled when sampling.top_logprobs >= 0
};
// Order: bias, penalties, (EOS and stop tokens barred while index < min_tokens), temperature,
// top-k, top-p, min-p, draw. Ties and equal probabilities: the lower id first. temperature 0: the
// largest logit.
Sampled sample(const SampleInput& input, const base::Sampling& sampling);

// How the sequence stands after its last emitted token.
base::FinishReason finish_after(std::span<const TokenId> emitted, std::span<const TokenId> eos,
                                const base::Sampling& sampling);

}  // namespace model
