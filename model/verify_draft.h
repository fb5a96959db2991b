// The MTP part of verify: one chain of drafts after a prompt.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/engine.h"

namespace model {

struct DraftTrace {
  std::vector<float> first_logits;  // [tokens, vocab], of step 1 at every position of the prompt
  std::vector<float> logits;        // [steps, vocab], of each step's last row
  std::vector<int64_t> tokens;      // the bonus token and each step's best
};
// final_hidden: [prompt, hidden], the target's; bonus: what the target samples after the prompt;
// `later`: how steps after the first choose positions (kFresh: anew). Empty if the engine drafts
// none.
DraftTrace draft_trace(Engine& engine, std::span<const TokenId> prompt,
                       std::span<const float> final_hidden, TokenId bonus, DraftIndex later);

// The position of the largest logit, the first among equals.
TokenId best_of(std::span<const float> logits);

}  // namespace model
