#include "model/kv_layout.h"

#include <fmt/core.h>

#include <cstring>

#include "model/numerics.h"
#include "model/numerics_int.h"

namespace model {

namespace {

void store_f32(std::byte* at, std::span<const float> values) {
  std::memcpy(at, values.data(), values.size_bytes());
}
void load_f32(const std::byte* at, std::span<float> values) {
  std::memcpy(values.data(), at, values.size_bytes());
}
void store_bf16(std::byte* at, std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = to_bf16(values[i]);
    std::memcpy(at + i * sizeof bits, &bits, sizeof bits);
  }
}
void load_bf16(const std::byte* at, std::span<float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, at + i * sizeof bits, sizeof bits);
    values[i] = from_bf16(bits);
  }
}

}  // namespace

KvLayout::KvLayout(const ModelConfig& config, KvType type)
    : type_(type), latent_(config.kv_lora), rope_(config.rope) {
  const uint32_t value_bytes = type == KvType::kF32 ? 4 : 2;
  part_bytes_ = config.latent() * value_bytes;
  if (type == KvType::kInt8) {
    const auto scale = static_cast<uint32_t>(sizeof(float));
    rope_at_ = scale + (latent_ + 1) / 2 * 2;
    part_bytes_ = (rope_at_ + rope_ * value_bytes + 3) / 4 * 4;
  }
  const uint32_t key = config.indexer ? config.indexer->head_dim : 0;
  row_bytes_ = 2 * part_bytes_ + key * value_bytes;
}

void KvLayout::store_part(std::byte* at, std::span<const float> values) const {
  if (type_ == KvType::kF32) return store_f32(at, values);
  if (type_ == KvType::kBf16) return store_bf16(at, values);
  std::memset(at, 0, part_bytes_);
  const float scale =
      quantise_group(values.first(latent_), reinterpret_cast<int8_t*>(at + sizeof scale));
  std::memcpy(at, &scale, sizeof scale);
  store_bf16(at + rope_at_, values.subspan(latent_));
}

void KvLayout::load_part(const std::byte* at, std::span<float> values) const {
  if (type_ == KvType::kF32) return load_f32(at, values);
  if (type_ == KvType::kBf16) return load_bf16(at, values);
  float scale;
  std::memcpy(&scale, at, sizeof scale);
  const auto* codes = reinterpret_cast<const int8_t*>(at + sizeof scale);
  for (size_t i = 0; i < latent_; ++i) values[i] = static_cast<float>(codes[i]) * scale;
  load_bf16(at + rope_at_, values.subspan(latent_));
}

void KvLayout::store_index_key(std::byte* at, std::span<const float> values) const {
  type_ == KvType::kF32 ? store_f32(at, values) : store_bf16(at, values);
}
void KvLayout::load_index_key(const std::byte* at, std::span<float> values) const {
  type_ == KvType::kF32 ? load_f32(at, values) : load_bf16(at, values);
}

const char* name_of(KvType type) {
  switch (type) {
    case KvType::kBf16:
      return "bf16";
    case KvType::kF32:
      return "f32";
    case KvType::kInt8:
      return "int8";
  }
  return "";
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
  shape.kv_latent_bytes = layout_of_rows.part_bytes();
  shape.span = options.span;
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
      name_of(options.kv), shape.kv_row_bytes, config.latent(),
      config.indexer ? config.indexer->head_dim : 0, options.span, kTile, kDotSegment, kLanes,
      static_cast<int>(options.weights), static_cast<int>(options.mode), index.on,
      index.on ? index.keep : 0, index.on ? index.from : 0);
  if (shape.mtp_steps > 0) layout += " drafting";
  shape.layout_digest = base::hash128(layout);
  return shape;
}

}  // namespace model
