// The scalar arithmetic of docs/NUMERICS.md, one function a rule. Pure functions of their arguments
// with the same bits on every machine; both engines and the sampler use these, or (in fast kernels)
// must equal them by memcmp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "model/config.h"

namespace model {

using base::TokenId;

inline constexpr size_t kDotSegment = 256;  // k values of a dot that one chain adds
inline constexpr size_t kLanes = 16;        // interleaved sums of a segment
inline constexpr uint32_t kTile = 128;      // attended positions per softmax step

// --- reductions

// Adds neighbours (s0+s1), (s2+s3) …, an unpaired last one moving up, until one is left; 0 if none.
// Overwrites `sums`.
float merge_sums(std::span<float> sums);
// Per segment acc = fma(x[k], w[k], acc) for ascending k, from 0; segments merge.
float dot(std::span<const float> x, std::span<const float> w);
// y[j] = dot(x, column j of w); w: [x.size(), y.size()], row-major: the kernel of the reference
// engine. Each element has dot()'s bits.
void dot_columns(std::span<const float> x, const float* w, std::span<float> y);
// Per segment 16 lanes, lane i mod 16 adding v[i]; lanes fold by 8, 4, 2, 1; segments merge.
float lane_sum(std::span<const float> v);
float lane_sum_squares(std::span<const float> v);
// y = (x · 1/sqrt(lane_sum_squares(x)/n + eps)) · w.  y may be x.
void rms_norm(std::span<const float> x, const float* w, float eps, float* y);

// --- elementary functions

float fixed_exp(float x);   // e^x, our own polynomial
float silu(float g);        // g / (1 + e^−g)
uint16_t to_bf16(float x);  // to nearest even; NaN stays NaN
float from_bf16(uint16_t bits);

// --- rotary embedding

// cos and sin of f32(position) · inv_freq, for each pair of the `rope` dimensions; YaRN included.
class Rope {
 public:
  explicit Rope(const ModelConfig& config);
  uint32_t pairs() const { return static_cast<uint32_t>(inv_freq_.size()); }
  std::span<const float> inv_freq() const { return inv_freq_; }
  // cos, sin: [pairs()]
  void angles(uint32_t position, float* cos, float* sin) const;

 private:
  std::vector<float> inv_freq_;
  double multiplier_ = 1;  // of cos and sin: g(factor, mscale) / g(factor, mscale_all_dim)
};
// Rotates (x[2i], x[2i+1]).  x: [2 · pairs]
void rotate_pairs(float* x, uint32_t pairs, const float* cos, const float* sin);
// Rotates (x[i], x[i+pairs]): indexers with rope_interleave false.
void rotate_halves(float* x, uint32_t pairs, const float* cos, const float* sin);

// --- discrete choices

// Row of each n-gram table for the token `token` after `before` (oldest first; of these the last
// order − 1 count, and none at or before the last EOS among them).  ids: [tables]
void ngram_ids(const ModelConfig& config, std::span<const TokenId> before, TokenId token,
               uint64_t* ids);

// From router logits [experts + zero experts], overwritten by the softmax: the top-k of p + bias,
// the lower id first among equals. ids ascending, weights scaled.  ids, weights: [topk]
void select_experts(const ModelConfig& config, std::span<float> logits, std::span<const float> bias,
                    uint32_t* ids, float* weights);

// Appends the indices of the `need` highest values, ascending; of equals the lower index first, NaN
// above all, −0 like +0.
void select_highest(std::span<const float> values, size_t need, std::vector<uint32_t>& out);

// Positions that a query at position scores.size() − 1 attends (LSA): all when they fit the budget,
// else the first init_tokens, the last local_tokens and the highest scores, the lower position
// first among equals. out: ascending.
void select_positions(const IndexerConfig& indexer, std::span<const float> scores,
                      std::vector<uint32_t>& out);
// Of the forced positions among `count` (first init_tokens, last local_tokens) the part that fits
// the budget, and how many more fit it. Between the two runs lie the positions chosen by score.
struct ForcedPositions {
  uint32_t sink_end = 0;     // [0, sink_end) is forced
  uint32_t local_begin = 0;  // [local_begin, local_end) is forced
  uint32_t local_end = 0;
  uint32_t free = 0;
};
ForcedPositions forced_positions(const IndexerConfig& indexer, uint32_t count);

// --- attention partials

// Softmax over some positions, not yet divided: m the largest score, l = Σ e^(score − m),
// o = Σ e^(score − m) · latent.
struct Partial {
  bool empty = true;
  float m = 0, l = 0;
  std::vector<float> o;
};
// Takes in one tile: scores [n] (overwritten by the probabilities), latents [n, o.size()] with rows
// `stride` floats apart.
void absorb_tile(Partial& partial, std::span<float> scores, const float* latents, size_t stride);
// Spans merge by index: i with i^1, then by 2, 4 …; an empty one passes the other up. Overwrites
// `spans`; the result stands in spans[0].
void merge_spans(std::span<Partial> spans);

// --- digests

// The operations that an engine may do its own way. Their bits over a fixed input, with the rope
// table, are the arithmetic digest: engines whose digests agree agree on everything.
struct ProbedOps {
  // y[j] = dot(x, w[j]); w: [y.size(), x.size()]
  std::function<void(std::span<const float> x, std::span<const float> w, std::span<float> y)>
      project;
  // y[j] = dot(x, codes of j · scales) of integer weights: int8 where `group` is 0, else int4.
  // codes: [y.size(), x.size()]; scales: [y.size(), 1 or x.size() / group]
  std::function<void(std::span<const float> x, const int8_t* codes, const float* scales,
                     uint32_t group, std::span<float> y)>
      project_codes;
  std::function<void(std::span<const float> x, const float* w, float eps, float* y)> rms_norm;
  std::function<void(std::span<float> values)> exp;   // in place
  std::function<void(std::span<float> values)> silu;  // in place
  std::function<void(Partial&, std::span<float> scores, const float* latents, size_t stride)>
      absorb_tile;
};
base::Hash128 arithmetic_digest(const ProbedOps& ops, const Rope& rope);
ProbedOps reference_ops();

}  // namespace model
