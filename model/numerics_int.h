// The scalar arithmetic of products with integer weights (docs/NUMERICS.md, "Integer weights"): the
// sums of products of codes are exact, the scales enter in a fixed order. The reference engine
// computes by it, the kernels of kernels_int.h must equal it by memcmp.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/matrix.h"

namespace model {

inline constexpr uint32_t kGroupsOfSegment = 16;  // activation groups that one chain adds
// Magnitudes below this count as zero: 127 / amax would overflow.
inline constexpr float kSmallestMagnitude = 0x1p-100f;

// One group: x[k] ≈ codes[k] · scale, codes within ±127; the scale is the result. All codes are 0
// with a scale of 0 where all is zero, and with one of NaN where an x is not finite.
float quantise_group(std::span<const float> x, int8_t* codes);

// One row of activations: x[k] ≈ codes[k] · scales[k / 128].
struct QuantisedActivations {
  std::vector<int8_t> codes;  // [inputs], within ±127
  std::vector<float> scales;  // [groups]; NaN where an x of the group is not finite
};
QuantisedActivations quantise_activations(std::span<const float> x);

// dot(x, w) for w[k] = code[k] · scale.  codes: [inputs]
float int8_dot(const QuantisedActivations& x, const int8_t* codes, float scale);
// dot(x, w) for w[k] = code[k] · scales[k / group].  codes: [inputs], group divides 128
float int4_dot(const QuantisedActivations& x, const int8_t* codes, const float* scales,
               uint32_t group);
// y[j] = one of them for every row of codes; group 0: int8.  codes: [y.size(), x.size()], scales:
// [y.size(), 1 or x.size() / group]
void int_dots(std::span<const float> x, const int8_t* codes, const float* scales, uint32_t group,
              std::span<float> y);

}  // namespace model
