#include "model/speculation.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace model {

void DraftCounters::add(uint32_t drafts, uint32_t accepted_drafts) {
  if (drafts == 0) return;
  rounds += 1;
  drafted += drafts;
  accepted += accepted_drafts;
  for (uint32_t i = 0; i < std::min(accepted_drafts, kMaxDraftSteps); ++i) accepted_at[i] += 1;
}

void DraftCounters::add(const DraftCounters& other) {
  rounds += other.rounds;
  drafted += other.drafted;
  accepted += other.accepted;
  for (uint32_t i = 0; i < kMaxDraftSteps; ++i) accepted_at[i] += other.accepted_at[i];
}

void Speculation::add_hidden(std::span<const float> rows) {
  CHECK(rows.size() % hidden_ == 0, "{} values in rows of {}", rows.size(), hidden_);
  rows_.insert(rows_.end(), rows.begin(), rows.end());
}

// The passes of one round.
class DraftPass {
 public:
  DraftPass(Engine& engine, std::span<Drafting> sequences, Pass& pass)
      : engine_(engine), pass_(pass), hidden_(engine.shape().hidden) {
    for (Drafting& sequence : sequences) order_.push_back(&sequence);
    // Those that draft longest first: a later step's segments are then the first ones of this pass.
    std::stable_sort(order_.begin(), order_.end(),
                     [](const Drafting* a, const Drafting* b) { return a->steps > b->steps; });
  }

  void catch_up() {
    begin();
    for (Drafting* sequence : order_) {
      Speculation& state = *sequence->state;
      state.drafts_.clear();
      const auto tokens = static_cast<uint32_t>(sequence->tokens.size());
      CHECK(sequence->steps == 0 || (state.known() + 1 == tokens && state.known() > state.filled()),
            "{} tokens, hidden rows from {} to {}", tokens, state.filled(), state.known());
      const uint32_t end = std::min(state.known(), tokens - 1);
      if (end <= state.filled()) continue;
      const uint32_t count = end - state.filled();
      add_segment(*sequence, state.filled(), count);
      const auto next = sequence->tokens.begin() + state.filled() + 1;
      pass_.tokens.insert(pass_.tokens.end(), next, next + count);
      const auto rows_end = state.rows_.begin() + static_cast<ptrdiff_t>(count * hidden_);
      pass_.h.insert(pass_.h.end(), state.rows_.begin(), rows_end);
      state.rows_.erase(state.rows_.begin(), rows_end);
      state.filled_ = end;
    }
    if (pass_.rows() > 0) engine_.draft(pass_, DraftIndex::kFresh);
  }

  // Draws the draft of step `step` for each sequence that wants one; false if none does.
  bool draw(uint32_t step) {
    while (!order_.empty() && order_.back()->steps <= step) order_.pop_back();
    if (order_.empty()) return false;
    rows_.clear();
    drawn_.clear();
    for (size_t i = 0; i < order_.size(); ++i) {
      rows_.push_back(pass_.segments[i].row + pass_.segments[i].count - 1);
      if (step >= order_[i]->given.size()) drawn_.push_back(rows_.back());
    }
    const size_t vocab = engine_.shape().vocab;
    logits_.resize(drawn_.size() * vocab);
    if (!drawn_.empty()) engine_.draft_head(pass_, drawn_, logits_);
    std::span<const float> logits(logits_);
    for (const Drafting* sequence : order_) {
      std::vector<TokenId>& drafts = sequence->state->drafts_;
      if (step < sequence->given.size()) {
        drafts.push_back(sequence->given[step]);
        continue;
      }
      drafts.push_back(sequence->choose(logits.first(vocab), drafts));
      logits = logits.subspan(vocab);
    }
    return true;
  }

  // Feeds the drafts of step `step` back, with the hidden rows that drew them.
  void feed(uint32_t step, DraftIndex index) {
    while (!order_.empty() && order_.back()->steps <= step + 1) order_.pop_back();
    if (order_.empty()) return;
    const std::vector<float> before = std::move(pass_.h);
    begin();
    for (size_t i = 0; i < order_.size(); ++i) {
      const Speculation& state = *order_[i]->state;
      add_segment(*order_[i], state.known() + step, 1);
      pass_.tokens.push_back(state.drafts_.back());
      const float* h = before.data() + rows_[i] * hidden_;
      pass_.h.insert(pass_.h.end(), h, h + hidden_);
    }
    engine_.draft(pass_, index);
  }

 private:
  void begin() {
    pass_.tokens.clear();
    pass_.segments.clear();
    pass_.h.clear();
  }
  void add_segment(const Drafting& sequence, uint32_t position, uint32_t count) {
    Segment segment;
    segment.row = pass_.rows();
    segment.count = count;
    segment.position = position;
    segment.kv = sequence.kv;
    pass_.segments.push_back(segment);
  }

  Engine& engine_;
  Pass& pass_;
  const size_t hidden_;
  std::vector<Drafting*> order_;
  std::vector<uint32_t> rows_;   // of the pass, the last of each sequence
  std::vector<uint32_t> drawn_;  // those of them that draw
  std::vector<float> logits_;
};

void draft_round(Engine& engine, std::span<Drafting> sequences, Pass& pass, DraftIndex later) {
  CHECK(engine.shape().mtp_steps > 0, "the engine has no drafting block");
  DraftPass round(engine, sequences, pass);
  round.catch_up();
  for (uint32_t step = 0; round.draw(step); ++step) round.feed(step, later);
}

std::function<TokenId(std::span<const float>, std::span<const TokenId>)> draft_sampler(
    std::span<const TokenId> prompt, std::span<const TokenId> emitted, std::span<const TokenId> eos,
    const base::Sampling& sampling, Constraint* constraint) {
  return [prompt, emitted, eos, &sampling, constraint](std::span<const float> logits,
                                                       std::span<const TokenId> drafts) -> TokenId {
    if (!all_finite(logits)) return 0;
    std::vector<TokenId> before(emitted.begin(), emitted.end());
    before.insert(before.end(), drafts.begin(), drafts.end());
    // After a draft that breaks the constraint any further one is as good: none is accepted.
    if (constraint != nullptr && constraint->allowed(before).empty()) return 0;
    base::Sampling plain = sampling;
    plain.top_logprobs = -1;
    return sample(SampleInput{logits, prompt, before, eos, constraint}, plain).token;
  };
}

Verified verify_drafts(std::span<const TokenId> drafts, const SampleInput& input,
                       const base::Sampling& sampling) {
  const size_t rows = drafts.size() + 1;
  CHECK(input.logits.size() % rows == 0, "{} logits in {} rows", input.logits.size(), rows);
  const size_t vocab = input.logits.size() / rows;
  std::vector<TokenId> emitted(input.emitted.begin(), input.emitted.end());
  Verified out;
  for (size_t row = 0; row < rows; ++row) {
    // The constraint cannot be followed any further: the next step will say so.
    if (row > 0 && input.constraint != nullptr && input.constraint->allowed(emitted).empty())
      return out;
    const std::span<const float> logits = input.logits.subspan(row * vocab, vocab);
    if (!all_finite(logits)) {
      out.finish = base::FinishReason::kError;
      return out;
    }
    Sampled next =
        sample(SampleInput{logits, input.prompt, emitted, input.eos, input.constraint}, sampling);
    emitted.push_back(next.token);
    out.tokens.push_back(next.token);
    if (sampling.top_logprobs >= 0) out.logprobs.push_back(std::move(next.logprobs));
    const bool as_drafted = row < drafts.size() && next.token == drafts[row];
    out.accepted += as_drafted;
    out.finish = finish_after(emitted, input.eos, sampling);
    if (out.finish != base::FinishReason::kNone || !as_drafted) return out;
  }
  return out;
}

}  // namespace model
