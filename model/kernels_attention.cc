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
  // Positions scored together: enough chains to hide the latency of fma, few enough for the
  // registers; with pairs of bf16 values, which take some, and without.
  static constexpr size_t kPositions = kVectors == 1    ? (kManyRegisters ? 16 : 12)
                                       : kVectors == 2  ? 6
                                       : kManyRegisters ? 4
                                                        : 2;
  static constexpr size_t kPairPositions = kVectors == 1 ? (kManyRegisters ? 12 : 8)
                                           : kManyRegisters || kVectors == 2 ? 4
                                                                             : 2;
};

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
  template <class G>
  static constexpr size_t kRows = G::kPositions;
  // n values of a segment of kBlock rows from s on.
  template <class G, size_t kBlock>
  void score(size_t s, size_t segment, const float* queries, size_t n, float* out) const;
  // A vector of row s. column: of the segment
  V at(size_t s, size_t segment, size_t column) const {
    return hn::Load(D(), row(s, segment) + column);
  }

 private:
  const float* row(size_t s, size_t segment) const {
    return tile_ + (segment * kTileRows + s) * kTileStride;
  }
  const float* tile_;
};

template <class K>
class AsCached {
 public:
  explicit AsCached(const Tile& tile) : rows_(tile.rows) {}
  template <class G>
  static constexpr size_t kRows = sizeof(K) == 2 ? G::kPairPositions : G::kPositions;
  template <class G, size_t kBlock>
  void score(size_t s, size_t segment, const float* queries, size_t n, float* out) const;
  V at(size_t s, size_t segment, size_t column) const {
    return load_weights(row(s, segment) + column);
  }

 private:
  const K* row(size_t s, size_t segment) const {
    return reinterpret_cast<const K*>(rows_.rows[s]) + segment * kDotSegment;
  }
  const CachedRows& rows_;
};

// --- scores

// n values of kRows rows against the group: out[row][lane]. value(row, k) is f32.
template <class G, size_t kRows, class F>
HWY_INLINE void score_values(F value, const float* queries, size_t n, float* out) {
  const typename G::D d;
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  typename G::V acc[kRows * G::kVectors];
  for (auto& a : acc) a = hn::Zero(d);
  for (size_t k = 0; k < n; ++k) {
    typename G::V query[G::kVectors];
    for (size_t v = 0; v < G::kVectors; ++v)
      query[v] = hn::Load(d, queries + k * kLanesOf + v * G::kWidth);
    for (size_t r = 0; r < kRows; ++r) {
      const auto key = hn::Set(d, value(r, k));
      for (size_t v = 0; v < G::kVectors; ++v)
        acc[r * G::kVectors + v] = fused_of(d, query[v], key, acc[r * G::kVectors + v]);
    }
  }
  for (size_t i = 0; i < kRows * G::kVectors; ++i) hn::Store(acc[i], d, out + i * G::kWidth);
}

// The same straight from bf16 rows, n even: of two values broadcast together, a shift and a mask
// make two floats, on ports that the multipliers leave free.
template <class G, size_t kRows>
HWY_INLINE void score_pairs(const uint16_t* const* rows, const float* queries, size_t n,
                            float* out) {
  const typename G::D d;
  const hn::RebindToUnsigned<typename G::D> du;
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  typename G::V acc[kRows * G::kVectors];
  for (auto& a : acc) a = hn::Zero(d);
  const auto high = hn::Set(du, 0xFFFF0000u);
  for (size_t k = 0; k < n; k += 2) {
    typename G::V first[G::kVectors], second[G::kVectors];
    for (size_t v = 0; v < G::kVectors; ++v) {
      first[v] = hn::Load(d, queries + k * kLanesOf + v * G::kWidth);
      second[v] = hn::Load(d, queries + (k + 1) * kLanesOf + v * G::kWidth);
    }
    for (size_t r = 0; r < kRows; ++r) {
      uint32_t bits;  // value k low, k + 1 high
      std::memcpy(&bits, rows[r] + k, sizeof bits);
      const auto pair = hn::Set(du, bits);
      const auto low_value = hn::BitCast(d, hn::ShiftLeft<16>(pair));
      const auto high_value = hn::BitCast(d, hn::And(pair, high));
      for (size_t v = 0; v < G::kVectors; ++v) {
        const size_t i = r * G::kVectors + v;
        acc[i] = fused_of(d, second[v], high_value, fused_of(d, first[v], low_value, acc[i]));
      }
    }
  }
  for (size_t i = 0; i < kRows * G::kVectors; ++i) hn::Store(acc[i], d, out + i * G::kWidth);
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

template <class G, size_t kBlock>
void Widened::score(size_t s, size_t segment, const float* queries, size_t n, float* out) const {
  const float* from = row(s, segment);
  score_values<G, kBlock>([from](size_t r, size_t k) HWY_ATTR { return from[r * kTileStride + k]; },
                          queries, n, out);
}

template <class K>
template <class G, size_t kBlock>
void AsCached<K>::score(size_t s, size_t segment, const float* queries, size_t n,
                        float* out) const {
  const K* rows[kBlock];
  for (size_t r = 0; r < kBlock; ++r)  // past the end: the last row again
    rows[r] = row(std::min<size_t>(s + r, rows_.n - 1), segment);
  if constexpr (sizeof(K) == 2) {
    score_pairs<G, kBlock>(rows, queries, n, out);
  } else {
    score_values<G, kBlock>([&rows](size_t r, size_t k) HWY_ATTR { return rows[r][k]; }, queries, n,
                            out);
  }
}

// kBlock rows from s on: all segments, merged.
template <class G, size_t kBlock, class Source>
HWY_INLINE void score_block(const Source& source, size_t s, uint32_t width, const float* queries,
                            float* out) {
  const typename G::D d;
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  constexpr size_t kSums = kBlock * kLanesOf;
  const size_t segments = (width + kDotSegment - 1) / kDotSegment;
  HWY_ALIGN float sums[kMostSegments][kSums];
  for (size_t i = 0; i < segments; ++i) {
    const size_t begin = i * kDotSegment;
    const size_t values = std::min<size_t>(kDotSegment, width - begin);
    source.template score<G, kBlock>(s, i, queries + begin * kLanesOf, values,
                                     segments == 1 ? out : sums[i]);
  }
  for (size_t left = segments; left > 1; left = (left + 1) / 2) {
    for (size_t i = 0; i < left; i += 2) {
      float* to = left <= 2 ? out : sums[i / 2];
      for (size_t at = 0; at < kSums; at += G::kWidth) {
        const auto a = hn::Load(d, sums[i] + at);
        hn::Store(i + 1 < left ? hn::Add(a, hn::Load(d, sums[i + 1] + at)) : a, d, to + at);
      }
    }
  }
}

template <class G, class Source>
void score_group(const Tile& tile, uint32_t n, const float* queries, const CachedRows& next,
                 float* scores) {
  constexpr size_t kLanesOf = G::kWidth * G::kVectors;
  constexpr size_t kRows = Source::template kRows<G>, kFew = (kRows + 2) / 3;
  const Source source(tile);
  size_t s = 0;
  // A short rest, as where a chosen set is thin, goes in smaller blocks.
  for (; s + 2 * kFew < n; s += kRows) {
    fetch_rows(next, s, kRows);
    score_block<G, kRows>(source, s, tile.rows.width, queries, scores + s * kLanesOf);
  }
  for (; s < n; s += kFew) {
    fetch_rows(next, s, kFew);
    score_block<G, kFew>(source, s, tile.rows.width, queries, scores + s * kLanesOf);
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

void MergeStates(uint32_t n, const RowStates& a, const RowStates& b, MergedRows& out) {
  const D d;
  MergedRows in_a = {}, in_b = {};
  std::copy_n(a.m, n, in_a.m);
  std::copy_n(a.l, n, in_a.l);
  std::copy_n(b.m, n, in_b.m);
  std::copy_n(b.l, n, in_b.l);
  for (size_t i = 0; i < n; i += kWidth) {
    const V am = hn::Load(d, in_a.m + i), bm = hn::Load(d, in_b.m + i);
    const V m = hn::IfThenElse(hn::Lt(am, bm), bm, am);
    const V ea = exp_vector(hn::Sub(am, m)), eb = exp_vector(hn::Sub(bm, m));
    hn::Store(m, d, out.m + i);
    hn::Store(ea, d, out.ea + i);
    hn::Store(eb, d, out.eb + i);
    hn::Store(fused(hn::Load(d, in_a.l + i), ea, hn::Mul(hn::Load(d, in_b.l + i), eb)), d,
              out.l + i);
  }
}

void MergeOutputs(const float* a, float ea, const float* b, float eb, size_t n, float* out) {
  const V wa = hn::Set(D(), ea), wb = hn::Set(D(), eb);
  map2(a, b, n, out, [wa, wb](V x, V y) HWY_ATTR { return fused(x, wa, hn::Mul(y, wb)); });
}

void DivideOutputs(const float* o, float l, size_t n, float* out) {
  const V by = hn::Set(D(), l);
  map2(o, o, n, out, [by](V x, V) HWY_ATTR { return hn::Div(x, by); });
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
HWY_EXPORT(MergeStates);
HWY_EXPORT(MergeOutputs);
HWY_EXPORT(DivideOutputs);

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
void merge_states(uint32_t n, const RowStates& a, const RowStates& b, MergedRows& out) {
  HWY_DYNAMIC_DISPATCH(MergeStates)(n, a, b, out);
}
void merge_outputs(const float* a, float ea, const float* b, float eb, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(MergeOutputs)(a, ea, b, eb, n, out);
}
void divide_outputs(const float* o, float l, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(DivideOutputs)(o, l, n, out);
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
