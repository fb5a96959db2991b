// The attention kernels of the local engine; model/kernels.h says what holds of all kernels.
//
// Rows (one query of one head each) meet a tile of the cache in groups: the lanes of a vector are
// rows, a cached value is broadcast to them, and every chain of docs/NUMERICS.md runs down the
// vectors. So scores, softmax and sums need nothing across lanes, and no key is ever transposed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/numerics.h"

namespace model {

// Rows of a group: 16, or 8 or 4 for what is left over.
inline constexpr uint32_t kMostLanes = 16;
inline constexpr uint32_t lanes_for(uint32_t rows) { return rows > 8 ? 16 : rows > 4 ? 8 : 4; }

// Cached rows of a tile, widened: per segment of 256 values, 144 rows of kTileStride floats (an odd
// number of cache lines apart, so that they do not share sets). Kernels compute, and nobody reads,
// some rows past the last.
inline constexpr size_t kTileStride = kDotSegment + 16;
inline constexpr size_t kTileRows = kTile + 16;
inline constexpr size_t tile_floats(size_t width) {
  return (width + kDotSegment - 1) / kDotSegment * kTileRows * kTileStride;
}
// Dot segments of a cached row at most.
inline constexpr size_t kMostSegments = 16;

// Some rows of the cache where they lie.
struct CachedRows {
  const std::byte* const* rows = nullptr;
  uint32_t n = 0;
  uint32_t width = 0;  // values of each
  bool bf16 = false;   // else f32
};
void widen_tile(const CachedRows& rows, float* tile);

// A tile for the kernels below: widened, when several groups meet it, or as it lies in the cache.
struct Tile {
  CachedRows rows;
  const float* widened =
      nullptr;  // null: straight from the rows, for outputs of a multiple of 16 values
};
// scores[s][lane] = dot(query of lane, row s).  queries: [width][lanes]; scores: [144][lanes].
// Fetches the rows of `next` towards the cache meanwhile.
void score_tile(const Tile& tile, uint32_t n, const float* queries, uint32_t lanes,
                const CachedRows& next, float* scores);

// Softmax state of a group: m starts at −inf, l at 0; alpha is what the last tile left to apply.
struct GroupState {
  alignas(64) float m[kMostLanes];
  alignas(64) float l[kMostLanes];
  alignas(64) float alpha[kMostLanes];
  void reset();
};
// One tile: scores [n][lanes] · sigma become probabilities; m, l and alpha move. visible: positions
// of the tile that each lane sees; null: all n.
void softmax_tile(float* scores, uint32_t n, uint32_t lanes, const float* visible, float sigma,
                  GroupState& state);

// o[i] = fma(p_s, row s, o[i] · alpha) for ascending s < n, over the first `width` values; for rows
// first … first + count of a group.  o: rows of o_stride ≥ round_up_panel(width) floats
struct WeighRows {
  uint32_t first = 0, count = 0, n = 0, lanes = 0, width = 0;
  size_t o_stride = 0;
};
void weigh_tile(const WeighRows& shape, const Tile& tile, const float* p, const float* alpha,
                float* o);

// Rows with partials (m, l) in two subtrees of spans: m = max, l = fma(l_a, e_a, l_b · e_b) with
// e = exp(own m − m), which the outputs are merged by.  n ≤ 16
struct RowStates {
  const float* m = nullptr;
  const float* l = nullptr;
};
struct MergedRows {
  alignas(64) float m[kMostLanes];
  alignas(64) float l[kMostLanes];
  alignas(64) float ea[kMostLanes];
  alignas(64) float eb[kMostLanes];
};
void merge_states(uint32_t n, const RowStates& a, const RowStates& b, MergedRows& out);
// out[i] = fma(a[i], ea, b[i] · eb).  out may be a or b
void merge_outputs(const float* a, float ea, const float* b, float eb, size_t n, float* out);
// out[i] = o[i] / l
void divide_outputs(const float* o, float l, size_t n, float* out);

// Index keys of 64 positions side by side: for ascending value, the 64 positions' values.
inline constexpr uint32_t kKeyPanel = 64;
// One query over one panel: out[s] = acc after acc = fma(w_h, max(dot(q_h, key s), 0), acc) over
// ascending heads, from 0.  q: [heads, dim], dim ≤ 512; out: [64]
struct IndexQuery {
  const float* q = nullptr;
  const float* w = nullptr;
  uint32_t heads = 0, dim = 0;
};
void score_keys(const IndexQuery& query, const float* panel, float* out);
void score_keys(const IndexQuery& query, const uint16_t* panel, float* out);

// select_highest() of numerics.h.
void select_highest_fast(std::span<const float> values, size_t need, std::vector<uint32_t>& out);

// absorb_tile() of numerics.h by the kernels above, for the arithmetic digest.
void absorb_tile_by_lanes(Partial& partial, std::span<float> scores, const float* latents,
                          size_t stride);

}  // namespace model
