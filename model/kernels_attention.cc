// Compiled once per instruction set (foreach_target); the exported functions at the end choose at
// run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_attention.cc"
#include "model/kernel_targets.h"
// after the targets
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/kernels-inl.h"
#include "model/kernels_attention.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

// Vector registers: what a block of accumulators must fit in.
constexpr bool kManyRegisters = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM;

// kLanes rows as vectors.
template <size_t kLanesOf>
struct Group {
  using D = hn::CappedTag<float, kLanesOf>;
  using V = hn::Vec<D>;
  static constexpr size_t kWidth = hn::MaxLanes(hn::CappedTag<float, kLanesOf>());
  static constexpr size_t kVectors = kLanesOf / kWidth;
  // Positions scored together: enough chains to hide the latency of fma.
  static constexpr size_t kPositions = kVectors == 1   ? (kManyRegisters ? 16 : 12)
                                       : kVectors == 2 ? 6
                                                       : (kManyRegisters ? 4 : 2);
};

template <class D, class V>
HWY_INLINE V fused_of(D d, V a, V b, V c) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float x[kPanel] = {}, y[kPanel] = {}, z[kPanel] = {};
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < hn::Lanes(d); ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
#endif
}

template <class K>
HWY_INLINE void widen(const K* from, size_t n, float* to) {
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) hn::Store(load_weights(from + i), D(), to + i);
  for (; i < n; ++i) {
    if constexpr (sizeof(K) == sizeof(float)) {
      to[i] = from[i];
    } else {
      to[i] = from_bf16(from[i]);
    }
  }
}

template <class K>
void widen_all(const CachedRows& rows, float* tile) {
  for (uint32_t s = 0; s < rows.n; ++s) {
    const auto* row = reinterpret_cast<const K*>(rows.rows[s]);
    float* to = tile + s * kTileStride;
    for (size_t begin = 0; begin < rows.width; begin += kDotSegment) {
      widen(row + begin, std::min<size_t>(kDotSegment, rows.width - begin), to);
      to += kTileRows * kTileStride;
    }
  }
}
void WidenTile(const CachedRows& rows, float* tile) {
  rows.bf16 ? widen_all<uint16_t>(rows, tile) : widen_all<float>(rows, tile);
}

// Where the kernels below take cached values from: a widened tile, or the rows themselves.
class Widened {
 public:
  explicit Widened(const Tile& tile) : tile_(tile.widened) {}
  // Values of one segment from row s on: rows kTileStride apart.
  template <size_t kRows>
  void rows(size_t s, size_t segment, const float** out) const {
    for (size_t r = 0; r < kRows; ++r) out[r] = tile_ + (segment * kTileRows + s + r) * kTileStride;
  }
  using Value = float;
  // A vector of row s. column: of the segment
  V at(size_t s, size_t segment, size_t column) const {
    return hn::Load(D(), tile_ + (segment * kTileRows + s) * kTileStride + column);
  }

 private:
  const float* tile_;
};

template <class K>
class AsCached {
 public:
  explicit AsCached(const Tile& tile) : rows_(tile.rows) {}
  template <size_t kRows>
  void rows(size_t s, size_t segment, const K** out) const {
    for (size_t r = 0; r < kRows; ++r)  // past the end: the last row again
      out[r] = reinterpret_cast<const K*>(rows_.rows[std::min<size_t>(s + r, rows_.n - 1)]) +
               segment * kDotSegment;
  }
  using Value = K;
  V at(size_t s, size_t segment, size_t column) const {
    return load_weights(reinterpret_cast<const K*>(rows_.rows[s]) + segment * kDotSegment + column);
  }

 private:
  const CachedRows& rows_;
};

// --- scores

// One segment of kPositions rows against the group: out[position][lane]. Queries of two values at a
// time: of a pair of bf16 values broadcast together, one shift and one mask make the two floats.
template <class G>
HWY_INLINE void score_segment(const uint16_t* const* rows, const float* queries, size_t n,
                              float* out) {
  const typename G::D d;
  const hn::RebindToUnsigned<typename G::D> du;
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  typename G::V acc[G::kPositions * G::kVectors];
  for (auto& a : acc) a = hn::Zero(d);
  const auto high = hn::Set(du, 0xFFFF0000u);
  size_t k = 0;
  for (; k + 2 <= n; k += 2) {
    typename G::V first[G::kVectors], second[G::kVectors];
    for (size_t v = 0; v < G::kVectors; ++v) {
      first[v] = hn::Load(d, queries + k * kLanesOf + v * G::kWidth);
      second[v] = hn::Load(d, queries + (k + 1) * kLanesOf + v * G::kWidth);
    }
    for (size_t p = 0; p < G::kPositions; ++p) {
      uint32_t bits;
      std::memcpy(&bits, rows[p] + k, sizeof bits);
      const auto pair = hn::Set(du, bits);
      const auto low_value = hn::BitCast(d, hn::ShiftLeft<16>(pair));
      const auto high_value = hn::BitCast(d, hn::And(pair, high));
      for (size_t v = 0; v < G::kVectors; ++v) {
        const size_t i = p * G::kVectors + v;
        acc[i] = fused_of(d, second[v], high_value, fused_of(d, first[v], low_value, acc[i]));
      }
    }
  }
  for (; k < n; ++k)
    for (size_t p = 0; p < G::kPositions; ++p)
      for (size_t v = 0; v < G::kVectors; ++v)
        acc[p * G::kVectors + v] =
            fused_of(d, hn::Load(d, queries + k * kLanesOf + v * G::kWidth),
                     hn::Set(d, from_bf16(rows[p][k])), acc[p * G::kVectors + v]);
  for (size_t i = 0; i < G::kPositions * G::kVectors; ++i)
    hn::Store(acc[i], d, out + i * G::kWidth);
}

template <class G>
HWY_INLINE void score_segment(const float* const* rows, const float* queries, size_t n,
                              float* out) {
  const typename G::D d;
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  typename G::V acc[G::kPositions * G::kVectors];
  for (auto& a : acc) a = hn::Zero(d);
  for (size_t k = 0; k < n; ++k) {
    typename G::V query[G::kVectors];
    for (size_t v = 0; v < G::kVectors; ++v)
      query[v] = hn::Load(d, queries + k * kLanesOf + v * G::kWidth);
    for (size_t p = 0; p < G::kPositions; ++p) {
      const auto value = hn::Set(d, rows[p][k]);
      for (size_t v = 0; v < G::kVectors; ++v)
        acc[p * G::kVectors + v] = fused_of(d, query[v], value, acc[p * G::kVectors + v]);
    }
  }
  for (size_t i = 0; i < G::kPositions * G::kVectors; ++i)
    hn::Store(acc[i], d, out + i * G::kWidth);
}

HWY_INLINE void fetch_rows(const CachedRows& next, size_t begin, size_t count) {
  constexpr uintptr_t kLine = 64;
  const size_t bytes = next.width * (next.bf16 ? sizeof(uint16_t) : sizeof(float));
  for (size_t s = begin; s < std::min<size_t>(begin + count, next.n); ++s) {
    const auto row = reinterpret_cast<uintptr_t>(next.rows[s]);
    for (uintptr_t at = row / kLine * kLine; at < row + bytes; at += kLine)
      hwy::Prefetch(reinterpret_cast<const std::byte*>(at));
  }
}

template <class G, class Source>
void score_group(const Tile& tile, uint32_t n, const float* queries, const CachedRows& next,
                 float* scores) {
  const Source source(tile);
  const uint32_t width = tile.rows.width;
  const typename G::D d;
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  constexpr size_t kBlock = G::kPositions * kLanesOf;
  const size_t segments = (width + kDotSegment - 1) / kDotSegment;
  HWY_ALIGN float sums[kMostSegments][kBlock];
  for (size_t s = 0; s < n; s += G::kPositions) {
    fetch_rows(next, s, G::kPositions);
    float* out = scores + s * kLanesOf;
    for (size_t i = 0; i < segments; ++i) {
      const size_t begin = i * kDotSegment;
      const size_t values = std::min<size_t>(kDotSegment, width - begin);
      const typename Source::Value* rows[G::kPositions];
      source.template rows<G::kPositions>(s, i, rows);
      score_segment<G>(rows, queries + begin * kLanesOf, values, segments == 1 ? out : sums[i]);
    }
    for (size_t left = segments; left > 1; left = (left + 1) / 2) {
      for (size_t i = 0; i < left; i += 2) {
        float* to = left <= 2 ? out : sums[i / 2];
        for (size_t at = 0; at < kBlock; at += G::kWidth) {
          const auto a = hn::Load(d, sums[i] + at);
          hn::Store(i + 1 < left ? hn::Add(a, hn::Load(d, sums[i + 1] + at)) : a, d, to + at);
        }
      }
    }
  }
}

template <class Source>
void score_lanes(const Tile& tile, uint32_t n, const float* queries, uint32_t lanes,
                 const CachedRows& next, float* scores) {
  switch (lanes) {
    case 4:
      return score_group<Group<4>, Source>(tile, n, queries, next, scores);
    case 8:
      return score_group<Group<8>, Source>(tile, n, queries, next, scores);
    default:
      return score_group<Group<16>, Source>(tile, n, queries, next, scores);
  }
}
void ScoreTile(const Tile& tile, uint32_t n, const float* queries, uint32_t lanes,
               const CachedRows& next, float* scores) {
  if (tile.widened != nullptr) return score_lanes<Widened>(tile, n, queries, lanes, next, scores);
  if (tile.rows.bf16) return score_lanes<AsCached<uint16_t>>(tile, n, queries, lanes, next, scores);
  score_lanes<AsCached<float>>(tile, n, queries, lanes, next, scores);
}

// --- softmax

template <class D, class V>
HWY_INLINE V exp_of(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  V r = fused_of(d, n, hn::Set(d, -0.693359375f), x);
  r = fused_of(d, n, hn::Set(d, 2.12194440e-4f), r);
  V p = hn::Set(d, 1.0f / 5040.0f);
  for (float c : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    p = fused_of(d, p, r, hn::Set(d, c));
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

// One vector of rows.
template <class G>
HWY_INLINE void softmax_vector(float* scores, uint32_t n, const float* visible, float sigma,
                               float* m_at, float* l_at, float* alpha_at) {
  using V = typename G::V;
  const typename G::D d;
  constexpr size_t kStep = G::kWidth * G::kVectors;
  const V scale = hn::Set(d, sigma);
  const V none = hn::Set(d, -std::numeric_limits<float>::infinity());
  const V limit = visible != nullptr ? hn::Load(d, visible) : none;
  const V before = hn::Load(d, m_at);
  V m = before;
  for (uint32_t s = 0; s < n; ++s) {
    V x = hn::Mul(hn::Load(d, scores + s * kStep), scale);
    if (visible != nullptr)
      x = hn::IfThenElse(hn::Lt(hn::Set(d, static_cast<float>(s)), limit), x, none);
    hn::Store(x, d, scores + s * kStep);
    m = hn::IfThenElse(hn::Or(hn::Gt(x, m), hn::IsNaN(x)), x, m);
  }
  V lane[kLanes];
  for (V& sum : lane) sum = hn::Zero(d);
  for (uint32_t begin = 0; begin < n; begin += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) {
      const size_t s = begin + i;
      if (s >= n) break;
      V p = exp_of(d, hn::Sub(hn::Load(d, scores + s * kStep), m));
      if (visible != nullptr)
        p = hn::IfThenElseZero(hn::Lt(hn::Set(d, static_cast<float>(s)), limit), p);
      hn::Store(p, d, scores + s * kStep);
      lane[i] = hn::Add(lane[i], p);
    }
  }
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) lane[i] = hn::Add(lane[i], lane[i + half]);
  const V alpha = exp_of(d, hn::Sub(before, m));
  hn::Store(alpha, d, alpha_at);
  hn::Store(fused_of(d, hn::Load(d, l_at), alpha, lane[0]), d, l_at);
  hn::Store(m, d, m_at);
}

template <class G>
void softmax_group(float* scores, uint32_t n, const float* visible, float sigma,
                   GroupState& state) {
  for (size_t at = 0; at < G::kWidth * G::kVectors; at += G::kWidth)
    softmax_vector<G>(scores + at, n, visible != nullptr ? visible + at : nullptr, sigma,
                      state.m + at, state.l + at, state.alpha + at);
}

void SoftmaxTile(float* scores, uint32_t n, uint32_t lanes, const float* visible, float sigma,
                 GroupState& state) {
  switch (lanes) {
    case 4:
      return softmax_group<Group<4>>(scores, n, visible, sigma, state);
    case 8:
      return softmax_group<Group<8>>(scores, n, visible, sigma, state);
    default:
      return softmax_group<Group<16>>(scores, n, visible, sigma, state);
  }
}

// --- weighted sums

// kRows rows over kColumns vectors of one segment's values.
template <size_t kRows, size_t kColumns, class Source>
HWY_INLINE void weigh_block(const WeighRows& shape, const Source& source, size_t segment,
                            size_t column, const float* p, const float* alpha, float* o) {
  const D d;
  V acc[kRows * kColumns];
  for (size_t r = 0; r < kRows; ++r)
    for (size_t c = 0; c < kColumns; ++c)
      acc[r * kColumns + c] =
          hn::Mul(hn::LoadU(d, o + r * shape.o_stride + c * kWidth), hn::Set(d, alpha[r]));
  const size_t lanes = shape.lanes;
  for (uint32_t s = 0; s < shape.n; ++s) {
    V row[kColumns];
    for (size_t c = 0; c < kColumns; ++c) row[c] = source.at(s, segment, column + c * kWidth);
    for (size_t r = 0; r < kRows; ++r) {
      const V weight = hn::Set(d, p[s * lanes + r]);
      for (size_t c = 0; c < kColumns; ++c)
        acc[r * kColumns + c] = fused(weight, row[c], acc[r * kColumns + c]);
    }
  }
  for (size_t r = 0; r < kRows; ++r)
    for (size_t c = 0; c < kColumns; ++c)
      hn::StoreU(acc[r * kColumns + c], d, o + r * shape.o_stride + c * kWidth);
}

template <size_t kRows, class Source>
void weigh_rows(const WeighRows& shape, const Source& source, const float* p, const float* alpha,
                float* o) {
  constexpr size_t kColumns = kManyRegisters ? (kRows >= 8 ? 2 : 4) : kRows >= 4 ? 3 : 4;
  for (size_t segment = 0; segment * kDotSegment < shape.width; ++segment, o += kDotSegment) {
    const size_t n = std::min<size_t>(kDotSegment, shape.width - segment * kDotSegment);
    size_t at = 0;
    for (; at + (kColumns - 1) * kWidth < n; at += kColumns * kWidth)
      weigh_block<kRows, kColumns>(shape, source, segment, at, p, alpha, o + at);
    for (; at < n; at += kWidth)
      weigh_block<kRows, 1>(shape, source, segment, at, p, alpha, o + at);
  }
}

template <class Source>
void weigh_from(const WeighRows& shape, const Source& source, const float* p, const float* alpha,
                float* o) {
  constexpr uint32_t kMost = kManyRegisters ? 8 : 4;
  const uint32_t end = shape.first + shape.count;
  for (uint32_t r = shape.first; r < end;) {
    float* to = o + r * shape.o_stride;
    const uint32_t left = end - r;
    if (left >= kMost) {
      weigh_rows<kMost>(shape, source, p + r, alpha + r, to);
      r += kMost;
    } else if (left >= 4) {
      weigh_rows<4>(shape, source, p + r, alpha + r, to);
      r += 4;
    } else {
      weigh_rows<1>(shape, source, p + r, alpha + r, to);
      r += 1;
    }
  }
}
void WeighTile(const WeighRows& shape, const Tile& tile, const float* p, const float* alpha,
               float* o) {
  if (tile.widened != nullptr) return weigh_from(shape, Widened(tile), p, alpha, o);
  if (tile.rows.bf16) return weigh_from(shape, AsCached<uint16_t>(tile), p, alpha, o);
  weigh_from(shape, AsCached<float>(tile), p, alpha, o);
}

void MergeOutputs(const float* a, float ea, const float* b, float eb, size_t n, float* out) {
  const V wa = hn::Set(D(), ea), wb = hn::Set(D(), eb);
  map2(a, b, n, out, [wa, wb](V x, V y) HWY_ATTR { return fused(x, wa, hn::Mul(y, wb)); });
}

void DivideOutputs(const float* o, float l, size_t n, float* out) {
  const V by = hn::Set(D(), l);
  map2(o, o, n, out, [by](V x, V) HWY_ATTR { return hn::Div(x, by); });
}

// --- index scores

// Values [begin, end) of kHeads queries against kColumns vectors of positions.
template <size_t kHeads, size_t kColumns, class K>
HWY_INLINE void match_segment(const IndexQuery& query, size_t head, const K* panel, size_t begin,
                              size_t end, V* sum) {
  const D d;
  V acc[kHeads * kColumns];
  for (V& a : acc) a = hn::Zero(d);
  for (size_t k = begin; k < end; ++k) {
    V key[kColumns];
    for (size_t c = 0; c < kColumns; ++c) key[c] = load_weights(panel + k * kKeyPanel + c * kWidth);
    for (size_t h = 0; h < kHeads; ++h) {
      const V value = hn::Set(d, query.q[(head + h) * query.dim + k]);
      for (size_t c = 0; c < kColumns; ++c)
        acc[h * kColumns + c] = fused(value, key[c], acc[h * kColumns + c]);
    }
  }
  for (size_t i = 0; i < kHeads * kColumns; ++i) sum[i] = acc[i];
}

// kHeads heads over kColumns vectors of positions, weighed into acc.
template <size_t kHeads, size_t kColumns, class K>
HWY_INLINE void score_heads(const IndexQuery& query, size_t head, const K* panel, V* acc) {
  const D d;
  V total[kHeads * kColumns];
  match_segment<kHeads, kColumns>(query, head, panel, 0, std::min<size_t>(kDotSegment, query.dim),
                                  total);
  if (query.dim > kDotSegment) {
    V sum[kHeads * kColumns];
    match_segment<kHeads, kColumns>(query, head, panel, kDotSegment, query.dim, sum);
    for (size_t i = 0; i < kHeads * kColumns; ++i) total[i] = hn::Add(total[i], sum[i]);
  }
  for (size_t h = 0; h < kHeads; ++h) {
    const V weight = hn::Set(d, query.w[head + h]);
    for (size_t c = 0; c < kColumns; ++c) {
      const V dot = total[h * kColumns + c];
      // max(dot, 0) that lets NaN through
      const V kept = hn::IfThenElse(hn::Lt(dot, hn::Zero(d)), hn::Zero(d), dot);
      acc[c] = fused(weight, kept, acc[c]);
    }
  }
}

template <class K>
void score_panel(const IndexQuery& query, const K* panel, float* out) {
  constexpr size_t kColumns = kManyRegisters ? 4 : 2;
  constexpr size_t kHeads = 4;
  const D d;
  for (size_t at = 0; at < kKeyPanel; at += kColumns * kWidth) {
    V acc[kColumns];
    for (V& a : acc) a = hn::Zero(d);
    size_t head = 0;
    for (; head + kHeads <= query.heads; head += kHeads)
      score_heads<kHeads, kColumns>(query, head, panel + at, acc);
    for (; head < query.heads; ++head) score_heads<1, kColumns>(query, head, panel + at, acc);
    for (size_t c = 0; c < kColumns; ++c) hn::StoreU(acc[c], d, out + at + c * kWidth);
  }
}

void ScoreKeysF32(const IndexQuery& query, const float* panel, float* out) {
  score_panel(query, panel, out);
}
void ScoreKeysBf16(const IndexQuery& query, const uint16_t* panel, float* out) {
  score_panel(query, panel, out);
}

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

namespace model {

HWY_EXPORT(WidenTile);
HWY_EXPORT(ScoreTile);
HWY_EXPORT(SoftmaxTile);
HWY_EXPORT(WeighTile);
HWY_EXPORT(MergeOutputs);
HWY_EXPORT(DivideOutputs);
HWY_EXPORT(ScoreKeysF32);
HWY_EXPORT(ScoreKeysBf16);

void widen_tile(const CachedRows& rows, float* tile) {
  HWY_DYNAMIC_DISPATCH(WidenTile)(rows, tile);
}
void score_tile(const Tile& tile, uint32_t n, const float* queries, uint32_t lanes,
                const CachedRows& next, float* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreTile)(tile, n, queries, lanes, next, scores);
}
void softmax_tile(float* scores, uint32_t n, uint32_t lanes, const float* visible, float sigma,
                  GroupState& state) {
  HWY_DYNAMIC_DISPATCH(SoftmaxTile)(scores, n, lanes, visible, sigma, state);
}
void weigh_tile(const WeighRows& shape, const Tile& tile, const float* p, const float* alpha,
                float* o) {
  HWY_DYNAMIC_DISPATCH(WeighTile)(shape, tile, p, alpha, o);
}
void merge_outputs(const float* a, float ea, const float* b, float eb, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(MergeOutputs)(a, ea, b, eb, n, out);
}
void divide_outputs(const float* o, float l, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(DivideOutputs)(o, l, n, out);
}
void score_keys(const IndexQuery& query, const float* panel, float* out) {
  HWY_DYNAMIC_DISPATCH(ScoreKeysF32)(query, panel, out);
}
void score_keys(const IndexQuery& query, const uint16_t* panel, float* out) {
  HWY_DYNAMIC_DISPATCH(ScoreKeysBf16)(query, panel, out);
}

void GroupState::reset() {
  std::fill_n(m, kMostLanes, -std::numeric_limits<float>::infinity());
  std::fill_n(l, kMostLanes, 0.0f);
  std::fill_n(alpha, kMostLanes, 0.0f);
}

void absorb_tile_by_lanes(Partial& partial, std::span<float> scores, const float* latents,
                          size_t stride) {
  constexpr uint32_t kRows = 4;  // the narrowest group; its first lane counts
  const auto n = static_cast<uint32_t>(scores.size());
  const auto width = static_cast<uint32_t>(partial.o.size());
  AlignedBuffer tile(tile_floats(width) * sizeof(float));
  AlignedBuffer lanes(kTileRows * kRows * sizeof(float));
  std::vector<const std::byte*> rows(n);
  for (uint32_t s = 0; s < n; ++s) {
    rows[s] = reinterpret_cast<const std::byte*>(latents + s * stride);
    lanes.as<float>()[s * kRows] = scores[s];
  }
  const CachedRows cached{rows.data(), n, width, /*bf16=*/false};
  widen_tile(cached, tile.as<float>());
  GroupState state;
  state.reset();
  if (!partial.empty) {
    state.m[0] = partial.m;
    state.l[0] = partial.l;
  }
  softmax_tile(lanes.as<float>(), n, kRows, /*visible=*/nullptr, /*sigma=*/1, state);
  const size_t o_stride = round_up_panel(width);
  partial.o.resize(o_stride, 0.0f);
  weigh_tile({.first = 0, .count = 1, .n = n, .lanes = kRows, .width = width, .o_stride = o_stride},
             {cached, tile.as<float>()}, lanes.as<float>(), state.alpha, partial.o.data());
  partial.o.resize(width);
  for (uint32_t s = 0; s < n; ++s) scores[s] = lanes.as<float>()[s * kRows];
  partial.m = state.m[0];
  partial.l = state.l[0];
  partial.empty = false;
}

}  // namespace model
#endif  // HWY_ONCE
