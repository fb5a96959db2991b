// Sampling as a pure function: the token at `index` depends on the logits, the request's settings
// and (seed, choice, index) only, so a draft, a second attempt or another rank draws the same
// token.
#pragma once
#include <span>

#include "base/generation.h"

namespace model {

using base::TokenId;

// What the answer must keep to, as a function of its tokens alone. One object belongs to one
// sequence and one thread at a time; it may keep what it found for earlier tokens.
class Constraint {
 public:
  virtual ~Constraint() = default;
  // Bit t % 64 of word t / 64: token t may come next; at least one bit is set. Empty when `emitted`
  // itself breaks the constraint. Good until the next call.
  virtual std::span<const uint64_t> allowed(std::span<const TokenId> emitted) = 0;
  // The one token that may come next, which is then what sample() draws, whatever the logits;
  // kNoToken where there are several, or it is not known without more work than it may save.
  static constexpr TokenId kNoToken = UINT32_MAX;
  virtual TokenId only_token(std::span<const TokenId> emitted) = 0;
};

struct SampleInput {
  std::span<const float> logits;  // [vocab], finite
  std::span<const TokenId> prompt;
  std::span<const TokenId> emitted;  // its size is the index of the token being drawn
  std::span<const TokenId> eos;
  Constraint* constraint = nullptr;  // REQUIRES: emitted keeps to it
};
struct Sampled {
  TokenId token = 0;
  base::TokenLogprobs logprobs;  // filled when sampling.top_logprobs >= 0
};
// Order: bias, penalties, (tokens barred by the constraint; EOS and stop tokens while index <
// min_tokens, unless they are all that the constraint allows), temperature, top-k, top-p, min-p,
// draw. Ties and equal probabilities: the lower id first. temperature 0: the largest logit.
Sampled sample(const SampleInput& input, const base::Sampling& sampling);

// How the sequence stands after its last emitted token.
base::FinishReason finish_after(std::span<const TokenId> emitted, std::span<const TokenId> eos,
                                const base::Sampling& sampling);

}  // namespace model
