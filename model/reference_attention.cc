#include "model/reference_attention.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace model {
namespace {

// √(hidden / rank), the scale of a LoRA latent; 1 when the model has none.
float lora_scale(bool scaled, uint32_t hidden, uint32_t rank) {
  return scaled ? static_cast<float>(std::sqrt(static_cast<double>(hidden) / rank)) : 1.0f;
}

// Values of one part of the KV rows of some positions: by row, and by value for dot_columns.
struct KvTile {
  size_t width = 0;
  std::vector<float> rows;     // [positions, width]
  std::vector<float> columns;  // [width, positions]
};
// load(bytes of a KV row, values): one part of it.
template <class Load>
KvTile load_tile(const KvView& kv, uint32_t layer, size_t width,
                 std::span<const uint32_t> positions, Load load) {
  KvTile tile{width, std::vector<float>(positions.size() * width), {}};
  tile.columns.resize(tile.rows.size());
  for (size_t s = 0; s < positions.size(); ++s) {
    const std::span<float> row = row_of(tile.rows, s, width);
    load(kv.row(layer, positions[s]), row);
    for (size_t i = 0; i < width; ++i) tile.columns[i * positions.size() + s] = row[i];
  }
  return tile;
}

KvTile load_index_keys(const AttentionContext& context, const KvView& kv, uint32_t layer,
                       std::span<const uint32_t> positions) {
  const KvLayout& layout = context.kv;
  return load_tile(kv, layer, context.config.indexer->head_dim, positions,
                   [&layout](const std::byte* row, std::span<float> values) {
                     layout.load_index_key(row + layout.index_key_at(), values);
                   });
}

// Of the positions that a row attends those that are here; all that are, if none of them is.
std::vector<uint32_t> positions_here(const KvView& kv, uint32_t position,
                                     const std::vector<uint32_t>& positions) {
  const auto first = std::ranges::lower_bound(positions, kv.begin());
  if (first != positions.end()) return {first, positions.end()};
  std::vector<uint32_t> here(position + 1 - kv.begin());
  std::iota(here.begin(), here.end(), kv.begin());
  return here;
}

std::vector<uint32_t> all_until(uint32_t position) {
  std::vector<uint32_t> positions(position + 1);
  std::iota(positions.begin(), positions.end(), 0u);
  return positions;
}

}  // namespace

AttentionPlace AttentionPlace::of_trunk(uint32_t layer, uint32_t j) {
  return {.weights = fmt::format("model.layers.{}.self_attn.{}", layer, j),
          .input_norm = fmt::format("model.layers.{}.input_layernorm.{}.weight", layer, j),
          .layer = layer,
          .j = j};
}

base::Result<ReferenceAttention> ReferenceAttention::load(const Checkpoint& checkpoint,
                                                          WeightChoice choice,
                                                          const AttentionPlace& place) {
  const ModelConfig& c = checkpoint.config();
  const std::string& at = place.weights;
  ReferenceAttention a;
  a.layer_ = place.layer;
  a.j_ = place.j;
  a.input_norm_ = TRY(load_vector(checkpoint, place.input_norm));
  a.q_a_ = TRY(Matrix::load(checkpoint, choice, at + ".q_a_proj.weight"));
  a.q_norm_ = TRY(load_vector(checkpoint, at + ".q_a_layernorm.weight"));
  a.q_b_ = TRY(Matrix::load(checkpoint, choice, at + ".q_b_proj.weight"));
  a.kv_a_ = TRY(Matrix::load(checkpoint, choice, at + ".kv_a_proj_with_mqa.weight"));
  a.kv_norm_ = TRY(load_vector(checkpoint, at + ".kv_a_layernorm.weight"));
  a.o_ = TRY(Matrix::load(checkpoint, choice, at + ".o_proj.weight"));
  const std::string kv_b = at + ".kv_b_proj.weight";  // per head: nope rows of K, v_dim rows of V
  for (uint64_t head = 0; head < c.heads; ++head) {
    const uint64_t begin = head * (c.nope + c.v_dim);
    a.k_up_.push_back(TRY(Matrix::load_transposed(checkpoint, choice, kv_b, begin, c.nope)));
    a.v_up_.push_back(TRY(Matrix::load(checkpoint, choice, kv_b, begin + c.nope, c.v_dim)));
  }
  if (c.indexer && place.j == 0) {
    Indexer& indexer = a.indexer_.emplace();
    indexer.query = TRY(Matrix::load(checkpoint, choice, at + ".indexer.wq_b.weight"));
    indexer.key = TRY(Matrix::load(checkpoint, choice, at + ".indexer.wk.weight"));
    indexer.key_norm = TRY(load_vector(checkpoint, at + ".indexer.k_norm.weight"));
    indexer.weights = TRY(Matrix::load(checkpoint, choice, at + ".indexer.weights_proj.weight"));
  }
  return a;
}

void ReferenceAttention::run(const AttentionContext& context, Pass& pass) const {
  run(context, pass, nullptr);
}

void ReferenceAttention::run_draft(const AttentionContext& context, Pass& pass,
                                   DraftIndex index) const {
  if (index == DraftIndex::kFresh || !context.config.indexer) {
    run(context, pass, nullptr);
    auto& scratch = static_cast<ReferenceScratch&>(*pass.scratch);
    scratch.draft_sets.keep(pass, scratch.selected);
    return;
  }
  CHECK(pass.scratch != nullptr, "the first draft of a round selects for itself");
  const PositionSets sets =
      static_cast<ReferenceScratch&>(*pass.scratch).draft_sets.reuse(pass, index);
  run(context, pass, &sets);
}

void ReferenceAttention::begin(const AttentionContext& context, Pass& pass) const {
  for (const Row& row : start_rows(context, pass)) write_kv(context, row);
}

void ReferenceAttention::end(const AttentionContext& context, Pass& pass) const {
  attend_rows(context, pass, start_rows(context, pass), nullptr);
}

void ReferenceAttention::run(const AttentionContext& context, Pass& pass,
                             const PositionSets* given) const {
  const std::vector<Row> rows = start_rows(context, pass);
  for (const Row& row : rows) write_kv(context, row);
  attend_rows(context, pass, rows, given);
}

void ReferenceAttention::attend_rows(const AttentionContext& context, Pass& pass,
                                     const std::vector<Row>& rows,
                                     const PositionSets* given) const {
  if (pass.scratch == nullptr) pass.scratch = std::make_unique<ReferenceScratch>();
  auto& selected = static_cast<ReferenceScratch&>(*pass.scratch).selected;
  selected.resize(rows.size());
  for (const Row& row : rows) {
    std::vector<uint32_t>& positions = selected[row.row];
    if (given != nullptr) {
      positions = (*given)[row.row];
    } else if (indexer_) {
      positions = select(context, row);
    } else if (!context.config.indexer) {
      positions = all_until(row.position);
    }  // else attention 0's
    const std::vector<float> out = attend(context, row, positions);
    add_to(row_of(pass.h, row.row, context.config.hidden), out);
  }
}

std::vector<ReferenceAttention::Row> ReferenceAttention::start_rows(const AttentionContext& context,
                                                                    const Pass& pass) const {
  const ModelConfig& c = context.config;
  std::vector<Row> rows;
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count; ++i) {
      Row row;
      row.row = segment.row + i;
      row.position = segment.position + i;
      row.kv = segment.kv;
      const auto h = std::span<const float>(pass.h).subspan(size_t{row.row} * c.hidden, c.hidden);
      row.x = normed(h, input_norm_, c.rms_eps);
      row.cq = normed(q_a_(row.x), q_norm_, c.lora_norm_eps);
      row.cos.resize(context.rope.pairs());
      row.sin.resize(context.rope.pairs());
      context.rope.angles(row.position, row.cos.data(), row.sin.data());
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

// [c | kr] = W_kva x;  c = RMS(c) · skv;  kr turned;  and with an indexer kI = RMS(W_k x), turned.
void ReferenceAttention::write_kv(const AttentionContext& context, const Row& row) const {
  const ModelConfig& c = context.config;
  std::vector<float> latent = kv_a_(row.x);
  const std::span<float> compressed = std::span(latent).first(c.kv_lora);
  const float scale = lora_scale(c.scale_kv_lora, c.hidden, c.kv_lora);
  rms_norm(compressed, kv_norm_.data(), static_cast<float>(c.lora_norm_eps), compressed.data());
  for (float& value : compressed) value = value * scale;
  rotate_pairs(latent.data() + c.kv_lora, c.rope / 2, row.cos.data(), row.sin.data());
  std::byte* kv_row = row.kv.write_row(layer_, row.position);
  context.kv.store_part(kv_row + context.kv.latent_at(j_), latent);

  if (!indexer_) return;
  std::vector<float> key = normed(indexer_->key(row.x), indexer_->key_norm, c.indexer->k_norm_eps);
  const auto rotate = c.indexer->rope_interleave ? rotate_pairs : rotate_halves;
  rotate(key.data(), c.rope / 2, row.cos.data(), row.sin.data());
  context.kv.store_index_key(kv_row + context.kv.index_key_at(), key);
}

ReferenceAttention::IndexQuery ReferenceAttention::index_query(const AttentionContext& context,
                                                               const Row& row) const {
  const ModelConfig& c = context.config;
  const IndexerConfig& index = *c.indexer;
  IndexQuery query{indexer_->query(row.cq), indexer_->weights(row.x)};
  const auto rotate = index.rope_interleave ? rotate_pairs : rotate_halves;
  for (uint32_t h = 0; h < index.heads; ++h)
    rotate(query.heads.data() + size_t{h} * index.head_dim, c.rope / 2, row.cos.data(),
           row.sin.data());
  const auto scale = static_cast<float>(
      1 / (std::sqrt(double{1} * index.heads) * std::sqrt(double{1} * index.head_dim)));
  for (float& w : query.weights) w = w * scale;
  return query;
}

// I(s) = Σ_h w_h · max(qI_h · kI_s, 0), heads ascending.
std::vector<float> ReferenceAttention::index_scores(const AttentionContext& context, const Row& row,
                                                    std::span<const uint32_t> positions) const {
  return index_scores(context, row.kv, index_query(context, row), positions);
}

std::vector<float> ReferenceAttention::index_scores(const AttentionContext& context,
                                                    const KvView& kv, IndexQuery query,
                                                    std::span<const uint32_t> positions) const {
  const IndexerConfig& index = *context.config.indexer;
  std::vector<float> scores(positions.size(), 0.0f);
  for (size_t begin = 0; begin < positions.size(); begin += kTile) {
    const size_t count = std::min<size_t>(kTile, positions.size() - begin);
    const KvTile keys = load_index_keys(context, kv, layer_, positions.subspan(begin, count));
    std::vector<float> match(count);
    for (uint32_t h = 0; h < index.heads; ++h) {
      dot_columns(row_of(query.heads, h, index.head_dim), keys.columns.data(), match);
      for (size_t s = 0; s < count; ++s)
        scores[begin + s] = std::fma(query.weights[h], std::max(match[s], 0.0f), scores[begin + s]);
    }
  }
  return scores;
}

// J(b) = Σ_h w_h · max(qI_h · k̄_b, 0) with k̄_b the mean of the block's stored keys, for every block
// that is full at the row's position.
std::vector<float> ReferenceAttention::block_scores(const AttentionContext& context,
                                                    const Row& row) const {
  const IndexerConfig& index = *context.config.indexer;
  IndexQuery query = index_query(context, row);
  std::vector<float> scores((row.position + 1) / kBlockTokens, 0.0f);
  for (uint32_t block = 0; block < scores.size(); ++block) {
    std::vector<uint32_t> positions(kBlockTokens);
    std::iota(positions.begin(), positions.end(), block * kBlockTokens);
    KvTile keys = load_index_keys(context, row.kv, layer_, positions);
    std::vector<float> mean(index.head_dim, 0.0f);
    for (size_t s = 0; s < kBlockTokens; ++s) add_to(mean, row_of(keys.rows, s, keys.width));
    for (float& m : mean) m = m * (1.0f / kBlockTokens);
    for (uint32_t h = 0; h < index.heads; ++h) {
      const float match = dot(row_of(query.heads, h, index.head_dim), mean);
      scores[block] = std::fma(query.weights[h], std::max(match, 0.0f), scores[block]);
    }
  }
  return scores;
}

// Positions whose own scores are looked at: all, or those of the blocks that the coarse score and
// the forced positions name.
std::vector<uint32_t> ReferenceAttention::candidates(const AttentionContext& context,
                                                     const Row& row) const {
  const IndexerConfig& index = *context.config.indexer;
  const uint32_t count = row.position + 1;
  if (!context.hierarchical.on || row.position < context.hierarchical.from || count <= index.topk)
    return all_until(row.position);
  std::vector<bool> named((count + kBlockTokens - 1) / kBlockTokens, false);
  if (count % kBlockTokens != 0) named.back() = true;
  for (uint32_t s = 0; s < count; ++s)
    if (s < index.init_tokens || s + index.local_tokens >= count) named[s / kBlockTokens] = true;

  const std::vector<float> scores = block_scores(context, row);
  std::vector<uint32_t> others, best;
  std::vector<float> of_others;
  for (uint32_t block = 0; block < scores.size(); ++block) {
    if (named[block]) continue;
    others.push_back(block);
    of_others.push_back(scores[block]);
  }
  select_highest(of_others, context.hierarchical.keep, best);
  for (const uint32_t i : best) named[others[i]] = true;

  std::vector<uint32_t> positions;
  for (uint32_t s = 0; s < count; ++s)
    if (named[s / kBlockTokens]) positions.push_back(s);
  return positions;
}

std::vector<uint32_t> ReferenceAttention::select(const AttentionContext& context,
                                                 const Row& row) const {
  const IndexerConfig& index = *context.config.indexer;
  const uint32_t count = row.position + 1;
  if (row.kv.first_block > 0) {  // only what is here
    if (count <= index.topk) return all_until(row.position);
    const KvRange here{row.kv.begin(), count};
    return choose_among(context, count,
                        {best_of(context, row.kv, index_query(context, row), here, count)});
  }
  if (count <= index.topk && context.probe == nullptr) return all_until(row.position);
  const std::vector<uint32_t> positions = candidates(context, row);
  const std::vector<float> scores = index_scores(context, row, positions);
  std::vector<uint32_t> chosen;
  if (positions.size() == count) {
    select_positions(index, scores, chosen);
  } else {
    const ForcedPositions forced = forced_positions(index, count);
    std::vector<uint32_t> between, best;
    std::vector<float> of_between;
    for (size_t i = 0; i < positions.size(); ++i) {
      if (positions[i] < forced.sink_end || positions[i] >= forced.local_begin) continue;
      between.push_back(positions[i]);
      of_between.push_back(scores[i]);
    }
    select_highest(of_between, forced.free, best);
    for (uint32_t s = 0; s < forced.sink_end; ++s) chosen.push_back(s);
    for (const uint32_t i : best) chosen.push_back(between[i]);
    for (uint32_t s = forced.local_begin; s < forced.local_end; ++s) chosen.push_back(s);
  }
  if (context.probe != nullptr) {
    std::vector<float> all(count, -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i < positions.size(); ++i) all[positions[i]] = scores[i];
    context.probe->index_scores(layer_, row.row, all);
    context.probe->selected(layer_, row.row, chosen);
  }
  return chosen;
}

// Per head [qc | qr]: q = (W_qb cq) · sq, qc = W_kᵀ qn, qr turned.
std::vector<std::vector<float>> ReferenceAttention::queries(const AttentionContext& context,
                                                            const Row& row) const {
  const ModelConfig& c = context.config;
  std::vector<float> q = q_b_(row.cq);
  const float scale = lora_scale(c.scale_q_lora, c.hidden, c.q_lora);
  for (float& value : q) value = value * scale;
  std::vector<std::vector<float>> out;
  for (uint32_t head = 0; head < c.heads; ++head) {
    const std::span<float> of_head = row_of(q, head, c.nope + c.rope);
    const std::span<float> turned = of_head.subspan(c.nope);
    rotate_pairs(turned.data(), c.rope / 2, row.cos.data(), row.sin.data());
    std::vector<float> absorbed = k_up_[head](of_head.first(c.nope));
    absorbed.insert(absorbed.end(), turned.begin(), turned.end());
    out.push_back(std::move(absorbed));
  }
  return out;
}

std::vector<float> ReferenceAttention::attend(const AttentionContext& context, const Row& row,
                                              const std::vector<uint32_t>& positions) const {
  Partials partials = empty_partials(context, row.position / context.span + 1);
  std::vector<uint32_t> here = positions_here(row.kv, row.position, positions);
  absorb(context, row.kv, queries(context, row), here, /*first_span=*/0, partials);
  return output(std::move(partials));
}

ReferenceAttention::Partials ReferenceAttention::empty_partials(const AttentionContext& context,
                                                                size_t spans) const {
  Partial nothing;
  nothing.o.assign(context.config.kv_lora, 0.0f);
  return Partials(context.config.heads, std::vector<Partial>(spans, nothing));
}

void ReferenceAttention::absorb(const AttentionContext& context, const KvView& kv,
                                const std::vector<std::vector<float>>& query,
                                std::span<const uint32_t> positions, uint32_t first_span,
                                Partials& partials) const {
  const ModelConfig& c = context.config;
  const auto sigma = static_cast<float>(c.softmax_scale());
  for (size_t begin = 0; begin < positions.size();) {
    const uint32_t span = positions[begin] / context.span;
    size_t end = begin;  // of the tile: at most kTile positions of one span
    while (end < positions.size() && end - begin < kTile && positions[end] / context.span == span)
      ++end;
    const std::span<const uint32_t> in_tile = positions.subspan(begin, end - begin);
    const KvTile tile = load_tile(kv, layer_, c.latent(), in_tile,
                                  [&](const std::byte* kv_row, std::span<float> values) {
                                    context.kv.load_part(kv_row + context.kv.latent_at(j_), values);
                                  });
    for (uint32_t head = 0; head < c.heads; ++head) {
      std::vector<float> scores(in_tile.size());
      dot_columns(query[head], tile.columns.data(), scores);
      for (float& score : scores) score = score * sigma;
      absorb_tile(partials[head][span - first_span], scores, tile.rows.data(), tile.width);
    }
    begin = end;
  }
}

std::vector<float> ReferenceAttention::output(Partials partials) const {
  std::vector<float> heads_out;
  for (size_t head = 0; head < partials.size(); ++head) {
    merge_spans(partials[head]);
    Partial& whole = partials[head][0];
    for (float& o : whole.o) o = o / whole.l;
    const std::vector<float> value = v_up_[head](whole.o);
    heads_out.insert(heads_out.end(), value.begin(), value.end());
  }
  return o_(heads_out);
}

}  // namespace model
