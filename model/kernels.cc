#include "model/kernels.h"

#include <algorithm>

#include "model/kernels_attention.h"
#include "model/kernels_int.h"
#include "model/matrix.h"

namespace model {

ProbedOps local_ops() {
  ProbedOps ops;
  ops.project = [](std::span<const float> x, std::span<const float> w, std::span<float> y) {
    const auto inputs = static_cast<uint32_t>(x.size());
    const auto outputs = static_cast<uint32_t>(y.size());
    PackedMatrix packed(outputs, inputs, WeightFormat::kF32);
    packed.set_rows(0, outputs, w.data());
    const Panels panels{packed.data(), outputs, inputs, /*bf16=*/false};
    multiply_panels(panels, x.data(), x.size(), 1, y.data(), y.size());
  };
  ops.project_codes = project_codes;
  ops.rms_norm = [](std::span<const float> x, const float* w, float eps, float* y) {
    NormRows shape{.rows = 1,
                   .n = static_cast<uint32_t>(x.size()),
                   .x_stride = 0,
                   .y_stride = 0,
                   .eps = eps,
                   .scale = 1};
    rms_norm_rows(shape, x.data(), w, y);
  };
  ops.exp = exp_in_place;
  ops.silu = [](std::span<float> values) {
    const std::vector<float> ones(values.size(), 1.0f);
    silu_multiply(values, ones, values.data());
  };
  ops.absorb_tile = absorb_tile_by_lanes;
  return ops;
}

}  // namespace model
