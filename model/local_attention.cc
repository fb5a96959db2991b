// The projections around an attention. The MLA prolog and the indexer's work run as concurrent
// streams: each phase multiplies what both need at that point in one region of the thread pool.
#include "model/local_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "model/kernels_attention.h"

namespace model {

namespace {

constexpr uint32_t kRowsATask = 16;  // of element-wise work

// √(hidden / rank), the scale of a LoRA latent; 1 when the model has none.
float lora_scale(bool scaled, uint32_t hidden, uint32_t rank) {
  return scaled ? static_cast<float>(std::sqrt(static_cast<double>(hidden) / rank)) : 1.0f;
}

void norm_rows(const std::vector<float>& weight, double eps, float scale, uint32_t rows,
               const float* x, size_t stride, float* y) {
  rms_norm_rows({.rows = rows,
                 .n = static_cast<uint32_t>(weight.size()),
                 .x_stride = stride,
                 .y_stride = stride,
                 .eps = static_cast<float>(eps),
                 .scale = scale},
                x, weight.data(), y);
}

}  // namespace

LocalAttention::LocalAttention(const ModelConfig& config, const EngineOptions& options,
                               const Compute& compute)
    : config_(config),
      compute_(compute),
      kv_(config, options.kv),
      span_(options.span),
      index_(config.indexer ? std::optional<LocalIndex>(std::in_place, config, options, compute)
                            : std::nullopt),
      rope_(config),
      sigma_(static_cast<float>(config.softmax_scale())),
      q_scale_(lora_scale(config.scale_q_lora, config.hidden, config.q_lora)),
      kv_scale_(lora_scale(config.scale_kv_lora, config.hidden, config.kv_lora)) {
  CHECK(config.latent() <= kMostSegments * kDotSegment, "a latent of {} values", config.latent());
}

template <class F>
void LocalAttention::for_rows(uint32_t rows, F f) const {
  compute_.threads.run((rows + kRowsATask - 1) / kRowsATask, [&](uint32_t task) {
    f(task * kRowsATask, std::min(rows, (task + 1) * kRowsATask));
  });
}

// Phase 1, from x: [c | kr] = W_kva x, cq = W_qa x; the indexer's key and head weights.
void LocalAttention::project_latents(const AttentionSite& site, AttentionScratch& s, uint32_t rows,
                                     bool scores) const {
  const ModelConfig& c = config_;
  const AttentionWeights& w = site.weights;
  s.q_lora.resize(static_cast<size_t>(rows) * c.q_lora);
  s.kv.resize(static_cast<size_t>(rows) * c.latent());
  s.products.assign({{&w.q_a, s.x.data(), c.hidden, rows, s.q_lora.data(), c.q_lora},
                     {&w.kv_a, s.x.data(), c.hidden, rows, s.kv.data(), c.latent()}});
  if (site.indexer != nullptr) {
    const IndexerConfig& index = *c.indexer;
    s.index_keys.resize(static_cast<size_t>(rows) * index.head_dim);
    s.products.push_back(
        {&site.indexer->wk, s.x.data(), c.hidden, rows, s.index_keys.data(), index.head_dim});
    if (scores) {
      s.index_w.resize(static_cast<size_t>(rows) * index.heads);
      s.products.push_back(
          {&site.indexer->weights_proj, s.x.data(), c.hidden, rows, s.index_w.data(), index.heads});
    }
  }
  multiply(compute_, s.products);
}

// Phase 2, from cq: q = W_qb cq and the indexer's queries. Phase 3: qc = W_kᵀ qn of every head.
void LocalAttention::project_queries(const AttentionSite& site, const Pass& pass,
                                     AttentionScratch& s, bool scores) const {
  const ModelConfig& c = config_;
  const AttentionWeights& w = site.weights;
  const uint32_t rows = pass.rows(), head_width = c.nope + c.rope, latent = c.latent();
  s.q_heads.resize(static_cast<size_t>(rows) * c.heads * head_width);
  s.products.assign(
      {{&w.q_b, s.q_lora.data(), c.q_lora, rows, s.q_heads.data(), c.heads * head_width}});
  if (scores) {
    const uint32_t width = c.indexer->heads * c.indexer->head_dim;
    s.index_q.resize(static_cast<size_t>(rows) * width);
    s.products.push_back(
        {&site.indexer->wq_b, s.q_lora.data(), c.q_lora, rows, s.index_q.data(), width});
  }
  multiply(compute_, s.products);

  s.q_latent.resize(static_cast<size_t>(rows) * c.heads * latent);
  s.cos.resize(static_cast<size_t>(rows) * rope_.pairs());
  s.sin.resize(s.cos.size());
  s.angle_of.resize(rows, std::numeric_limits<uint32_t>::max());
  for (const Segment& segment : pass.segments) {
    for_rows(segment.count, [&](uint32_t begin, uint32_t end) {
      for (uint32_t i = begin; i < end; ++i) {
        const size_t row = segment.row + i, at = row * rope_.pairs();
        const uint32_t position = segment.position + i;
        if (std::exchange(s.angle_of[row], position) != position)
          rope_.angles(position, s.cos.data() + at, s.sin.data() + at);
        turn_row(site, s, row, scores);
      }
    });
  }

  s.products.clear();
  for (uint32_t head = 0; head < c.heads; ++head) {
    s.products.push_back({&w.absorb_k[head],
                          s.q_heads.data() + static_cast<size_t>(head) * head_width,
                          static_cast<size_t>(c.heads) * head_width, rows,
                          s.q_latent.data() + static_cast<size_t>(head) * latent,
                          static_cast<size_t>(c.heads) * latent});
  }
  multiply(compute_, s.products);
}

// Scales and turns what the projections left in one row: queries, rope key, indexer.
void LocalAttention::turn_row(const AttentionSite& site, AttentionScratch& s, size_t row,
                              bool scores) const {
  const ModelConfig& c = config_;
  const uint32_t pairs = rope_.pairs(), head_width = c.nope + c.rope;
  const float* cos = s.cos.data() + row * pairs;
  const float* sin = s.sin.data() + row * pairs;
  float* q = s.q_heads.data() + row * c.heads * head_width;
  if (c.scale_q_lora)
    for (uint32_t i = 0; i < c.heads * head_width; ++i) q[i] = q[i] * q_scale_;
  for (uint32_t head = 0; head < c.heads; ++head) {
    turn_pairs(q + static_cast<size_t>(head) * head_width + c.nope, pairs, cos, sin,
               s.q_latent.data() + (row * c.heads + head) * c.latent() + c.kv_lora);
  }
  float* key = s.kv.data() + row * c.latent() + c.kv_lora;
  turn_pairs(key, pairs, cos, sin, key);
  if (site.indexer == nullptr) return;
  const IndexerConfig& index = *c.indexer;
  const auto rotate = index.rope_interleave ? rotate_pairs : rotate_halves;
  rotate(s.index_keys.data() + row * index.head_dim, pairs, cos, sin);
  if (!scores) return;
  const auto scale = static_cast<float>(
      1 / (std::sqrt(double{1} * index.heads) * std::sqrt(double{1} * index.head_dim)));
  for (uint32_t head = 0; head < index.heads; ++head) {
    rotate(s.index_q.data() + (row * index.heads + head) * index.head_dim, pairs, cos, sin);
    float& weight = s.index_w[row * index.heads + head];
    weight = weight * scale;
  }
}

// `scores`: some row's positions will be chosen by score.
void LocalAttention::project(const AttentionSite& site, Pass& pass, AttentionScratch& s,
                             bool scores) const {
  const ModelConfig& c = config_;
  const AttentionWeights& w = site.weights;
  s.x.resize(pass.h.size());
  for_rows(pass.rows(), [&](uint32_t begin, uint32_t end) {
    const size_t at = static_cast<size_t>(begin) * c.hidden;
    norm_rows(w.input_norm, c.rms_eps, 1, end - begin, pass.h.data() + at, c.hidden,
              s.x.data() + at);
  });
  project_latents(site, s, pass.rows(), scores);
  for_rows(pass.rows(), [&](uint32_t begin, uint32_t end) {
    float* q = s.q_lora.data() + static_cast<size_t>(begin) * c.q_lora;
    norm_rows(w.q_a_norm, c.lora_norm_eps, 1, end - begin, q, c.q_lora, q);
    float* kv = s.kv.data() + static_cast<size_t>(begin) * c.latent();
    norm_rows(w.kv_a_norm, c.lora_norm_eps, kv_scale_, end - begin, kv, c.latent(), kv);
    if (site.indexer == nullptr) return;
    const uint32_t dim = c.indexer->head_dim;
    float* key = s.index_keys.data() + static_cast<size_t>(begin) * dim;
    norm_rows(site.indexer->k_norm, c.indexer->k_norm_eps, 1, end - begin, key, dim, key);
  });
  project_queries(site, pass, s, scores);
}

void LocalAttention::write_rows(const AttentionSite& site, const Pass& pass,
                                AttentionScratch& s) const {
  const uint32_t latent = config_.latent();
  const uint32_t dim = config_.indexer ? config_.indexer->head_dim : 0;
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count; ++i) {
      const size_t row = segment.row + i;
      const uint32_t position = segment.position + i;
      // What is derived of a row comes from its index key alone.
      std::byte* to = site.indexer != nullptr ? segment.kv.write_row(site.layer, position)
                                              : segment.kv.row(site.layer, position);
      kv_.store_part(to + kv_.latent_at(site.j), {s.kv.data() + row * latent, latent});
      if (site.indexer == nullptr) continue;
      kv_.store_index_key(to + kv_.index_key_at(), {s.index_keys.data() + row * dim, dim});
    }
  }
}

// h += W_o [W_v o] over the heads.
void LocalAttention::project_values(const AttentionSite& site, Pass& pass,
                                    AttentionScratch& s) const {
  const ModelConfig& c = config_;
  const uint32_t rows = pass.rows();
  const size_t width = static_cast<size_t>(c.heads) * c.kv_lora;
  const size_t out_width = static_cast<size_t>(c.heads) * c.v_dim;
  s.out_heads.resize(rows * out_width);
  s.products.clear();
  for (uint32_t head = 0; head < c.heads; ++head) {
    s.products.push_back({&site.weights.absorb_v[head],
                          s.out_latent.data() + static_cast<size_t>(head) * c.kv_lora, width, rows,
                          s.out_heads.data() + static_cast<size_t>(head) * c.v_dim, out_width});
  }
  multiply(compute_, s.products);
  s.y.resize(pass.h.size());
  multiply(compute_, {&site.weights.o, s.out_heads.data(), out_width, rows, s.y.data(), c.hidden});
  for_rows(rows, [&](uint32_t begin, uint32_t end) {
    const size_t last = static_cast<size_t>(end) * c.hidden;
    for (size_t i = static_cast<size_t>(begin) * c.hidden; i < last; ++i)
      pass.h[i] = pass.h[i] + s.y[i];
  });
}

bool LocalAttention::scores(const Pass& pass, bool chooses) const {
  return chooses && std::ranges::any_of(pass.segments, [this](const Segment& segment) {
           return probe_ != nullptr || segment.position + segment.count > config_.indexer->topk;
         });
}

void LocalAttention::begin(const AttentionSite& site, Pass& pass, AttentionScratch& s,
                           Positions positions) const {
  const bool chooses = site.indexer != nullptr && positions == Positions::kOwn;
  project(site, pass, s, scores(pass, chooses));
  write_rows(site, pass, s);
  s.sharded.clear();
  if (config_.indexer && !chooses) return;  // the sets stay as given
  s.chosen.resize(pass.rows());
  for (std::vector<uint32_t>& set : s.chosen) set.clear();
}

void LocalAttention::end(const AttentionSite& site, Pass& pass, AttentionScratch& s,
                         Positions positions) const {
  const bool chooses = site.indexer != nullptr && positions == Positions::kOwn;
  CHECK(s.chosen.size() == pass.rows(), "{} position sets for {} rows", s.chosen.size(),
        pass.rows());
  if (scores(pass, chooses)) choose(site, pass, s);
  attend_rows(site, pass, s);
  project_values(site, pass, s);
}

// Of all rows but those of segments with KV away.
void LocalAttention::choose(const AttentionSite& site, const Pass& pass,
                            AttentionScratch& s) const {
  index_->choose(site.layer, pass, {s.index_q.data(), s.index_w.data(), probe_}, s.index, s.chosen);
  for (const Segment& segment : pass.segments)
    if (segment.kv.first_block > 0 && segment.away.empty()) choose_here(site, segment, s);
}

void LocalAttention::run(const AttentionSite& site, Pass& pass, AttentionScratch& s,
                         Positions positions) const {
  begin(site, pass, s, positions);
  end(site, pass, s, positions);
}

}  // namespace model
