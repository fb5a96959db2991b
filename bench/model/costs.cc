#include "bench/model/costs.h"

#include "model/make_checkpoint.h"
#include "model/tensor_list.h"

namespace bench {
namespace {

double bytes_of(const model::TensorSpec& spec, model::MatrixFormat format) {
  const auto rows = static_cast<double>(spec.shape[0]);
  const auto columns = static_cast<double>(spec.shape[1]);
  switch (format.format) {
    case model::WeightFormat::kF32:
      return 4 * rows * columns;
    case model::WeightFormat::kBf16:
      return 2 * rows * columns;
    case model::WeightFormat::kInt8:
      return rows * (columns + 4);
    case model::WeightFormat::kInt4:
      return rows * columns * (0.5 + 4.0 / format.group);
  }
  return 0;
}

}  // namespace

Costs::Costs(const model::Checkpoint& checkpoint, model::WeightChoice weights)
    : config_(checkpoint.config()),
      elements_(model::expected_size(config_, false, false).elements),
      active_elements_(model::active_elements(config_)),
      head_elements_(uint64_t{config_.vocab} * config_.hidden) {
  double experts = 0;
  model::each_trunk_tensor(config_, [&](const model::TensorSpec& spec) {
    if (spec.shape.size() != 2 || spec.may_pad || spec.name == model::kWordTable) return;
    const double bytes = bytes_of(spec, model::loaded_format(checkpoint, spec.name, weights));
    const bool expert = spec.name.find(".mlp.experts.") != spec.name.npos;
    (expert ? experts : dense_bytes_) += bytes;
  });
  expert_bytes_ = experts / (static_cast<double>(config_.experts) * config_.layers);
}

double Costs::operations(uint64_t rows, uint64_t heads, double positions) const {
  const double products = static_cast<double>(rows) * static_cast<double>(active_elements_) -
                          static_cast<double>(rows - heads) * static_cast<double>(head_elements_);
  // Scores over latent and rope key, then the weighted sum of latents.
  const double a_position = config_.heads * (2.0 * config_.kv_lora + config_.rope);
  return 2 * (products + positions * a_position * 2 * config_.layers);
}

double Costs::kv_bytes(double positions) const {
  return positions * config_.latent() * 2 /* bf16 */ * 2 * config_.layers;
}

}  // namespace bench
