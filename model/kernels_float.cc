// Compiled once per instruction set (foreach_target); the exported functions at the end choose at
// run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_float.cc"
#include "model/kernel_targets.h"
// after kernel_targets
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "model/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

constexpr size_t kLevels = 24;  // of the segment tree: 2^24 segments
constexpr size_t kChunk = 16;   // inputs between two looks at what to prefetch
constexpr size_t kLine = 64;

// Weight k of a panel for kWidth outputs. `w` is the panel (or its vector of outputs), see Panels.
template <bool kOdd>
HWY_INLINE V weights_at(const float* w, size_t k) {
  return hn::LoadU(D(), w + k * kPanel);
}
template <bool kOdd>
HWY_INLINE V weights_at(const uint16_t* w, size_t k) {
  const hn::RebindToUnsigned<D> whole;
  const auto pair =
      hn::LoadU(whole, reinterpret_cast<const uint32_t*>(w + (k & ~size_t{1}) * kPanel));
  return hn::BitCast(D(),
                     kOdd ? hn::And(pair, hn::Set(whole, 0xFFFF0000u)) : hn::ShiftLeft<16>(pair));
}
// Elements between the vectors of outputs of one panel: an output is one word in either format.
template <class W>
constexpr size_t kVectorStep = kWidth*(sizeof(float) / sizeof(W));

// Weights to be fetched into L2 while a block computes: `lines` of every panel for each kChunk
// inputs.
template <size_t kPanels>
struct Ahead {
  const char* at[kPanels];
  size_t lines = 0;

  HWY_INLINE void fetch() {
    if (lines == 0) return;
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) {
      for (size_t i = 0; i < lines; ++i) __builtin_prefetch(at[p] + i * kLine, 0, /*L2*/ 2);
      at[p] += lines * kLine;
    }
  }
};

// The product of kRows rows with kPanels panels, as one tree of segments.
template <size_t kRows, size_t kPanels, class W>
struct Block {
  static constexpr size_t kAcc = kRows * kPanels * kVectors;

  template <bool kOdd>
  static HWY_INLINE void step(const W* w, size_t stride, const float* const* x, size_t k, V* acc) {
    V weights[kPanels * kVectors];
#pragma GCC unroll 8
    for (size_t i = 0; i < kPanels * kVectors; ++i)
      weights[i] = weights_at<kOdd>(w + i / kVectors * stride + i % kVectors * kVectorStep<W>, k);
#pragma GCC unroll 16
    for (size_t r = 0; r < kRows; ++r) {
      const V value = hn::Set(D(), x[r][k]);
#pragma GCC unroll 8
      for (size_t i = 0; i < kPanels * kVectors; ++i) {
        V& sum = acc[r * kPanels * kVectors + i];
        sum = fused(value, weights[i], sum);
      }
    }
  }

  static HWY_INLINE void segment(const W* w, size_t stride, const float* const* x, size_t begin,
                                 size_t end, Ahead<kPanels>& ahead, V* HWY_RESTRICT out) {
    V acc[kAcc];
#pragma GCC unroll 32
    for (size_t i = 0; i < kAcc; ++i) acc[i] = hn::Zero(D());
    size_t k = begin;
    while (k + kChunk <= end) {
      ahead.fetch();
      for (const size_t chunk = k + kChunk; k < chunk; k += 2) {
        step<false>(w, stride, x, k, acc);
        step<true>(w, stride, x, k + 1, acc);
      }
    }
    for (; k + 2 <= end; k += 2) {
      step<false>(w, stride, x, k, acc);
      step<true>(w, stride, x, k + 1, acc);
    }
    if (k < end) step<false>(w, stride, x, k, acc);
#pragma GCC unroll 32
    for (size_t i = 0; i < kAcc; ++i) out[i] = acc[i];
  }

  // Segments merge like carries of a binary counter, which is the pairwise tree of NUMERICS.md;
  // what is left at the end merges from the youngest level up.
  static void run(const W* w, size_t stride, const float* const* x, size_t inputs, float* const* y,
                  const uint32_t* outputs, Ahead<kPanels> ahead) {
    V sum[kAcc];
    if (inputs <= kDotSegment) {
      segment(w, stride, x, 0, inputs, ahead, sum);
    } else {
      HWY_ALIGN float levels[kLevels][kAcc * kWidth];
      size_t count = 0;
      for (size_t begin = 0; begin < inputs; begin += kDotSegment, ++count) {
        segment(w, stride, x, begin, std::min(begin + kDotSegment, inputs), ahead, sum);
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

// Rows of a block: its accumulators, the weights and one value of x fit the registers.
template <class W>
constexpr uint32_t kMostRows = kVectors == 1    ? 8
                               : sizeof(W) == 4 ? 6
                                                : 4;
// Up to so many rows are bound by memory. They leave it to the hardware to fetch, which reads
// several streams faster than any prefetch instruction lets it.
template <class W>
constexpr uint32_t kStreamedRows = kVectors == 1 && sizeof(W) == 4 ? 6 : 3;

// Panels that a block of rows meets: enough independent chains to hide the latency of fma, and
// streams to keep memory busy.
template <class W>
constexpr size_t panels_at_once(size_t rows) {
  if (kVectors == 1) return rows <= 3 ? 4 : 2;
  if (rows == 1) return 4;
  return rows <= (sizeof(W) == 4 ? 3 : 2) ? 2 : 1;
}

// Panels [begin, end) for a group of rows. While it computes it fetches, from `fetch_from` bytes
// into each of as many panels after them, `fetch_lines` for each kChunk inputs; 0: nothing.
struct Range {
  size_t begin, end;
  size_t fetch_from = 0, fetch_lines = 0;
};

template <size_t kCount, class W>
Ahead<kCount> ahead_of(const Panels& m, const Range& range, size_t panel) {
  Ahead<kCount> ahead;
  const size_t bytes = panel_elements(m.inputs, sizeof(W)) * sizeof(W);
  const size_t panels = (m.outputs + kPanel - 1) / kPanel + m.following;
  const size_t next = panel + (range.end - range.begin);
  if (next + kCount <= panels) ahead.lines = range.fetch_lines;
  for (size_t i = 0; i < kCount; ++i)
    ahead.at[i] = static_cast<const char*>(m.data) + (next + i) * bytes + range.fetch_from;
  return ahead;
}

// kRows rows against the panels of `range`.
template <size_t kRows, class W>
void multiply_rows(const Panels& m, const Range& range, const float* x, size_t x_stride, float* y,
                   size_t y_stride) {
  constexpr size_t kPanels = panels_at_once<W>(kRows);
  const size_t stride = panel_elements(m.inputs, sizeof(W));
  const float* rows[kRows];
  for (size_t r = 0; r < kRows; ++r) rows[r] = x + r * x_stride;
  const auto at = [&]<size_t kCount>(size_t panel, std::integral_constant<size_t, kCount>) {
    float* out[kRows];
    uint32_t outputs[kCount];
    for (size_t r = 0; r < kRows; ++r) out[r] = y + r * y_stride + panel * kPanel;
    for (size_t i = 0; i < kCount; ++i)
      outputs[i] =
          static_cast<uint32_t>(std::min<size_t>(kPanel, m.outputs - (panel + i) * kPanel));
    Block<kRows, kCount, W>::run(static_cast<const W*>(m.data) + panel * stride, stride, rows,
                                 m.inputs, out, outputs, ahead_of<kCount, W>(m, range, panel));
  };
  size_t p = range.begin;
  for (; p + kPanels <= range.end; p += kPanels) at(p, std::integral_constant<size_t, kPanels>());
  for (; p < range.end; ++p) at(p, std::integral_constant<size_t, 1>());
}

// Few rows: all panels in one go. More: two panels at a time against all rows, so that a weight
// comes from memory once however many rows there are. The rows are dealt evenly over blocks: a
// block of few rows is bound by its weights.
template <class W>
void multiply_all(const Panels& m, const float* x, size_t x_stride, uint32_t rows, float* y,
                  size_t y_stride) {
  constexpr uint32_t kMost = kMostRows<W>;
  constexpr decltype(&multiply_rows<1, W>) kBlocks[] = {multiply_rows<1, W>,
                                                        multiply_rows<2, W>,
                                                        multiply_rows<3, W>,
                                                        multiply_rows<4, W>,
                                                        multiply_rows<std::min(5u, kMost), W>,
                                                        multiply_rows<std::min(6u, kMost), W>,
                                                        multiply_rows<std::min(7u, kMost), W>,
                                                        multiply_rows<std::min(8u, kMost), W>};
  if (rows == 0) return;
  const uint32_t groups = (rows + kMost - 1) / kMost;
  const size_t panels = (m.outputs + kPanel - 1) / kPanel;
  const bool streamed = rows <= kStreamedRows<W>;
  const size_t at_once = streamed ? panels : 2;
  // A group fetches its share of the next two panels.
  const size_t share = panel_elements(m.inputs, sizeof(W)) * sizeof(W) / groups;
  const size_t lines = streamed ? 0 : (kChunk * kPanel * sizeof(W) / kLine + groups - 1) / groups;
  for (size_t p = 0; p < panels; p += at_once) {
    Range range{p, std::min(p + at_once, panels), 0, lines};
    uint32_t r = 0;
    for (uint32_t g = 0; g < groups; ++g, range.fetch_from += share) {
      const uint32_t count = rows / groups + (g < rows % groups ? 1 : 0);
      kBlocks[count - 1](m, range, x + r * x_stride, x_stride, y + r * y_stride, y_stride);
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

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace model {

HWY_EXPORT(Multiply);

void multiply_panels(const Panels& w, const float* x, size_t x_stride, uint32_t rows, float* y,
                     size_t y_stride) {
  HWY_DYNAMIC_DISPATCH(Multiply)(w, x, x_stride, rows, y, y_stride);
}

}  // namespace model
#endif  // HWY_ONCE
