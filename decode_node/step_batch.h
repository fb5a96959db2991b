// StepBatch: the arithmetic side of one decode step. Each member adds a row for each token that has
// no KV yet (its last, and forced ones with the one before them), and one for each of its drafts
// behind them. What the target samples from the last token's row on is emitted as far as the drafts
// were right (model/speculation.h); KV of wrong ones is overwritten by later steps. Memory is
// reused from step to step. No Context; sample() runs where computing happens.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "decode_node/sequence.h"
#include "model/engine.h"
#include "model/speculation.h"

namespace decode {

// Rows of a member in a pass: its last token that was computed or sampled, what was forced behind
// it, and its drafts behind that.
uint32_t rows_of(const Sequence& member);

class StepBatch {
 public:
  // The members stay as they are until the step is settled.
  void assemble(std::span<Sequence* const> members, model::KvPool& pool, const model::Shape& shape);
  model::Pass& pass() { return pass_; }
  const model::Pass& pass() const { return pass_; }
  std::span<Sequence* const> members() const { return members_; }

  struct Next {
    bool finite = false;  // false: a numerical error before a token was sampled
    bool stuck = false;   // the grammar does not tell what may follow; nothing was sampled
    model::Verified run;  // else at least one token; it ends before a later row that is not finite
    uint32_t drafted = 0;
  };
  // After the pass: the next tokens of each member, whose speculation learns of them.
  void sample(model::Engine& engine);
  const std::vector<Next>& next() const { return next_; }  // one a member
  // Why next()[member] is not finite, for people.
  std::string fault(size_t member) const;

 private:
  Next verify(size_t member, const model::Shape& shape) const;

  std::span<Sequence* const> members_;
  model::Pass pass_;                // a segment for each member
  std::vector<uint32_t> all_rows_;  // 0, 1, 2 …
  std::vector<uint32_t> sampled_;   // rows that are sampled from
  std::vector<size_t> first_;       // of a member in sampled_
  std::vector<float> logits_;       // [sampled, vocab]
  std::vector<float> hidden_;       // [rows, hidden], final; only where drafts are made
  std::vector<Next> next_;
};

}  // namespace decode
