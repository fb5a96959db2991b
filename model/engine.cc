#include "model/engine.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"
#include "base/cluster_config.h"

namespace model {

void Engine::final_norm(const Pass& pass, std::span<const uint32_t> rows, std::vector<float>& out) {
  std::vector<float> logits(rows.size() * shape().vocab);
  head(pass, rows, logits, &out);
}

void Engine::routed_experts(uint32_t layer, Pass& pass) {
  RoutedPairs pairs;
  pairs.take(pass, shape());
  const size_t hidden = shape().hidden;
  std::vector<float> out(pairs.slots.size() * hidden);
  experts(layer, pass.x, pairs.rows, pairs.experts, out);
  for (size_t i = 0; i < pairs.slots.size(); ++i)
    std::copy_n(out.data() + i * hidden, hidden, pass.expert_out.data() + pairs.slots[i] * hidden);
}

void Engine::begin_attend(uint32_t, uint32_t, Pass&) { CHECK(false, "not offered by this engine"); }
void Engine::end_attend(uint32_t, uint32_t, Pass&) { CHECK(false, "not offered by this engine"); }

void RoutedPairs::take(const Pass& pass, const Shape& shape) {
  CHECK(pass.rows() <= std::numeric_limits<uint16_t>::max(), "a pass of {} rows", pass.rows());
  rows.clear();
  experts.clear();
  slots.clear();
  for (uint32_t slot = 0; slot < pass.rows() * shape.topk; ++slot) {
    if (pass.expert_ids[slot] >= shape.experts) continue;
    rows.push_back(static_cast<uint16_t>(slot / shape.topk));
    experts.push_back(static_cast<uint16_t>(pass.expert_ids[slot]));
    slots.push_back(slot);
  }
}

EngineOptions engine_options(const base::ClusterConfig& config) {
  EngineOptions options;
  options.kv = config.numerics_kv == "f32"    ? KvType::kF32
               : config.numerics_kv == "int8" ? KvType::kInt8
                                              : KvType::kBf16;
  options.mode = config.numerics_mode == "fast" ? NumericsMode::kFast : NumericsMode::kInvariant;
  const std::string& weights = config.numerics_weights;
  options.weights = weights == "bf16"   ? WeightChoice::kBf16
                    : weights == "int8" ? WeightChoice::kInt8
                    : weights == "int4" ? WeightChoice::kInt4
                                        : WeightChoice::kAsStored;
  options.hierarchical.on = config.hierarchical_index;
  options.threads = config.threads;
  options.verify_products = config.verify_products;
  options.mtp = config.mtp_steps > 0;
  return options;
}

// By the bits and without an early end, so that it runs over vectors.
bool all_finite(std::span<const float> values) {
  uint32_t largest = 0;
  for (float value : values)
    largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7FFF'FFFFu);
  return largest < 0x7F80'0000u;
}

}  // namespace model
