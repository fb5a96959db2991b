// generate(): chunked prefill, then decode one token a step, all through forward().
#include <algorithm>

#include "base/check.h"
#include "model/forward.h"
#include "model/sampler.h"

namespace model {
namespace {

// The one sequence of a generation: its tokens, and how many of them have KV.
class Run {
 public:
  Run(Engine& engine, std::span<const TokenId> prompt, uint32_t room)
      : engine_(engine),
        tokens_(prompt.begin(), prompt.end()),
        pool_(KvPool::blocks_for(room), LayerRange{0, engine.shape().layers},
              engine.shape().kv_row_bytes) {
    auto blocks = pool_.allocate(pool_.total());
    blocks_ = std::move(*blocks);
  }

  void append(TokenId token) { tokens_.push_back(token); }

  // Computes the next `count` tokens that have no KV yet.
  void advance(uint32_t count) {
    const Shape& shape = engine_.shape();
    const std::span<const TokenId> all(tokens_);
    const uint32_t back = std::min(done_, shape.ngram_context);
    Segment segment;
    segment.count = count;
    segment.position = done_;
    segment.kv = KvView{&pool_, blocks_};
    segment.context = all.subspan(done_ - back, back);
    pass_.tokens.assign(tokens_.begin() + done_, tokens_.begin() + done_ + count);
    pass_.segments.assign(1, segment);

    InlineSite site(engine_);
    const bool ok = base::run_inline(forward(engine_, LayerRange{0, shape.layers}, pass_, site));
    CHECK(ok, "a pass in one process cannot be given up");
    done_ += count;
  }
  // After the last token of the last advance().
  std::span<const float> logits() {
    const uint32_t last_row = pass_.rows() - 1;
    logits_.resize(engine_.shape().vocab);
    engine_.head(pass_, std::span(&last_row, 1), logits_);
    return logits_;
  }
  uint32_t pending() const { return static_cast<uint32_t>(tokens_.size()) - done_; }

 private:
  Engine& engine_;
  std::vector<TokenId> tokens_;
  KvPool pool_;
  std::vector<BlockId> blocks_;
  Pass pass_;
  std::vector<float> logits_;
  uint32_t done_ = 0;
};

}  // namespace

Generated generate(Engine& engine, std::span<const TokenId> prompt, const base::Sampling& sampling,
                   const GenerateOptions& options) {
  const Shape& shape = engine.shape();
  CHECK(!prompt.empty() && prompt.size() <= shape.max_context,
        "a prompt of {} tokens in a context of {}", prompt.size(), shape.max_context);
  const auto prompt_size = static_cast<uint32_t>(prompt.size());
  const uint32_t most = std::min(sampling.max_tokens, shape.max_context - prompt_size);
  Generated out;
  if (most == 0) {
    out.finish = base::FinishReason::kLength;
    return out;
  }
  Run run(engine, prompt, prompt_size + most);
  const uint32_t chunk = options.chunk == 0 ? prompt_size : options.chunk;
  while (true) {
    while (run.pending() > 0) run.advance(std::min(chunk, run.pending()));
    const std::span<const float> logits = run.logits();
    if (!all_finite(logits)) {
      out.finish = base::FinishReason::kError;
      return out;
    }
    const SampleInput input{logits, prompt, out.tokens, shape.eos};
    Sampled next = sample(input, sampling);
    out.tokens.push_back(next.token);
    if (sampling.top_logprobs >= 0) out.logprobs.push_back(std::move(next.logprobs));
    out.finish = finish_after(out.tokens, shape.eos, sampling);
    if (out.finish == base::FinishReason::kNone && out.tokens.size() == most)
      out.finish = base::FinishReason::kLength;
    if (out.finish != base::FinishReason::kNone) return out;
    run.append(next.token);
  }
}

}  // namespace model
