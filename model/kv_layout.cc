#include "model/kv_layout.h"

#include <fmt/core.h>

#include <cstring>

#include "model/numerics.h"

namespace model {

KvLayout::KvLayout(const ModelConfig& config, KvType type)
    : type_(type), value_bytes_(type == KvType::kBf16 ? 2 : 4), latent_(config.latent()) {
  const uint32_t key = config.indexer ? config.indexer->head_dim : 0;
  row_bytes_ = (2 * latent_ + key) * value_bytes_;
}

void KvLayout::store(std::byte* at, std::span<const float> values) const {
  if (type_ == KvType::kF32) {
    std::memcpy(at, values.data(), values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = to_bf16(values[i]);
    std::memcpy(at + i * sizeof bits, &bits, sizeof bits);
  }
}

void KvLayout::load(const std::byte* at, std::span<float> values) const {
  if (type_ == KvType::kF32) {
    std::memcpy(values.data(), at, values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, at + i * sizeof bits, sizeof bits);
    values[i] = from_bf16(bits);
  }
}

Shape shape_of(const ModelConfig& config, const base::Hash128& model_digest,
               const EngineOptions& options) {
  Shape shape;
  shape.layers = config.layers;
  shape.hidden = config.hidden;
  shape.vocab = config.vocab;
  shape.experts = config.experts;
  shape.topk = config.topk;
  const KvLayout layout_of_rows(config, options.kv);
  shape.kv_row_bytes = layout_of_rows.row_bytes();
  shape.kv_latent_bytes = static_cast<uint32_t>(layout_of_rows.latent_at(1));
  shape.ngram_context = config.ngram ? config.ngram->order - 1 : 0;
  shape.max_context = config.max_position;
  shape.mtp_steps = options.mtp ? config.mtp_layers : 0;
  shape.eos.assign(config.eos.begin(), config.eos.end());
  shape.cost = prefill_cost(config);
  shape.model_digest = model_digest;
  // All that decides the bits of a KV row, so that rows of different arithmetic never meet.
  const HierarchicalIndex& index = options.hierarchical;
  std::string layout = fmt::format(
      "kv {} bytes {} latent {} index {} span {} tile {} segment {} lanes {} weights {} mode {} "
      "hierarchical {} {} {}",
      options.kv == KvType::kBf16 ? "bf16" : "f32", shape.kv_row_bytes, config.latent(),
      config.indexer ? config.indexer->head_dim : 0, options.span, kTile, kDotSegment, kLanes,
      static_cast<int>(options.weights), static_cast<int>(options.mode), index.on,
      index.on ? index.keep : 0, index.on ? index.from : 0);
  if (shape.mtp_steps > 0) layout += " drafting";
  shape.layout_digest = base::hash128(layout);
  return shape;
}

}  // namespace model
