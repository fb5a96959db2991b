// Compiled once per instruction set (foreach_target); the exported functions at the end choose at
// run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels.cc"
// Targets whose multiply-add is not fused would run the std::fma path anyway: one such target is
// enough.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/kernels.h"
#include "model/matrix.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, kPanel>;
using V = hn::Vec<D>;

constexpr size_t kWidth =
    HWY_MIN(HWY_MAX_BYTES / sizeof(float), size_t{kPanel});  // floats of a vector
constexpr size_t kVectors = kPanel / kWidth;                 // vectors of a panel
constexpr size_t kLevels = 24;                               // of the segment tree: 2^24 segments

HWY_INLINE V fused(V a, V b, V c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float x[kWidth] = {}, y[kWidth] = {}, z[kWidth] = {};
  const D d;
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < kWidth; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
#endif
}

HWY_INLINE V load_weights(const float* w) { return hn::LoadU(D(), w); }
HWY_INLINE V load_weights(const uint16_t* w) {
  const hn::Rebind<uint16_t, D> half;
  const hn::RebindToUnsigned<D> whole;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(whole, hn::LoadU(half, w))));
}

// The product of kRows rows with kPanels panels, as one tree of segments.
template <size_t kRows, size_t kPanels, class W>
struct Block {
  static constexpr size_t kAcc = kRows * kPanels * kVectors;

  static HWY_INLINE void segment(const W* w, size_t panel_stride, const float* const* x,
                                 size_t begin, size_t end, V* HWY_RESTRICT out) {
    V acc[kAcc];
    for (size_t i = 0; i < kAcc; ++i) acc[i] = hn::Zero(D());
    for (size_t k = begin; k < end; ++k) {
      V weights[kPanels * kVectors];
      for (size_t p = 0; p < kPanels; ++p)
        for (size_t v = 0; v < kVectors; ++v)
          weights[p * kVectors + v] = load_weights(w + p * panel_stride + k * kPanel + v * kWidth);
      for (size_t r = 0; r < kRows; ++r) {
        const V value = hn::Set(D(), x[r][k]);
        for (size_t i = 0; i < kPanels * kVectors; ++i)
          acc[r * kPanels * kVectors + i] =
              fused(value, weights[i], acc[r * kPanels * kVectors + i]);
      }
    }
    for (size_t i = 0; i < kAcc; ++i) out[i] = acc[i];
  }

  // Segments merge like carries of a binary counter, which is the pairwise tree of NUMERICS.md;
  // what is left at the end merges from the youngest level up.
  static void run(const W* w, size_t panel_stride, const float* const* x, size_t inputs,
                  float* const* y, const uint32_t* outputs) {
    V sum[kAcc];
    if (inputs <= kDotSegment) {
      segment(w, panel_stride, x, 0, inputs, sum);
    } else {
      HWY_ALIGN float levels[kLevels][kAcc * kWidth];
      size_t count = 0;
      for (size_t begin = 0; begin < inputs; begin += kDotSegment, ++count) {
        segment(w, panel_stride, x, begin, std::min(begin + kDotSegment, inputs), sum);
        size_t level = 0;
        for (size_t carry = count; (carry & 1) != 0; carry >>= 1, ++level) add(levels[level], sum);
        store(sum, levels[level]);
      }
      bool first = true;
      for (size_t level = 0; (count >> level) != 0; ++level) {
        if (((count >> level) & 1) == 0) continue;
        if (first) {
          for (size_t i = 0; i < kAcc; ++i) sum[i] = hn::Load(D(), levels[level] + i * kWidth);
          first = false;
        } else {
          add(levels[level], sum);
        }
      }
    }
    write(sum, y, outputs);
  }

 private:
  static HWY_INLINE void add(const float* level, V* sum) {
    for (size_t i = 0; i < kAcc; ++i) sum[i] = hn::Add(hn::Load(D(), level + i * kWidth), sum[i]);
  }
  static HWY_INLINE void store(const V* sum, float* level) {
    for (size_t i = 0; i < kAcc; ++i) hn::Store(sum[i], D(), level + i * kWidth);
  }
  static HWY_INLINE void write(const V* sum, float* const* y, const uint32_t* outputs) {
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t p = 0; p < kPanels; ++p) {
        const V* from = sum + (r * kPanels + p) * kVectors;
        float* to = y[r] + p * kPanel;
        if (outputs[p] == kPanel) {
          for (size_t v = 0; v < kVectors; ++v) hn::StoreU(from[v], D(), to + v * kWidth);
        } else {
          HWY_ALIGN float whole[kPanel];
          for (size_t v = 0; v < kVectors; ++v) hn::Store(from[v], D(), whole + v * kWidth);
          for (uint32_t i = 0; i < outputs[p]; ++i) to[i] = whole[i];
        }
      }
    }
  }
};

constexpr uint32_t kMostRows = 6;  // of a block: its accumulators fit the registers

// kRows rows against panels [begin, end), kPanels at a time: enough independent chains to hide the
// latency of fma.
template <size_t kRows, class W>
void multiply_rows(const Panels& m, size_t begin, size_t end, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
  constexpr size_t kPanels =
      kRows == 1 ? 4 / HWY_MIN(kVectors, 2) : (kRows <= 3 || kVectors == 1 ? 2 : 1);
  const W* w = static_cast<const W*>(m.data);
  const size_t panel_stride = static_cast<size_t>(m.inputs) * kPanel;
  const float* rows[kRows];
  for (size_t r = 0; r < kRows; ++r) rows[r] = x + r * x_stride;
  size_t p = begin;
  const auto at = [&](size_t panel, size_t count, auto block) {
    float* out[kRows];
    uint32_t outputs[4];
    for (size_t r = 0; r < kRows; ++r) out[r] = y + r * y_stride + panel * kPanel;
    for (size_t i = 0; i < count; ++i)
      outputs[i] =
          static_cast<uint32_t>(std::min<size_t>(kPanel, m.outputs - (panel + i) * kPanel));
    decltype(block)::run(w + panel * panel_stride, panel_stride, rows, m.inputs, out, outputs);
  };
  for (; p + kPanels <= end; p += kPanels) at(p, kPanels, Block<kRows, kPanels, W>());
  for (; p < end; ++p) at(p, 1, Block<kRows, 1, W>());
}

// Two panels at a time against all rows, so that a weight comes from memory once however many rows
// there are. The rows are dealt evenly over blocks: a block of few rows is bound by its weights.
template <class W>
void multiply_all(const Panels& m, const float* x, size_t x_stride, uint32_t rows, float* y,
                  size_t y_stride) {
  constexpr decltype(&multiply_rows<1, W>) kBlocks[kMostRows] = {
      multiply_rows<1, W>, multiply_rows<2, W>, multiply_rows<3, W>,
      multiply_rows<4, W>, multiply_rows<5, W>, multiply_rows<6, W>};
  const uint32_t groups = (rows + kMostRows - 1) / kMostRows;
  const size_t panels = (m.outputs + kPanel - 1) / kPanel;
  const size_t step = groups == 1 ? panels : 2;
  for (size_t p = 0; p < panels && groups > 0; p += step) {
    const size_t end = std::min(p + step, panels);
    uint32_t r = 0;
    for (uint32_t g = 0; g < groups; ++g) {
      const uint32_t count = rows / groups + (g < rows % groups ? 1 : 0);
      kBlocks[count - 1](m, p, end, x + r * x_stride, x_stride, y + r * y_stride, y_stride);
      r += count;
    }
  }
}

void Multiply(const Panels& m, const float* x, size_t x_stride, uint32_t rows, float* y,
              size_t y_stride) {
  if (m.bf16) {
    multiply_all<uint16_t>(m, x, x_stride, rows, y, y_stride);
  } else {
    multiply_all<float>(m, x, x_stride, rows, y, y_stride);
  }
}

// --- element-wise

HWY_INLINE V exp_vector(V x) {
  const D d;
  const hn::RebindToSigned<D> di;
  const V n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  V r = fused(n, hn::Set(d, -0.693359375f), x);
  r = fused(n, hn::Set(d, 2.12194440e-4f), r);
  V p = hn::Set(d, 1.0f / 5040.0f);
  for (float c : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    p = fused(p, r, hn::Set(d, c));
  const auto whole = hn::ConvertTo(di, n);
  const auto left = hn::ShiftRight<1>(whole);
  const auto bias = hn::Set(di, 127);
  const V two_left = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(left, bias)));
  const V two_right = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(whole, left), bias)));
  V y = hn::Mul(hn::Mul(p, two_left), two_right);
  y = hn::IfThenElse(hn::Le(x, hn::Set(d, -87.33654f)), hn::Zero(d), y);
  y = hn::IfThenElse(hn::Ge(x, hn::Set(d, 88.72283f)),
                     hn::Set(d, std::numeric_limits<float>::infinity()), y);
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}

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

void WidenBf16(const uint16_t* in, size_t n, float* out) {
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) hn::StoreU(load_weights(in + i), D(), out + i);
  for (; i < n; ++i) out[i] = from_bf16(in[i]);
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

// --- attention

// o[h] = fma(p[h][s], latent[s], o[h] · alpha[h]) for ascending s, one panel of columns for kHeads
// heads.
template <size_t kHeads>
HWY_INLINE void weigh(const TileShape& shape, const float* p, const float* latents,
                      const float* alpha, Partial* partials, size_t column) {
  const D d;
  V acc[kHeads * kVectors];
  for (size_t h = 0; h < kHeads; ++h)
    for (size_t v = 0; v < kVectors; ++v)
      acc[h * kVectors + v] =
          hn::Mul(hn::LoadU(d, partials[h].o.data() + column + v * kWidth), hn::Set(d, alpha[h]));
  for (uint32_t s = 0; s < shape.n; ++s) {
    const float* row = latents + s * shape.stride + column;
    for (size_t h = 0; h < kHeads; ++h) {
      const V weight = hn::Set(d, p[h * shape.score_stride + s]);
      for (size_t v = 0; v < kVectors; ++v)
        acc[h * kVectors + v] =
            fused(weight, hn::LoadU(d, row + v * kWidth), acc[h * kVectors + v]);
    }
  }
  for (size_t h = 0; h < kHeads; ++h)
    for (size_t v = 0; v < kVectors; ++v)
      hn::StoreU(acc[h * kVectors + v], d, partials[h].o.data() + column + v * kWidth);
}

template <size_t kHeads>
void weigh_columns(const TileShape& shape, const float* p, const float* latents, const float* alpha,
                   Partial* partials) {
  for (size_t column = 0; column < shape.width; column += kPanel)
    weigh<kHeads>(shape, p, latents, alpha, partials, column);
}

void AbsorbTileHeads(const TileShape& shape, float* scores, const float* latents,
                     Partial* partials) {
  constexpr size_t kGroup = 4;
  for (uint32_t head = 0; head < shape.heads;) {
    const auto group = static_cast<uint32_t>(std::min<size_t>(kGroup, shape.heads - head));
    float alpha[kGroup];
    for (uint32_t h = 0; h < group; ++h) {
      float* row = scores + (head + h) * shape.score_stride;
      Partial& partial = partials[head + h];
      float m = partial.empty ? -std::numeric_limits<float>::infinity() : partial.m;
      for (uint32_t s = 0; s < shape.n; ++s) m = row[s] > m || std::isnan(row[s]) ? row[s] : m;
      alpha[h] = partial.empty ? 0.0f : fixed_exp(partial.m - m);
      const V most = hn::Set(D(), m);
      map2(row, row, shape.n, row,
           [most](V v, V) HWY_ATTR { return exp_vector(hn::Sub(v, most)); });
      partial.l = std::fma(partial.l, alpha[h], lanes_of<false>(row, shape.n));
      partial.m = m;
      partial.empty = false;
    }
    const float* p = scores + head * shape.score_stride;
    if (group == kGroup) {
      weigh_columns<kGroup>(shape, p, latents, alpha, partials + head);
    } else {
      for (uint32_t h = 0; h < group; ++h)
        weigh_columns<1>(shape, p + h * shape.score_stride, latents, alpha + h,
                         partials + head + h);
    }
    head += group;
  }
}

const char* Target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace model {

HWY_EXPORT(Multiply);
HWY_EXPORT(ExpInPlace);
HWY_EXPORT(SiluMultiply);
HWY_EXPORT(AddScaled);
HWY_EXPORT(WidenBf16);
HWY_EXPORT(RmsNormRows);
HWY_EXPORT(AbsorbTileHeads);
HWY_EXPORT(Target);

void multiply_panels(const Panels& w, const float* x, size_t x_stride, uint32_t rows, float* y,
                     size_t y_stride) {
  HWY_DYNAMIC_DISPATCH(Multiply)(w, x, x_stride, rows, y, y_stride);
}
void exp_in_place(std::span<float> x) { HWY_DYNAMIC_DISPATCH(ExpInPlace)(x); }
void silu_multiply(std::span<const float> gate, std::span<const float> up, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMultiply)(gate, up, out);
}
void add_scaled(float w, std::span<const float> x, float* y) {
  HWY_DYNAMIC_DISPATCH(AddScaled)(w, x, y);
}
void widen_bf16(const uint16_t* in, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenBf16)(in, n, out);
}
void rms_norm_rows(const NormRows& shape, const float* x, const float* w, float* y) {
  HWY_DYNAMIC_DISPATCH(RmsNormRows)(shape, x, w, y);
}
void absorb_tile_heads(const TileShape& shape, float* scores, const float* latents,
                       Partial* partials) {
  HWY_DYNAMIC_DISPATCH(AbsorbTileHeads)(shape, scores, latents, partials);
}
const char* kernel_target() { return HWY_DYNAMIC_DISPATCH(Target)(); }

AlignedBuffer::AlignedBuffer(size_t bytes) : bytes_(bytes) {
  constexpr size_t kHuge = 2u << 20;
  const size_t alignment = bytes >= kHuge ? kHuge : 64;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (rounded == 0) return;
  memory_ = std::aligned_alloc(alignment, rounded);
  CHECK(memory_ != nullptr, "no memory for {} bytes", bytes);
  if (alignment == kHuge) ::madvise(memory_, rounded, MADV_HUGEPAGE);
  std::memset(memory_, 0, rounded);
}
AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
AlignedBuffer::~AlignedBuffer() { std::free(memory_); }

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
  ops.absorb_tile = [](Partial& partial, std::span<float> scores, const float* latents,
                       size_t stride) {
    const auto width = static_cast<uint32_t>(partial.o.size());
    const size_t padded = round_up_panel(width);
    std::vector<float> rows(scores.size() * padded, 0.0f);
    for (size_t s = 0; s < scores.size(); ++s)
      std::copy_n(latents + s * stride, width, rows.data() + s * padded);
    partial.o.resize(padded, 0.0f);
    TileShape shape{.heads = 1,
                    .n = static_cast<uint32_t>(scores.size()),
                    .width = width,
                    .score_stride = scores.size(),
                    .stride = padded};
    absorb_tile_heads(shape, scores.data(), rows.data(), &partial);
    partial.o.resize(width);
  };
  return ops;
}

}  // namespace model
#endif  // HWY_ONCE
