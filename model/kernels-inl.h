// What the kernels of every instruction set share: vectors of a panel, fused multiply-add, exp,
// sums of lanes. Included once per target, after <hwy/foreach_target.h>.
#if defined(SERVAL_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SERVAL_KERNELS_INL_H_
#undef SERVAL_KERNELS_INL_H_
#else
#define SERVAL_KERNELS_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <limits>

#include "model/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, kPanel>;
using V = hn::Vec<D>;

constexpr size_t kWidth = hn::MaxLanes(D());  // floats of a vector
constexpr size_t kVectors = kPanel / kWidth;  // vectors of a panel

// a · b + c in one rounding, in vectors of any tag of up to 16 floats.
template <class Tag>
HWY_INLINE hn::Vec<Tag> fused_of(Tag d, hn::Vec<Tag> a, hn::Vec<Tag> b, hn::Vec<Tag> c) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float x[kPanel] = {}, y[kPanel] = {}, z[kPanel] = {};
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < hn::MaxLanes(d); ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
#endif
}
HWY_INLINE V fused(V a, V b, V c) { return fused_of(D(), a, b, c); }

HWY_INLINE V load_weights(const float* w) { return hn::LoadU(D(), w); }
HWY_INLINE V load_weights(const uint16_t* w) {
  const hn::Rebind<uint16_t, D> half;
  const hn::RebindToUnsigned<D> whole;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(whole, hn::LoadU(half, w))));
}

template <class Tag>
HWY_INLINE hn::Vec<Tag> exp_of(Tag d, hn::Vec<Tag> x) {
  using Vec = hn::Vec<Tag>;
  const hn::RebindToSigned<Tag> di;
  const Vec n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  Vec r = fused_of(d, n, hn::Set(d, -0.693359375f), x);
  r = fused_of(d, n, hn::Set(d, 2.12194440e-4f), r);
  Vec p = hn::Set(d, 1.0f / 5040.0f);
  for (float c : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    p = fused_of(d, p, r, hn::Set(d, c));
  const auto whole = hn::ConvertTo(di, n);
  const auto left = hn::ShiftRight<1>(whole);
  const auto bias = hn::Set(di, 127);
  const Vec two_left = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(left, bias)));
  const Vec two_right = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(whole, left), bias)));
  Vec y = hn::Mul(hn::Mul(p, two_left), two_right);
  y = hn::IfThenElse(hn::Le(x, hn::Set(d, -87.33654f)), hn::Zero(d), y);
  y = hn::IfThenElse(hn::Ge(x, hn::Set(d, 88.72283f)),
                     hn::Set(d, std::numeric_limits<float>::infinity()), y);
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}
HWY_INLINE V exp_vector(V x) { return exp_of(D(), x); }

// f over vectors of in (and in2), the last one padded with zeros.
template <class F>
HWY_INLINE void map2(const float* in, const float* in2, size_t n, float* out, F f) {
  const D d;
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth)
    hn::StoreU(f(hn::LoadU(d, in + i), hn::LoadU(d, in2 + i)), d, out + i);
  if (i == n) return;
  HWY_ALIGN float a[kWidth] = {}, b[kWidth] = {};
  for (size_t t = i; t < n; ++t) a[t - i] = in[t], b[t - i] = in2[t];
  hn::Store(f(hn::Load(d, a), hn::Load(d, b)), d, a);
  for (size_t t = i; t < n; ++t) out[t] = a[t - i];
}

// lane_sum (or of squares) of one segment of at most 256 values.
template <bool kSquares>
HWY_INLINE float lanes_of(const float* v, size_t n) {
  const D d;
  V lane[kVectors];
  for (size_t i = 0; i < kVectors; ++i) lane[i] = hn::Zero(d);
  const auto add = [](V x, V sum)
                       HWY_ATTR { return kSquares ? fused(x, x, sum) : hn::Add(sum, x); };
  size_t i = 0;
  for (; i + kPanel <= n; i += kPanel)
    for (size_t l = 0; l < kVectors; ++l) lane[l] = add(hn::LoadU(d, v + i + l * kWidth), lane[l]);
  HWY_ALIGN float sums[kLanes] = {};
  for (size_t l = 0; l < kVectors; ++l) hn::Store(lane[l], d, sums + l * kWidth);
  for (; i < n; ++i) {
    float& sum = sums[i % kLanes];
    sum = kSquares ? std::fma(v[i], v[i], sum) : sum + v[i];
  }
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t l = 0; l < half; ++l) sums[l] += sums[l + half];
  return sums[0];
}

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // per target
