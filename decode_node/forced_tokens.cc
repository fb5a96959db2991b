#include "decode_node/forced_tokens.h"

#include <algorithm>
#include <limits>

#include "model/forced_run.h"

namespace decode {

namespace {

bool asks(const Sequence& sequence) {
  return sequence.matcher && !sequence.doomed && sequence.sampling.top_logprobs < 0;
}

// Rows of a pass are numbered in 16 bits (RoutedPairs).
uint32_t most_rows(uint32_t max_batch) {
  return std::min(model::kForcedMost, std::numeric_limits<uint16_t>::max() / max_batch - 1);
}

}  // namespace

ForcedTokens::ForcedTokens(const model::Shape& shape, uint32_t max_batch, bool on)
    : eos_(shape.eos), most_(on ? most_rows(max_batch) : 0) {}

bool ForcedTokens::possible(std::span<Sequence* const> members) const {
  return most_ > 0 && std::ranges::any_of(members, [](const Sequence* s) { return asks(*s); });
}

void ForcedTokens::find(std::span<Sequence* const> members) {
  runs_.assign(members.size(), {});
  for (size_t i = 0; i < members.size(); ++i) {
    Sequence& sequence = *members[i];
    if (!asks(sequence)) continue;
    const std::span<const TokenId> emitted =
        std::span<const TokenId>(sequence.tokens).subspan(sequence.prompt_tokens);
    const uint32_t left = sequence.most_emitted - sequence.emitted();
    runs_[i] = model::forced_run(*sequence.matcher, emitted, eos_, sequence.sampling,
                                 std::min(most_, left));
  }
}

}  // namespace decode
