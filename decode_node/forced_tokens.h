// ForcedTokens: what the members of a step must emit next, because their grammar allows nothing
// else. It is emitted before the pass, and the pass has a row for each such token beside that of
// the token before it (step_batch.h); a sequence that ends by them needs no pass at all. It is what
// sampling would give, so it changes what a step costs, never a token (model/forced_run.h).
//
// No Context; find() runs where computing happens, since it uses the members' grammars.
#pragma once
#include <span>
#include <vector>

#include "decode_node/sequence.h"
#include "model/engine.h"

namespace decode {

class ForcedTokens {
 public:
  struct Limits {
    uint32_t rows = 0;          // of a step; 0: nothing is ever forced
    uint32_t tokens_ahead = 1;  // that each member's blocks must still have room for (batcher.h)
  };
  ForcedTokens(const model::Shape& shape, const Limits& limits)
      : eos_(shape.eos), limits_(limits) {}
  // Whether find() could find anything.
  bool possible(std::span<Sequence* const> members) const;
  void find(std::span<Sequence* const> members);
  // Afterwards: what members[i] emits at once; empty where it has a choice.
  const std::vector<TokenId>& run(size_t member) const { return runs_[member]; }

 private:
  uint32_t most(const Sequence& sequence, size_t members) const;

  const std::vector<TokenId> eos_;
  const Limits limits_;
  std::vector<std::vector<TokenId>> runs_;
};

}  // namespace decode
