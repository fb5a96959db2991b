// Drafter: the drafting side of a step. Before the pass it runs the model's drafting block for all
// members at once: it catches up with what their last steps made known and draws each one's drafts,
// as many as its DraftLength says, its answer has room for and the step has rows for
// (batcher.h, trim_drafts). The target's rows over the drafts are ordinary rows of the step
// (step_batch.h). Which tokens are drafted follows from the sequence alone; only how many depends
// on who else is in the batch, and no token does. No Context; runs where computing happens.
#pragma once
#include <span>
#include <vector>

#include "decode_node/sequence.h"
#include "model/engine.h"
#include "model/speculation.h"

namespace decode {

class Drafter {
 public:
  // `steps`: drafts of a sequence in a step, at most; 0: none are made, and nothing here is needed.
  // `max_rows`: of a step, drafts included.
  Drafter(const model::Shape& shape, uint32_t steps, uint32_t max_rows);

  uint32_t steps() const { return steps_; }
  bool on() const { return steps_ > 0; }
  // Prepares a sequence whose tokens all have KV, before its first token is known. `hidden`: the
  // final hidden row of the last of them.
  void begin(Sequence& sequence, std::span<const float> hidden) const;
  // Afterwards member.speculation->drafts() is what the step verifies.
  void draft(model::Engine& engine, std::span<Sequence* const> members, model::KvPool& pool);
  // Of sequences that have ended: brings the block's KV up to their tokens, so that their last full
  // block is complete.
  void finish(model::Engine& engine, std::span<Sequence* const> members, model::KvPool& pool);
  // Ended members whose last full block lacks rows of the drafting block.
  static std::vector<Sequence*> behind(std::span<Sequence* const> members);

 private:
  void run(model::Engine& engine, std::span<Sequence* const> members, model::KvPool& pool,
           bool catch_up_only);

  const uint32_t steps_, max_rows_;
  const size_t hidden_;
  const std::vector<TokenId> eos_;
  model::Pass pass_;
  std::vector<model::Drafting> round_;
};

// Positions of the sequence whose KV is final in every layer that travels, in slots
// (model/draft_slots.h).
uint32_t final_slots(const Sequence& sequence);

}  // namespace decode
