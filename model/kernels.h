// The kernels of the local engine, on Google Highway with run-time dispatch. Every result has the
// bits of the rule of the same name in docs/NUMERICS.md (model/numerics.h is the scalar form); how
// many rows there are, where a row stands and which vector width runs makes no difference. On
// machines without fused multiply-add the portable target calls std::fma: slow, equal.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "model/aligned_buffer.h"
#include "model/numerics.h"

namespace model {

inline constexpr uint32_t kPanel = 16;  // outputs side by side in a panel

inline constexpr uint32_t round_up_panel(uint32_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

// A matrix W [outputs, inputs] laid out for multiply_panels(): panels of 16 outputs, the last one
// filled up with zeros.
//   f32: in a panel, for ascending input k, the 16 weights w[k] side by side.
//   bf16: for ascending pairs of inputs, for each of the 16 outputs its two weights, the even input
//   first; an odd number of inputs is filled up with zeros. So one word holds two inputs of an
//   output and widens by a shift or a mask.
struct Panels {
  const void* data = nullptr;
  uint32_t outputs = 0, inputs = 0;
  bool bf16 = false;  // else f32
  // Panels that lie behind these in memory and are likely to be wanted next: fetched ahead.
  uint32_t following = 0;
};
// Weights in a panel, by the size of one.
inline constexpr size_t panel_elements(size_t inputs, size_t weight_bytes) {
  return (weight_bytes == 2 ? (inputs + 1) / 2 * 2 : inputs) * kPanel;
}

// y[r][j] = dot(x[r], w[j]).  x: rows of `x_stride` floats; y: rows of `y_stride` floats, outputs
// written
void multiply_panels(const Panels& w, const float* x, size_t x_stride, uint32_t rows, float* y,
                     size_t y_stride);

// y[r] = RMS(x[r]; w, eps) · scale (one more rounding when scale is not 1).  x, y: [rows, n] with
// strides; y may be x
struct NormRows {
  uint32_t rows = 0, n = 0;
  size_t x_stride = 0, y_stride = 0;
  float eps = 0, scale = 1;
};
void rms_norm_rows(const NormRows& shape, const float* x, const float* w, float* y);

// out[i] = silu(gate[i]) · up[i]
void silu_multiply(std::span<const float> gate, std::span<const float> up, float* out);
// x[i] = e^x[i]
void exp_in_place(std::span<float> x);
// rotate_pairs() of x, numerics.h.  out: [2 · pairs], may be x
void turn_pairs(const float* x, uint32_t pairs, const float* cos, const float* sin, float* out);
// y[i] = fma(w, x[i], y[i])
void add_scaled(float w, std::span<const float> x, float* y);

// bf16 or f32 KV values, widened.  out: [n]
void widen_bf16(const uint16_t* in, size_t n, float* out);

// The instruction set in use, for logs: "AVX3_ZEN4".
const char* kernel_target();
// The operations above in the form that the arithmetic digest probes.
ProbedOps local_ops();

}  // namespace model
