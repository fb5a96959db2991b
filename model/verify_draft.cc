#include "model/verify_draft.h"

#include <algorithm>
#include <numeric>

namespace model {

TokenId best_of(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

DraftTrace draft_trace(Engine& engine, std::span<const TokenId> prompt,
                       std::span<const float> final_hidden, TokenId bonus, DraftIndex later) {
  const Shape& shape = engine.shape();
  DraftTrace trace;
  if (shape.mtp_steps == 0) return trace;
  const auto count = static_cast<uint32_t>(prompt.size());
  KvPool pool(KvPool::blocks_for(count + shape.mtp_steps),
              LayerRange{shape.layers, shape.layers + 1}, shape.kv_row_bytes);
  const std::vector<BlockId> blocks = *pool.allocate(pool.total());

  Pass pass;
  pass.tokens.assign(prompt.begin() + 1, prompt.end());
  pass.tokens.push_back(bonus);
  pass.h.assign(final_hidden.begin(), final_hidden.end());
  pass.segments.resize(1);
  pass.segments[0].count = count;
  pass.segments[0].kv = KvView{&pool, blocks};
  engine.draft(pass, DraftIndex::kFresh);
  std::vector<uint32_t> rows(count);
  std::iota(rows.begin(), rows.end(), 0u);
  trace.first_logits.resize(size_t{count} * shape.vocab);
  engine.draft_head(pass, rows, trace.first_logits);

  trace.tokens.push_back(bonus);
  std::vector<float> logits(trace.first_logits.end() - shape.vocab, trace.first_logits.end());
  for (uint32_t step = 0; step < shape.mtp_steps; ++step) {
    if (step > 0) {
      pass.tokens.assign(1, static_cast<TokenId>(trace.tokens.back()));
      pass.h.erase(pass.h.begin(), pass.h.end() - shape.hidden);
      pass.segments[0].count = 1;
      pass.segments[0].position = count + step - 1;
      engine.draft(pass, later);
      engine.draft_head(pass, std::span(rows).first(1), logits);
    }
    trace.logits.insert(trace.logits.end(), logits.begin(), logits.end());
    trace.tokens.push_back(best_of(logits));
  }
  return trace;
}

}  // namespace model
