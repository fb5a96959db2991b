// Compiled once per instruction set (foreach_target); the exported functions at the end choose at
// run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_check.cc"
#include "model/kernel_targets.h"
// after kernel_targets
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

#include <algorithm>

#include "model/kernels-inl.h"
#include "model/kernels_check.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

using D64 = hn::CappedTag<double, kPanel>;
using Half = hn::Rebind<float, D64>;  // as many floats
constexpr size_t kWide = hn::MaxLanes(hn::CappedTag<double, kPanel>());

// to[l] += from[l], to f64.  from, to: [kPanel]
HWY_INLINE void add_lanes(const float* from, double* to) {
  for (size_t l = 0; l < kPanel; l += kWide)
    hn::Store(hn::Add(hn::Load(D64(), to + l), hn::PromoteTo(D64(), hn::Load(Half(), from + l))),
              D64(), to + l);
}

HWY_INLINE double fold(const double* lanes) {
  auto sum = hn::Load(D64(), lanes);
  for (size_t l = kWide; l < kPanel; l += kWide) sum = hn::Add(sum, hn::Load(D64(), lanes + l));
  return hn::GetLane(hn::SumOfLanes(D64(), sum));
}

// Σ w and Σ |w| over the panels for inputs [begin, begin + count), count ≤ kChunk.
constexpr size_t kChunk = 64;
void sum_chunk(const Panels& m, size_t begin, size_t count, double* sums, double* magnitudes) {
  HWY_ALIGN double sum[kChunk * kPanel] = {}, magnitude[kChunk * kPanel] = {};
  HWY_ALIGN float wide[kChunk * kPanel];
  const size_t panels = (m.outputs + kPanel - 1) / kPanel;
  for (size_t p = 0; p < panels; ++p) {
    const float* from = wide;
    if (m.bf16) {
      const auto* words = static_cast<const uint32_t*>(m.data) +
                          (p * panel_elements(m.inputs, 2) + begin * kPanel) / 2;
      const hn::RebindToUnsigned<D> du;
      for (size_t k = 0; k < count; k += 2, words += kPanel) {
        for (size_t v = 0; v < kPanel; v += kWidth) {
          const auto pair = hn::LoadU(du, words + v);
          hn::Store(hn::BitCast(D(), hn::ShiftLeft<16>(pair)), D(), wide + k * kPanel + v);
          hn::Store(hn::BitCast(D(), hn::And(pair, hn::Set(du, 0xFFFF0000u))), D(),
                    wide + (k + 1) * kPanel + v);
        }
      }
    } else {
      from = static_cast<const float*>(m.data) + (p * m.inputs + begin) * kPanel;
    }
    for (size_t i = 0; i < count * kPanel; i += kWide) {
      const auto w = hn::PromoteTo(D64(), hn::LoadU(Half(), from + i));
      hn::Store(hn::Add(hn::Load(D64(), sum + i), w), D64(), sum + i);
      hn::Store(hn::Add(hn::Load(D64(), magnitude + i), hn::Abs(w)), D64(), magnitude + i);
    }
  }
  for (size_t k = 0; k < count; ++k) {
    sums[k] = fold(sum + k * kPanel);
    magnitudes[k] = fold(magnitude + k * kPanel);
  }
}

void SumWeights(const Panels& m, double* sums, double* magnitudes) {
  for (size_t k = 0; k < m.inputs; k += kChunk)
    sum_chunk(m, k, std::min<size_t>(kChunk, m.inputs - k), sums + k, magnitudes + k);
}

// kRows rows at a time: the checksums are read once for all of them.
template <size_t kRows>
void expect(const float* sums, const float* bounds, size_t inputs, const float* x, size_t x_stride,
            RowCheck* checks, size_t step) {
  const D d;
  HWY_ALIGN double expected[kRows][kPanel] = {}, tolerance[kRows][kPanel] = {};
  for (size_t begin = 0; begin < inputs; begin += kCheckChain * kPanel) {
    V sum[kRows * kVectors], bound[kRows * kVectors];
    for (size_t i = 0; i < kRows * kVectors; ++i) sum[i] = bound[i] = hn::Zero(d);
    const auto add = [&](size_t r, size_t v, V value, size_t k) HWY_ATTR {
      const size_t i = r * kVectors + v;
      sum[i] = fused(value, hn::LoadU(d, sums + k), sum[i]);
      bound[i] = fused(hn::Abs(value), hn::LoadU(d, bounds + k), bound[i]);
    };
    const size_t end = std::min(begin + kCheckChain * kPanel, inputs);
    size_t k = begin;
    for (; k + kPanel <= end; k += kPanel)
      for (size_t r = 0; r < kRows; ++r)
        for (size_t v = 0; v < kVectors; ++v)
          add(r, v, hn::LoadU(d, x + r * x_stride + k + v * kWidth), k + v * kWidth);
    if (k < end) {
      for (size_t r = 0; r < kRows; ++r) {
        HWY_ALIGN float last[kPanel] = {};
        std::copy(x + r * x_stride + k, x + r * x_stride + end, last);
        for (size_t v = 0; v < kVectors; ++v)
          add(r, v, hn::Load(d, last + v * kWidth), k + v * kWidth);
      }
    }
    HWY_ALIGN float lanes[kPanel] = {};
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t v = 0; v < kVectors; ++v) hn::Store(sum[r * kVectors + v], d, lanes + v * kWidth);
      add_lanes(lanes, expected[r]);
      for (size_t v = 0; v < kVectors; ++v)
        hn::Store(bound[r * kVectors + v], d, lanes + v * kWidth);
      add_lanes(lanes, tolerance[r]);
    }
  }
  for (size_t r = 0; r < kRows; ++r)
    checks[r * step] = {fold(expected[r]), fold(tolerance[r]) + kUnderflow};
}

void ExpectRows(const float* sums, const float* bounds, size_t inputs, const float* x,
                size_t x_stride, uint32_t rows, RowCheck* checks, size_t step) {
  constexpr size_t kMost = kVectors == 1 ? 4 : 2;
  uint32_t r = 0;
  for (; r + kMost <= rows; r += kMost)
    expect<kMost>(sums, bounds, inputs, x + r * x_stride, x_stride, checks + r * step, step);
  for (; r < rows; ++r)
    expect<1>(sums, bounds, inputs, x + r * x_stride, x_stride, checks + r * step, step);
}

template <size_t kRows>
void sum_some(const float* y, size_t y_stride, size_t outputs, double* sums, size_t step) {
  const D d;
  V sum[kRows * kVectors];
  for (size_t i = 0; i < kRows * kVectors; ++i) sum[i] = hn::Zero(d);
  size_t j = 0;
  for (; j + kPanel <= outputs; j += kPanel)
    for (size_t r = 0; r < kRows; ++r)
      for (size_t v = 0; v < kVectors; ++v)
        sum[r * kVectors + v] =
            hn::Add(sum[r * kVectors + v], hn::LoadU(d, y + r * y_stride + j + v * kWidth));
  for (size_t r = 0; r < kRows; ++r) {
    HWY_ALIGN float lanes[kPanel] = {};
    if (j < outputs) {
      std::copy(y + r * y_stride + j, y + r * y_stride + outputs, lanes);
      for (size_t v = 0; v < kVectors; ++v)
        sum[r * kVectors + v] = hn::Add(sum[r * kVectors + v], hn::Load(d, lanes + v * kWidth));
    }
    HWY_ALIGN double wide[kPanel] = {};
    for (size_t v = 0; v < kVectors; ++v) hn::Store(sum[r * kVectors + v], d, lanes + v * kWidth);
    add_lanes(lanes, wide);
    sums[r * step] = fold(wide);
  }
}

void SumRows(const float* y, size_t y_stride, uint32_t rows, uint32_t outputs, double* sums,
             size_t step) {
  uint32_t r = 0;
  for (; r + 4 <= rows; r += 4)
    sum_some<4>(y + r * y_stride, y_stride, outputs, sums + r * step, step);
  for (; r < rows; ++r) sum_some<1>(y + r * y_stride, y_stride, outputs, sums + r * step, step);
}

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace model {

HWY_EXPORT(SumWeights);
HWY_EXPORT(ExpectRows);
HWY_EXPORT(SumRows);

uint32_t roundings(uint32_t k, uint32_t inputs, uint32_t panels) {
  constexpr auto kSegment = static_cast<uint32_t>(kDotSegment);
  const uint32_t segment = k / kSegment * kSegment;
  const uint32_t length = std::min(kSegment, inputs - segment);
  const uint32_t segments = (inputs + kSegment - 1) / kSegment;
  const uint32_t chain = length - (k - segment);
  const auto merges = static_cast<uint32_t>(std::bit_width(segments - 1));
  // and one for the weights' sum, rounded to f32, one for all that is done in f64
  return chain + merges + panels + kCheckChain + 2;
}

void sum_weights(const Panels& w, float* sums, float* bounds) {
  std::vector<double> exact(w.inputs), magnitudes(w.inputs);
  HWY_DYNAMIC_DISPATCH(SumWeights)(w, exact.data(), magnitudes.data());
  const uint32_t panels = (w.outputs + kPanel - 1) / kPanel;
  std::fill_n(sums, check_stride(w.inputs), 0.0f);
  std::fill_n(bounds, check_stride(w.inputs), 0.0f);
  // (1 + u)^roundings ≤ 1 + roundings · u · kSlack for fewer than 1000 roundings, the roundings of
  // the tolerance itself included.
  constexpr double kUnit = 0x1p-24, kSlack = 1 + 0x1p-12;
  for (uint32_t k = 0; k < w.inputs; ++k) {
    sums[k] = static_cast<float>(exact[k]);
    const double bound = kUnit * kSlack * roundings(k, w.inputs, panels) * magnitudes[k];
    bounds[k] = std::nextafter(static_cast<float>(bound), std::numeric_limits<float>::infinity());
  }
}

void expect_rows(const float* sums, const float* bounds, uint32_t inputs, const float* x,
                 size_t x_stride, uint32_t rows, RowCheck* checks, size_t check_step) {
  HWY_DYNAMIC_DISPATCH(ExpectRows)
  (sums, bounds, inputs, x, x_stride, rows, checks, check_step);
}

void sum_rows(const float* y, size_t y_stride, uint32_t rows, uint32_t outputs, double* sums,
              size_t sum_step) {
  HWY_DYNAMIC_DISPATCH(SumRows)(y, y_stride, rows, outputs, sums, sum_step);
}

}  // namespace model
#endif  // HWY_ONCE
