// generate(): chunked prefill, then rounds of drafting and verification (of one token without
// drafts), all through forward(). What a constraint forces is emitted between them (forced_run.h).
#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "model/forced_run.h"
#include "model/forward.h"

namespace model {
namespace {

// The one sequence of a generation: its tokens, and how many of them have KV.
class Run {
 public:
  Run(Engine& engine, std::span<const TokenId> prompt, const base::Sampling& sampling,
      const GenerateOptions& options)
      : engine_(engine),
        shape_(engine.shape()),
        sampling_(sampling),
        steps_(std::min({options.mtp_steps, shape_.mtp_steps, kMaxDraftSteps})),
        adapt_(options.adapt),
        length_(steps_),
        later_(options.later_drafts),
        constraint_(options.constraint),
        force_(options.force && constraint_ != nullptr),
        prompt_size_(prompt.size()),
        tokens_(prompt.begin(), prompt.end()),
        pool_(KvPool::blocks_for(static_cast<uint32_t>(prompt.size()) + sampling.max_tokens),
              LayerRange{0, steps_ > 0 ? shape_.kv_layers() : shape_.layers}, shape_.kv_row_bytes),
        blocks_(*pool_.allocate(pool_.total())),
        speculation_(shape_.hidden) {}

  // The whole prompt in chunks, and the first token.
  Verified prefill(uint32_t chunk) {
    const auto prompt = static_cast<uint32_t>(prompt_size_);
    if (chunk == 0) chunk = prompt;
    for (uint32_t count = std::min(chunk, prompt); count > 0;) {
      const uint32_t next = std::min(chunk, prompt - done_ - count);
      if (next > 0) {  // the disk reads for the next chunk while this one computes
        fill(ahead_, done_ + count, next);
        engine_.prefetch(ahead_);
      }
      run_pass(count);
      done_ += count;
      count = next;
      if (steps_ > 0) {
        rows_.resize(pass_.rows());
        std::iota(rows_.begin(), rows_.end(), 0u);
        engine_.final_norm(pass_, rows_, hidden_);
        speculation_.add_hidden(hidden_);
        draft(0);
      }
    }
    return judge(std::span(&(last_row_ = pass_.rows() - 1), 1), {});
  }
  // Adds what must follow; returns how many tokens that are.
  uint32_t force(Verified& next) {
    forced_ = 0;
    if (!force_ || next.finish != base::FinishReason::kNone) return 0;
    std::vector<TokenId> all(emitted().begin(), emitted().end());
    all.insert(all.end(), next.tokens.begin(), next.tokens.end());
    const std::vector<TokenId> run = forced_run(*constraint_, all, shape_.eos, sampling_);
    forced_ = static_cast<uint32_t>(run.size());
    all.insert(all.end(), run.begin(), run.end());
    next.tokens.insert(next.tokens.end(), run.begin(), run.end());
    next.finish = finish_after(all, shape_.eos, sampling_);
    return forced_;
  }
  // Takes what was emitted; then drafts, verifies, and keeps the KV of what was accepted.
  Verified round(const Verified& before, DraftCounters& counters) {
    tokens_.insert(tokens_.end(), before.tokens.begin(), before.tokens.end());
    const auto left = static_cast<uint32_t>(sampling_.max_tokens - emitted().size());
    const uint32_t steps = std::min(adapt_ ? length_.steps() : steps_, forced_ + left - 1);
    if (steps_ > 0) draft(steps > forced_ ? steps : 0);
    const std::span<const TokenId> drawn = speculation_.drafts();
    const std::vector<TokenId> drafts(drawn.begin() + std::min<size_t>(forced_, drawn.size()),
                                      drawn.end());
    tokens_.insert(tokens_.end(), drafts.begin(), drafts.end());
    const auto drafted = static_cast<uint32_t>(drafts.size());
    run_pass(forced_ + 1 + drafted);
    tokens_.resize(tokens_.size() - drafted);
    if (forced_ > 0 && steps_ > 0) {
      rows_.resize(forced_);
      std::iota(rows_.begin(), rows_.end(), 0u);
      engine_.final_norm(pass_, rows_, hidden_);
      speculation_.add_hidden(hidden_);
    }
    rows_.resize(1 + drafted);
    std::iota(rows_.begin(), rows_.end(), forced_);
    Verified out = judge(rows_, drafts);
    counters.add(drafted, out.accepted);
    if (forced_ == 0) length_.add(drafted, out.accepted);
    done_ += forced_ + 1 + out.accepted;
    if (steps_ > 0)
      speculation_.add_hidden(std::span(hidden_).first((out.accepted + 1) * shape_.hidden));
    return out;
  }

  // Positions whose KV is final, and of these how many have it in the MTP block's layer.
  KvSeen seen() { return {KvView{&pool_, blocks_}, done_, speculation_.filled()}; }

 private:
  std::span<const TokenId> emitted() const { return std::span(tokens_).subspan(prompt_size_); }

  // `count` tokens from `position` on, with what the embedding looks back on.
  void fill(Pass& pass, uint32_t position, uint32_t count) {
    const std::span<const TokenId> all(tokens_);
    const uint32_t back = std::min(position, shape_.ngram_context);
    Segment segment;
    segment.count = count;
    segment.position = position;
    segment.kv = KvView{&pool_, blocks_};
    segment.context = all.subspan(position - back, back);
    pass.tokens.assign(all.begin() + position, all.begin() + position + count);
    pass.segments.assign(1, segment);
  }
  // Computes the next `count` tokens that have no KV yet.
  void run_pass(uint32_t count) {
    fill(pass_, done_, count);
    InlineSite site(engine_);
    const bool ok = base::run_inline(forward(engine_, LayerRange{0, shape_.layers}, pass_, site));
    CHECK(ok, "a pass in one process cannot be given up");
  }
  void draft(uint32_t steps) {
    Drafting drafting;
    drafting.state = &speculation_;
    drafting.kv = KvView{&pool_, blocks_};
    const std::span<const TokenId> all(tokens_);
    const std::span<const TokenId> known = all.first(all.size() - forced_);
    drafting.tokens = known;
    drafting.given = all.subspan(known.size());
    drafting.steps = steps;
    drafting.choose = draft_sampler(known.first(prompt_size_), known.subspan(prompt_size_),
                                    shape_.eos, sampling_, constraint_);
    draft_round(engine_, std::span(&drafting, 1), draft_pass_, later_);
  }
  // What the target samples at those rows of the pass.
  Verified judge(std::span<const uint32_t> rows, std::span<const TokenId> drafts) {
    logits_.resize(rows.size() * shape_.vocab);
    engine_.head(pass_, rows, logits_, steps_ > 0 ? &hidden_ : nullptr);
    const std::span<const TokenId> prompt = std::span(tokens_).first(prompt_size_);
    return verify_drafts(drafts, SampleInput{logits_, prompt, emitted(), shape_.eos, constraint_},
                         sampling_);
  }

  Engine& engine_;
  const Shape& shape_;
  const base::Sampling& sampling_;
  const uint32_t steps_;
  const bool adapt_;
  DraftLength length_;
  const DraftIndex later_;
  Constraint* const constraint_;  // null: none
  const bool force_;
  const size_t prompt_size_;
  std::vector<TokenId> tokens_;  // prompt and emitted
  KvPool pool_;
  std::vector<BlockId> blocks_;
  Speculation speculation_;
  Pass pass_, draft_pass_, ahead_;
  std::vector<uint32_t> rows_;
  std::vector<float> logits_, hidden_;
  uint32_t done_ = 0, last_row_ = 0;
  uint32_t forced_ = 0;  // last tokens, emitted without their pass
};

}  // namespace

Generated generate(Engine& engine, std::span<const TokenId> prompt, const base::Sampling& sampling,
                   const GenerateOptions& options) {
  const Shape& shape = engine.shape();
  CHECK(!prompt.empty() && prompt.size() <= shape.max_context,
        "a prompt of {} tokens in a context of {}", prompt.size(), shape.max_context);
  Generated out;
  base::Sampling bounded = sampling;  // by the context too
  bounded.max_tokens =
      std::min(sampling.max_tokens, shape.max_context - static_cast<uint32_t>(prompt.size()));
  if (bounded.max_tokens == 0) {
    out.finish = base::FinishReason::kLength;
    return out;
  }
  Run run(engine, prompt, bounded, options);
  Verified next = run.prefill(options.chunk);
  while (true) {
    out.forced += run.force(next);
    out.tokens.insert(out.tokens.end(), next.tokens.begin(), next.tokens.end());
    std::move(next.logprobs.begin(), next.logprobs.end(), std::back_inserter(out.logprobs));
    out.finish = next.finish;
    if (out.finish != base::FinishReason::kNone) break;
    next = run.round(next, out.drafts);
  }
  if (options.at_end) options.at_end(run.seen());
  return out;
}

}  // namespace model
