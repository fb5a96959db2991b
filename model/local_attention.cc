// Attention of the local engine: MLA in absorbed form over paged KV, dense or over the LSA set. The
// steps and their order are docs/NUMERICS.md, "Attention" and "Indexer".
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "model/local_engine.h"

namespace model {

namespace {

constexpr uint32_t kQueryRows =
    192;  // queries · heads that meet a tile at a time: their scores stay in cache

// Rows of `width` floats, `stride` apart, as panels of positions: what multiply() takes for
// "weights".
void pack_positions(const float* rows, size_t stride, uint32_t count, uint32_t width,
                    float* panels) {
  for (uint32_t s = 0; s < count; ++s) {
    float* to = panels + static_cast<size_t>(s / kPanel) * width * kPanel + s % kPanel;
    const float* from = rows + s * stride;
    for (uint32_t k = 0; k < width; ++k) to[static_cast<size_t>(k) * kPanel] = from[k];
  }
}

void reset(std::vector<Partial>& partials, size_t count, uint32_t width) {
  partials.resize(count);
  for (Partial& partial : partials) {
    partial.empty = true;
    partial.o.assign(width, 0.0f);
  }
}

}  // namespace

void LocalEngine::read_values(const std::byte* from, uint32_t n, float* out) const {
  if (kv_ == KvType::kBf16) {
    widen_bf16(reinterpret_cast<const uint16_t*>(from), n, out);
  } else {
    std::copy_n(reinterpret_cast<const float*>(from), n, out);
  }
}

void LocalEngine::write_values(const float* values, uint32_t n, std::byte* to) const {
  if (kv_ == KvType::kBf16) {
    std::transform(values, values + n, reinterpret_cast<uint16_t*>(to), to_bf16);
  } else {
    std::copy_n(values, n, reinterpret_cast<float*>(to));
  }
}

void LocalEngine::project_queries(uint32_t layer, uint32_t j, const Pass& pass, Scratch& s) const {
  const ModelConfig& c = config_;
  const AttentionWeights& w = weights(layer).attention[j];
  const uint32_t head_width = c.nope + c.rope, latent = c.latent();
  s.x.resize(pass.h.size());
  rms_norm_rows({.rows = s.rows,
                 .n = c.hidden,
                 .x_stride = c.hidden,
                 .y_stride = c.hidden,
                 .eps = static_cast<float>(c.rms_eps),
                 .scale = 1},
                pass.h.data(), w.input_norm.data(), s.x.data());
  s.q_lora.resize(static_cast<size_t>(s.rows) * c.q_lora);
  multiply(compute_, {&w.q_a, s.x.data(), c.hidden, s.rows, s.q_lora.data(), c.q_lora});
  rms_norm_rows({.rows = s.rows,
                 .n = c.q_lora,
                 .x_stride = c.q_lora,
                 .y_stride = c.q_lora,
                 .eps = static_cast<float>(c.lora_norm_eps),
                 .scale = 1},
                s.q_lora.data(), w.q_a_norm.data(), s.q_lora.data());
  s.q_heads.resize(static_cast<size_t>(s.rows) * c.heads * head_width);
  multiply(compute_,
           {&w.q_b, s.q_lora.data(), c.q_lora, s.rows, s.q_heads.data(), c.heads * head_width});
  if (c.scale_q_lora) {
    const auto scale = static_cast<float>(std::sqrt(static_cast<double>(c.hidden) / c.q_lora));
    for (float& q : s.q_heads) q = q * scale;
  }
  s.cos.resize(static_cast<size_t>(s.rows) * rope_.pairs());
  s.sin.resize(s.cos.size());
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count; ++i) {
      const size_t at = static_cast<size_t>(segment.row + i) * rope_.pairs();
      rope_.angles(segment.position + i, s.cos.data() + at, s.sin.data() + at);
    }
  }
  s.q_latent.resize(static_cast<size_t>(s.rows) * c.heads * latent);
  for (uint32_t head = 0; head < c.heads; ++head) {
    multiply(compute_,
             {&w.absorb_k[head], s.q_heads.data() + static_cast<size_t>(head) * head_width,
              static_cast<size_t>(c.heads) * head_width, s.rows,
              s.q_latent.data() + static_cast<size_t>(head) * latent,
              static_cast<size_t>(c.heads) * latent});
    for (uint32_t row = 0; row < s.rows; ++row) {
      const size_t at = static_cast<size_t>(row) * c.heads + head;
      float* rope = s.q_latent.data() + at * latent + c.kv_lora;
      std::copy_n(s.q_heads.data() + at * head_width + c.nope, c.rope, rope);
      const size_t angle = static_cast<size_t>(row) * rope_.pairs();
      rotate_pairs(rope, rope_.pairs(), s.cos.data() + angle, s.sin.data() + angle);
    }
  }
}

void LocalEngine::write_kv(uint32_t layer, uint32_t j, const Pass& pass, Scratch& s) const {
  const ModelConfig& c = config_;
  const AttentionWeights& w = weights(layer).attention[j];
  const uint32_t latent = c.latent();
  s.kv.resize(static_cast<size_t>(s.rows) * latent);
  multiply(compute_, {&w.kv_a, s.x.data(), c.hidden, s.rows, s.kv.data(), latent});
  const float scale = c.scale_kv_lora
                          ? static_cast<float>(std::sqrt(static_cast<double>(c.hidden) / c.kv_lora))
                          : 1.0f;
  rms_norm_rows({.rows = s.rows,
                 .n = c.kv_lora,
                 .x_stride = latent,
                 .y_stride = latent,
                 .eps = static_cast<float>(c.lora_norm_eps),
                 .scale = scale},
                s.kv.data(), w.kv_a_norm.data(), s.kv.data());
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count; ++i) {
      const size_t row = segment.row + i;
      float* values = s.kv.data() + row * latent;
      const size_t angle = row * rope_.pairs();
      rotate_pairs(values + c.kv_lora, rope_.pairs(), s.cos.data() + angle, s.sin.data() + angle);
      write_values(values, latent,
                   segment.kv.row(layer, segment.position + i) + j * latent * value_bytes());
    }
  }
}

void LocalEngine::write_index_keys(uint32_t layer, const Pass& pass, Scratch& s) const {
  const ModelConfig& c = config_;
  const IndexerConfig& index = *c.indexer;
  const IndexerWeights& w = weights(layer).indexer;
  std::vector<float> keys(static_cast<size_t>(s.rows) * index.head_dim);
  multiply(compute_, {&w.wk, s.x.data(), c.hidden, s.rows, keys.data(), index.head_dim});
  rms_norm_rows({.rows = s.rows,
                 .n = index.head_dim,
                 .x_stride = index.head_dim,
                 .y_stride = index.head_dim,
                 .eps = static_cast<float>(index.k_norm_eps),
                 .scale = 1},
                keys.data(), w.k_norm.data(), keys.data());
  const auto rotate = index.rope_interleave ? rotate_pairs : rotate_halves;
  s.index_q.resize(static_cast<size_t>(s.rows) * index.heads * index.head_dim);
  multiply(compute_, {&w.wq_b, s.q_lora.data(), c.q_lora, s.rows, s.index_q.data(),
                      index.heads * index.head_dim});
  s.index_w.resize(static_cast<size_t>(s.rows) * index.heads);
  multiply(compute_,
           {&w.weights_proj, s.x.data(), c.hidden, s.rows, s.index_w.data(), index.heads});
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(index.heads)) /
                                        std::sqrt(static_cast<double>(index.head_dim)));
  for (float& value : s.index_w) value = value * scale;
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count; ++i) {
      const size_t row = segment.row + i;
      const float* cos = s.cos.data() + row * rope_.pairs();
      const float* sin = s.sin.data() + row * rope_.pairs();
      rotate(keys.data() + row * index.head_dim, rope_.pairs(), cos, sin);
      for (uint32_t head = 0; head < index.heads; ++head)
        rotate(s.index_q.data() + (row * index.heads + head) * index.head_dim, rope_.pairs(), cos,
               sin);
      write_values(keys.data() + row * index.head_dim, index.head_dim,
                   segment.kv.row(layer, segment.position + i) + 2 * c.latent() * value_bytes());
    }
  }
}

// I(s) of each row that is over the budget, tile by tile over the index keys, then its set.
void LocalEngine::choose_positions(uint32_t layer, const Pass& pass, Scratch& s) const {
  const IndexerConfig& index = *config_.indexer;
  s.chosen.resize(s.rows);
  s.scores.resize(static_cast<size_t>(index.heads) * kTile);
  std::vector<float> keys(static_cast<size_t>(kTile) * index.head_dim), panels(keys.size());
  for (const Segment& segment : pass.segments) {
    const uint32_t end = segment.position + segment.count;
    // Rows below the budget attend everything; they are scored only for a probe.
    const uint32_t from =
        probe_ != nullptr ? segment.position : std::max(segment.position, index.topk);
    for (uint32_t i = 0; i < segment.count; ++i) s.chosen[segment.row + i].clear();
    std::vector<std::vector<float>> scores(end > from ? end - from : 0);
    for (uint32_t p = from; p < end; ++p) scores[p - from].assign(p + 1, 0.0f);
    for (uint32_t begin = 0; begin < end && from < end; begin += kTile) {
      const uint32_t n = std::min(kTile, end - begin);
      for (uint32_t i = 0; i < n; ++i) {
        const std::byte* row = segment.kv.row(layer, begin + i);
        read_values(row + 2 * config_.latent() * value_bytes(), index.head_dim,
                    keys.data() + i * index.head_dim);
      }
      pack_positions(keys.data(), index.head_dim, n, index.head_dim, panels.data());
      for (uint32_t p = std::max(from, begin); p < end; ++p) {
        const size_t row = segment.row + (p - segment.position);
        multiply_panels({panels.data(), n, index.head_dim, false},
                        s.index_q.data() + row * index.heads * index.head_dim, index.head_dim,
                        index.heads, s.scores.data(), kTile);
        const uint32_t seen = std::min(n, p + 1 - begin);
        for (uint32_t head = 0; head < index.heads; ++head) {
          float* dots = s.scores.data() + static_cast<size_t>(head) * kTile;
          for (uint32_t i = 0; i < seen; ++i) dots[i] = std::max(dots[i], 0.0f);
          add_scaled(s.index_w[row * index.heads + head], {dots, seen},
                     scores[p - from].data() + begin);
        }
      }
    }
    for (uint32_t p = from; p < end; ++p) {
      const uint32_t row = segment.row + (p - segment.position);
      select_positions(index, scores[p - from], s.chosen[row]);
      if (probe_ != nullptr) {
        probe_->index_scores(layer, row, scores[p - from]);
        probe_->selected(layer, row, s.chosen[row]);
      }
      if (p + 1 <= index.topk) s.chosen[row].clear();
    }
  }
}

void LocalEngine::read_latents(const Segment& segment, uint32_t layer, uint32_t j,
                               std::span<const uint32_t> positions, float* out) const {
  const size_t offset = j * config_.latent() * value_bytes();
  for (size_t i = 0; i < positions.size(); ++i)
    read_values(segment.kv.row(layer, positions[i]) + offset, config_.latent(),
                out + i * tile_stride());
}

// Queries [first, first + count) of the segment, each over all positions up to its own.
void LocalEngine::attend_dense(const Segment& segment, uint32_t layer, uint32_t j, uint32_t first,
                               uint32_t count, Scratch& s) const {
  const ModelConfig& c = config_;
  const uint32_t latent = c.latent(), end = segment.position + first + count;
  const auto sigma = static_cast<float>(c.softmax_scale());
  const size_t query_row = (segment.row + first) * static_cast<size_t>(c.heads);
  const TileShape shape{
      .heads = c.heads, .n = 0, .width = c.kv_lora, .score_stride = kTile, .stride = tile_stride()};
  s.spans.assign(static_cast<size_t>(count) * c.heads, {});
  std::vector<uint32_t> positions;
  for (uint32_t span_begin = 0; span_begin < end; span_begin += span_) {
    const uint32_t span_end = std::min(end, span_begin + span_);
    reset(s.partials, static_cast<size_t>(count) * c.heads, round_up_panel(c.kv_lora));
    for (uint32_t begin = span_begin; begin < span_end; begin += kTile) {
      positions.resize(std::min(kTile, span_end - begin));
      std::iota(positions.begin(), positions.end(), begin);
      const auto n = static_cast<uint32_t>(positions.size());
      read_latents(segment, layer, j, positions, s.latents.data());
      pack_positions(s.latents.data(), tile_stride(), n, latent, s.keys.as<float>());
      // Queries before the tile do not see it.
      const uint32_t at = segment.position + first;
      const uint32_t skip = begin > at ? begin - at : 0;
      const uint32_t rows = (count - skip) * c.heads;
      multiply_panels({s.keys.as<void>(), n, latent, false},
                      s.q_latent.data() + (query_row + skip * c.heads) * latent, latent, rows,
                      s.scores.data(), kTile);
      for (uint32_t q = skip; q < count; ++q) {
        float* scores = s.scores.data() + static_cast<size_t>(q - skip) * c.heads * kTile;
        for (size_t i = 0; i < static_cast<size_t>(c.heads) * kTile; ++i)
          scores[i] = scores[i] * sigma;
        TileShape own = shape;
        own.n = std::min(n, at + q + 1 - begin);
        absorb_tile_heads(own, scores, s.latents.data(),
                          s.partials.data() + static_cast<size_t>(q) * c.heads);
      }
    }
    for (size_t i = 0; i < s.partials.size(); ++i) s.spans[i].push_back(s.partials[i]);
  }
  finish_rows(layer, j, segment.row + first, count, s);
}

// One query over its chosen positions, cut by spans, then in tiles of 128 chosen ones.
void LocalEngine::attend_sparse(const Segment& segment, uint32_t layer, uint32_t j, uint32_t row,
                                Scratch& s) const {
  const ModelConfig& c = config_;
  const uint32_t latent = c.latent();
  const auto sigma = static_cast<float>(c.softmax_scale());
  const std::span<const uint32_t> chosen = s.chosen[row];
  s.spans.assign(c.heads, {});
  for (size_t from = 0; from < chosen.size();) {
    const uint32_t span = chosen[from] / span_;
    size_t to = from;
    while (to < chosen.size() && chosen[to] / span_ == span) ++to;
    reset(s.partials, c.heads, round_up_panel(c.kv_lora));
    for (auto& spans : s.spans) spans.resize(span);  // spans without a chosen position stay empty
    for (size_t begin = from; begin < to; begin += kTile) {
      const auto n = static_cast<uint32_t>(std::min<size_t>(kTile, to - begin));
      read_latents(segment, layer, j, chosen.subspan(begin, n), s.latents.data());
      pack_positions(s.latents.data(), tile_stride(), n, latent, s.keys.as<float>());
      multiply_panels({s.keys.as<void>(), n, latent, false},
                      s.q_latent.data() + static_cast<size_t>(row) * c.heads * latent, latent,
                      c.heads, s.scores.data(), kTile);
      for (size_t i = 0; i < static_cast<size_t>(c.heads) * kTile; ++i)
        s.scores[i] = s.scores[i] * sigma;
      const TileShape shape{.heads = c.heads,
                            .n = n,
                            .width = c.kv_lora,
                            .score_stride = kTile,
                            .stride = tile_stride()};
      absorb_tile_heads(shape, s.scores.data(), s.latents.data(), s.partials.data());
    }
    for (size_t i = 0; i < s.partials.size(); ++i) s.spans[i].push_back(s.partials[i]);
    from = to;
  }
  finish_rows(layer, j, row, 1, s);
}

// Merges the spans of rows [first, first + count) and leaves each head's value.  out_heads: [rows,
// heads · v_dim]
void LocalEngine::finish_rows(uint32_t layer, uint32_t j, uint32_t first, uint32_t count,
                              Scratch& s) const {
  const ModelConfig& c = config_;
  const AttentionWeights& w = weights(layer).attention[j];
  const size_t width = static_cast<size_t>(c.heads) * c.kv_lora;
  for (uint32_t q = 0; q < count; ++q) {
    for (uint32_t head = 0; head < c.heads; ++head) {
      std::vector<Partial>& spans = s.spans[static_cast<size_t>(q) * c.heads + head];
      merge_spans(spans);
      float* out = s.out_latent.data() + q * width + static_cast<size_t>(head) * c.kv_lora;
      for (uint32_t k = 0; k < c.kv_lora; ++k) out[k] = spans[0].o[k] / spans[0].l;
    }
  }
  const size_t out_width = static_cast<size_t>(c.heads) * c.v_dim;
  for (uint32_t head = 0; head < c.heads; ++head) {
    multiply(compute_,
             {&w.absorb_v[head], s.out_latent.data() + static_cast<size_t>(head) * c.kv_lora, width,
              count, s.out_heads.data() + first * out_width + static_cast<size_t>(head) * c.v_dim,
              out_width});
  }
}

void LocalEngine::attend(uint32_t layer, uint32_t j, Pass& pass) {
  const ModelConfig& c = config_;
  Scratch& s = scratch(pass);
  project_queries(layer, j, pass, s);
  write_kv(layer, j, pass, s);
  if (j == 0 && c.indexer) {
    write_index_keys(layer, pass, s);
    choose_positions(layer, pass, s);
  }
  if (!c.indexer) s.chosen.assign(s.rows, {});
  const uint32_t group = std::max(1u, kQueryRows / c.heads);
  s.latents.resize(kTile * tile_stride());
  if (s.keys.bytes() == 0)
    s.keys = AlignedBuffer(static_cast<size_t>(kTile) * c.latent() * sizeof(float));
  s.scores.resize(static_cast<size_t>(std::max(group * c.heads, c.indexer ? c.indexer->heads : 0)) *
                  kTile);
  s.out_latent.resize(static_cast<size_t>(group) * c.heads * c.kv_lora);
  s.out_heads.resize(static_cast<size_t>(s.rows) * c.heads * c.v_dim);
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count;) {
      if (!s.chosen[segment.row + i].empty()) {
        attend_sparse(segment, layer, j, segment.row + i, s);
        ++i;
        continue;
      }
      uint32_t count = 1;
      while (count < group && i + count < segment.count &&
             s.chosen[segment.row + i + count].empty())
        ++count;
      attend_dense(segment, layer, j, i, count, s);
      i += count;
    }
  }
  s.y.resize(pass.h.size());
  multiply(compute_, {&weights(layer).attention[j].o, s.out_heads.data(),
                      static_cast<size_t>(c.heads) * c.v_dim, s.rows, s.y.data(), c.hidden});
  for (size_t i = 0; i < pass.h.size(); ++i) pass.h[i] = pass.h[i] + s.y[i];
}

}  // namespace model
