#include "decode_node/forced_tokens.h"

#include <algorithm>

#include "model/forced_run.h"

namespace decode {

namespace {

bool asks(const Sequence& sequence) {
  return sequence.matcher && !sequence.doomed && sequence.sampling.top_logprobs < 0;
}

}  // namespace

// Of a run: what the answer and its blocks have room for, and its part of the step's rows.
uint32_t ForcedTokens::most(const Sequence& sequence, size_t members) const {
  const uint32_t left = sequence.most_emitted - sequence.emitted();
  const auto rows = static_cast<uint32_t>(limits_.rows / members);
  uint32_t most = std::min({model::kForcedMost, left, std::max(rows, 1u) - 1});
  const size_t here = (sequence.first_block + sequence.blocks.size()) * model::kBlockTokens;
  if (here >= size_t{sequence.prompt_tokens} + sequence.most_emitted) return most;
  const size_t spoken_for = sequence.tokens.size() + limits_.tokens_ahead;
  return static_cast<uint32_t>(std::min<size_t>(most, here > spoken_for ? here - spoken_for : 0));
}

bool ForcedTokens::possible(std::span<Sequence* const> members) const {
  return limits_.rows > 0 &&
         std::ranges::any_of(members, [](const Sequence* s) { return asks(*s); });
}

void ForcedTokens::find(std::span<Sequence* const> members) {
  runs_.assign(members.size(), {});
  for (size_t i = 0; i < members.size(); ++i) {
    Sequence& sequence = *members[i];
    if (!asks(sequence)) continue;
    const std::span<const TokenId> emitted =
        std::span<const TokenId>(sequence.tokens).subspan(sequence.prompt_tokens);
    runs_[i] = model::forced_run(*sequence.matcher, emitted, eos_, sequence.sampling,
                                 most(sequence, members.size()));
  }
}

}  // namespace decode
