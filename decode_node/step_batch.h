// StepBatch: the arithmetic side of one decode step. Each member adds one row: its last token, at
// the position after its KV. Memory is reused from step to step. No Context; sample() runs where
// computing happens.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "decode_node/sequence.h"
#include "model/engine.h"
#include "model/sampler.h"

namespace decode {

class StepBatch {
 public:
  // The members stay as they are until the step is settled.
  void assemble(std::span<Sequence* const> members, model::KvPool& pool, const model::Shape& shape);
  model::Pass& pass() { return pass_; }

  struct Next {
    bool finite = false;  // false: a numerical error in this row; nothing was sampled
    bool stuck = false;   // the sequence's grammar does not tell what may follow; nothing either
    model::Sampled sampled;
  };
  // After the pass: the next token of each member.
  void sample(model::Engine& engine);
  const std::vector<Next>& next() const { return next_; }  // one a member
  // Why next()[row] is not finite, for people.
  std::string fault(size_t row) const;

 private:
  std::span<Sequence* const> members_;
  model::Pass pass_;
  std::vector<uint32_t> rows_;  // 0, 1, 2 …
  std::vector<float> logits_;   // [rows, vocab]
  std::vector<Next> next_;
};

}  // namespace decode
