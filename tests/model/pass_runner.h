// Runs sequences through an engine in any mixture of chunks and batches, for tests of equal bits.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "model/forward.h"

namespace model::testing {

// One sequence with its own KV memory.
struct Sequence {
  Sequence(const Engine& engine, std::vector<TokenId> ids)
      : tokens(std::move(ids)),
        pool(std::make_unique<KvPool>(KvPool::blocks_for(static_cast<uint32_t>(tokens.size())) + 1,
                                      LayerRange{0, engine.shape().layers},
                                      engine.shape().kv_row_bytes)),
        blocks(*pool->allocate(pool->total())) {
    std::reverse(blocks.begin(), blocks.end());  // positions and block ids disagree
  }
  std::vector<TokenId> tokens;
  std::unique_ptr<KvPool> pool;
  std::vector<BlockId> blocks;
  uint32_t done = 0;
  std::vector<float> hidden;  // of every position so far, after the last layer

  bool finished() const { return done == tokens.size(); }
  // All KV rows of all layers, packed.
  std::vector<std::byte> kv_bytes(const Shape& shape) const {
    const size_t layer_bytes = static_cast<size_t>(done) * shape.kv_row_bytes;
    std::vector<std::byte> out(layer_bytes * shape.layers);
    for (uint32_t layer = 0; layer < shape.layers; ++layer)
      copy_rows_out(KvView{pool.get(), blocks}, layer, 0, done, out.data() + layer * layer_bytes);
    return out;
  }
};

// One pass over the next counts[i] tokens of sequences[i].
inline void advance(Engine& engine, std::vector<Sequence*> sequences,
                    const std::vector<uint32_t>& counts, Pass& pass) {
  const Shape& shape = engine.shape();
  pass.tokens.clear();
  pass.segments.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    const uint32_t count = std::min(counts[i], static_cast<uint32_t>(s.tokens.size()) - s.done);
    if (count == 0) continue;
    Segment segment;
    segment.row = pass.rows();
    segment.count = count;
    segment.position = s.done;
    segment.kv = KvView{s.pool.get(), s.blocks};
    const uint32_t back = std::min(s.done, shape.ngram_context);
    segment.context = std::span<const TokenId>(s.tokens).subspan(s.done - back, back);
    pass.tokens.insert(pass.tokens.end(), s.tokens.begin() + s.done,
                       s.tokens.begin() + s.done + count);
    pass.segments.push_back(segment);
  }
  InlineSite site(engine);
  const bool ok = base::run_inline(forward(engine, LayerRange{0, shape.layers}, pass, site));
  CHECK(ok, "an inline pass is never given up");
  for (size_t i = 0, segment = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    if (s.finished() || counts[i] == 0) continue;
    const Segment& done = pass.segments[segment++];
    const float* h = pass.h.data() + static_cast<size_t>(done.row) * shape.hidden;
    s.hidden.insert(s.hidden.end(), h, h + static_cast<size_t>(done.count) * shape.hidden);
    s.done += done.count;
  }
}

// The whole sequence alone, in chunks of `chunk` (0: at once).
inline Sequence run_alone(Engine& engine, std::vector<TokenId> tokens, uint32_t chunk) {
  Sequence sequence(engine, std::move(tokens));
  if (chunk == 0) chunk = static_cast<uint32_t>(sequence.tokens.size());
  Pass pass;
  while (!sequence.finished()) advance(engine, {&sequence}, {chunk}, pass);
  return sequence;
}

}  // namespace model::testing
