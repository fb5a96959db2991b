// Compiled once per instruction set (foreach_target); the exported functions at the end choose at
// run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_rows.cc"
#include "model/kernel_targets.h"
// after kernel_targets
#include <hwy/foreach_target.h>

// after foreach_target
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "model/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

void ExpInPlace(std::span<float> x) {
  map2(x.data(), x.data(), x.size(), x.data(), [](V v, V) HWY_ATTR { return exp_vector(v); });
}

void SiluMultiply(std::span<const float> gate, std::span<const float> up, float* out) {
  map2(gate.data(), up.data(), gate.size(), out, [](V g, V u) HWY_ATTR {
    const V one = hn::Set(D(), 1.0f);
    return hn::Mul(hn::Div(g, hn::Add(one, exp_vector(hn::Neg(g)))), u);
  });
}

void AddScaled(float w, std::span<const float> x, float* y) {
  const V weight = hn::Set(D(), w);
  map2(x.data(), y, x.size(), y, [weight](V a, V b) HWY_ATTR { return fused(weight, a, b); });
}

void TurnPairs(const float* x, uint32_t pairs, const float* cos, const float* sin, float* out) {
  const D d;
  uint32_t i = 0;
  for (; i + kWidth <= pairs; i += kWidth) {
    V a, b;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    const V c = hn::LoadU(d, cos + i), s = hn::LoadU(d, sin + i);
    hn::StoreInterleaved2(fused(a, c, hn::Neg(hn::Mul(b, s))), fused(b, c, hn::Mul(a, s)), d,
                          out + 2 * i);
  }
  std::copy(x + 2 * i, x + 2 * pairs, out + 2 * i);
  rotate_pairs(out + 2 * i, pairs - i, cos + i, sin + i);
}

void WidenBf16(const uint16_t* in, size_t n, float* out) {
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) hn::StoreU(load_weights(in + i), D(), out + i);
  for (; i < n; ++i) out[i] = from_bf16(in[i]);
}

void RmsNormRows(const NormRows& shape, const float* x, const float* w, float* y) {
  constexpr size_t kMost = 128;  // segments: rows of up to 32 Ki values
  float sums[kMost] = {};
  for (uint32_t row = 0; row < shape.rows; ++row, x += shape.x_stride, y += shape.y_stride) {
    size_t segments = 0;
    for (size_t begin = 0; begin < shape.n; begin += kDotSegment)
      sums[segments++] = lanes_of<true>(x + begin, std::min<size_t>(kDotSegment, shape.n - begin));
    const float mean = merge_sums({sums, segments}) / static_cast<float>(shape.n);
    const V r = hn::Set(D(), 1.0f / std::sqrt(mean + shape.eps));
    const V scale = hn::Set(D(), shape.scale);
    if (shape.scale == 1.0f) {
      map2(x, w, shape.n, y, [r](V a, V b) HWY_ATTR { return hn::Mul(hn::Mul(a, r), b); });
    } else {
      map2(x, w, shape.n, y,
           [r, scale](V a, V b) HWY_ATTR { return hn::Mul(hn::Mul(hn::Mul(a, r), b), scale); });
    }
  }
}

const char* Target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace model {

HWY_EXPORT(ExpInPlace);
HWY_EXPORT(SiluMultiply);
HWY_EXPORT(AddScaled);
HWY_EXPORT(TurnPairs);
HWY_EXPORT(WidenBf16);
HWY_EXPORT(RmsNormRows);
HWY_EXPORT(Target);

void exp_in_place(std::span<float> x) { HWY_DYNAMIC_DISPATCH(ExpInPlace)(x); }
void silu_multiply(std::span<const float> gate, std::span<const float> up, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMultiply)(gate, up, out);
}
void add_scaled(float w, std::span<const float> x, float* y) {
  HWY_DYNAMIC_DISPATCH(AddScaled)(w, x, y);
}
void turn_pairs(const float* x, uint32_t pairs, const float* cos, const float* sin, float* out) {
  HWY_DYNAMIC_DISPATCH(TurnPairs)(x, pairs, cos, sin, out);
}
void widen_bf16(const uint16_t* in, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenBf16)(in, n, out);
}
void rms_norm_rows(const NormRows& shape, const float* x, const float* w, float* y) {
  HWY_DYNAMIC_DISPATCH(RmsNormRows)(shape, x, w, y);
}
const char* kernel_target() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace model
#endif  // HWY_ONCE
