// Speculative decoding with the MTP block. A sequence drafts k tokens; the target sees the bonus
// token and the drafts in one pass of k + 1 rows and samples each position as it would without
// drafts (sampling is a pure function of logits, settings and index). Drafts are accepted while
// they equal what was sampled, so the answer never depends on them. Nothing is rolled back: KV of a
// rejected position is overwritten when its true token comes, and contexts are cut from the tokens.
//
// Invariant of one sequence with T tokens, the last of which (the bonus) has no KV yet:
//   target KV and hidden rows: positions < known() = T − 1
//   MTP KV from those rows:    positions < filled() ≤ known()
//   MTP KV of drafts:          positions ≥ known(), worthless after the round
// The MTP row of position p is made of the target's hidden row p and of token p + 1.
#pragma once
#include <array>
#include <functional>
#include <span>
#include <vector>

#include "model/draft_length.h"
#include "model/engine.h"
#include "model/sampler.h"

namespace model {

struct DraftCounters {
  uint64_t rounds = 0;                                 // with at least one draft
  uint64_t drafted = 0, accepted = 0;                  // tokens
  std::array<uint64_t, kMaxDraftSteps> accepted_at{};  // rounds that accepted the draft of step i
  void add(uint32_t drafts, uint32_t accepted_drafts);
  void add(const DraftCounters& other);
};

// What the MTP block still has to see of one sequence, and what it drafted.
class Speculation {
 public:
  // `filled`: positions whose MTP KV is there already (prefill on another node).
  explicit Speculation(uint32_t hidden, uint32_t filled = 0) : hidden_(hidden), filled_(filled) {}

  uint32_t filled() const { return filled_; }
  uint32_t known() const { return filled_ + static_cast<uint32_t>(rows_.size() / hidden_); }
  // The target's final hidden rows (Engine::final_norm) of positions known(), known() + 1 …
  void add_hidden(std::span<const float> rows);
  std::span<const TokenId> drafts() const { return drafts_; }

 private:
  friend class DraftPass;
  const size_t hidden_;
  uint32_t filled_;
  std::vector<float> rows_;  // [known − filled, hidden]
  std::vector<TokenId> drafts_;
};

// One sequence in a drafting round.
struct Drafting {
  Speculation* state = nullptr;
  KvView kv;                        // has layer shape().layers, blocks for all drafts
  std::span<const TokenId> tokens;  // prompt and emitted
  std::span<const TokenId> given;   // what is known to follow them: the first drafts, not drawn
  uint32_t steps = 0;               // drafts wanted, given ones too; 0: only catch up
  // The draft token for these logits after these drafts: as the target would sample there.
  std::function<TokenId(std::span<const float> logits, std::span<const TokenId> drafts)> choose;
};
// Runs the MTP block for all sequences together: first over every position whose hidden row and
// next token are known, then once for each further draft. No experts, no other node: one job.
// Afterwards state->drafts() has `steps` tokens.  REQUIRES for steps > 0: known() + 1 tokens
void draft_round(Engine& engine, std::span<Drafting> sequences, Pass& pass,
                 DraftIndex later = DraftIndex::kReuseAppend);

// Drafting::choose for a request: sample() after emitted and drafts; logits that are not finite
// give token 0, which verification then judges like any other.  `sampling` etc. must outlive it.
std::function<TokenId(std::span<const float>, std::span<const TokenId>)> draft_sampler(
    std::span<const TokenId> prompt, std::span<const TokenId> emitted, std::span<const TokenId> eos,
    const base::Sampling& sampling, Constraint* constraint = nullptr);

// What one verification emits.
struct Verified {
  std::vector<TokenId> tokens;  // the accepted drafts and the token after them; fewer if it ends
  std::vector<base::TokenLogprobs> logprobs;  // [tokens] if asked for
  uint32_t accepted = 0;                      // drafts
  // kNone, or how the sequence ends with the last of `tokens` (kError: before a next one).
  base::FinishReason finish = base::FinishReason::kNone;
};
// Samples the rows of a verification pass in order until one differs from its draft or ends the
// sequence. input.logits: [drafts + 1, vocab], row i after the bonus token and i drafts (any mask
// already applied); the rest as before the bonus token's successor is drawn.
Verified verify_drafts(std::span<const TokenId> drafts, const SampleInput& input,
                       const base::Sampling& sampling);

}  // namespace model
