// Tokens that need no forward pass: where a constraint allows exactly one token, sampling has no
// choice, so the token is known before its logits are. They are emitted at once; the next pass
// computes their KV beside that of the token before them.
#pragma once
#include <vector>

#include "model/sampler.h"

namespace model {

inline constexpr uint32_t kForcedMost = 32;  // tokens of a run: rows that the next pass has more

// What must follow `emitted`, at most `most` tokens, the one that ends the sequence included. Empty
// where there is a choice, and where logprobs are asked for: they need the pass.
// REQUIRES: finish_after(emitted) is kNone.
std::vector<TokenId> forced_run(Constraint& constraint, std::span<const TokenId> emitted,
                                std::span<const TokenId> eos, const base::Sampling& sampling,
                                uint32_t most = kForcedMost);

}  // namespace model
