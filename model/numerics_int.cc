#include "model/numerics_int.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "model/numerics.h"

namespace model {
namespace {

int32_t code_sum(const int8_t* a, const int8_t* b, size_t n) {
  int32_t sum = 0;
  for (size_t k = 0; k < n; ++k) sum += int32_t{a[k]} * int32_t{b[k]};
  return sum;
}

// Chains of 16 groups from 0, merged.  add(group, acc): what the chain is after `group`.
template <class Add>
float chain_groups(size_t groups, Add add) {
  std::vector<float> sums;
  for (size_t begin = 0; begin < groups; begin += kGroupsOfSegment) {
    float acc = 0.0f;
    const size_t end = std::min<size_t>(begin + kGroupsOfSegment, groups);
    for (size_t g = begin; g < end; ++g) acc = add(g, acc);
    sums.push_back(acc);
  }
  return merge_sums(sums);
}

}  // namespace

float quantise_group(std::span<const float> x, int8_t* codes) {
  float most = 0.0f;
  bool finite = true;
  for (const float v : x) {
    finite = finite && std::isfinite(v);
    most = std::max(most, std::fabs(v));
  }
  std::fill_n(codes, x.size(), int8_t{0});
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  if (most < kSmallestMagnitude) return 0.0f;
  const float inverse = 127.0f / most;
  for (size_t k = 0; k < x.size(); ++k) {
    const float code = std::nearbyint(x[k] * inverse);  // ±127 at most: 127 / amax rounds once
    CHECK(std::fabs(code) <= 127.0f, "{} / {} leaves the codes", x[k], most);
    codes[k] = static_cast<int8_t>(code);
  }
  return most / 127.0f;
}

QuantisedActivations quantise_activations(std::span<const float> x) {
  QuantisedActivations out;
  out.codes.resize(x.size());
  for (size_t at = 0; at < x.size(); at += kActivationGroup) {
    const size_t count = std::min<size_t>(kActivationGroup, x.size() - at);
    out.scales.push_back(quantise_group(x.subspan(at, count), out.codes.data() + at));
  }
  return out;
}

float int8_dot(const QuantisedActivations& x, const int8_t* codes, float scale) {
  const size_t inputs = x.codes.size();
  const float sum = chain_groups(x.scales.size(), [&](size_t g, float acc) {
    const size_t at = g * kActivationGroup;
    const size_t count = std::min<size_t>(kActivationGroup, inputs - at);
    const int32_t exact = code_sum(x.codes.data() + at, codes + at, count);
    return std::fma(static_cast<float>(exact), x.scales[g], acc);
  });
  return sum * scale;
}

float int4_dot(const QuantisedActivations& x, const int8_t* codes, const float* scales,
               uint32_t group) {
  const size_t inputs = x.codes.size();
  return chain_groups(x.scales.size(), [&](size_t g, float acc) {
    const size_t end = std::min<size_t>((g + 1) * kActivationGroup, inputs);
    for (size_t at = g * kActivationGroup; at < end; at += group) {
      const int32_t exact = code_sum(x.codes.data() + at, codes + at, group);
      acc = std::fma(static_cast<float>(exact) * scales[at / group], x.scales[g], acc);
    }
    return acc;
  });
}

void int_dots(std::span<const float> x, const int8_t* codes, const float* scales, uint32_t group,
              std::span<float> y) {
  const QuantisedActivations quantised = quantise_activations(x);
  const size_t of_row = group == 0 ? 1 : x.size() / group;
  for (size_t j = 0; j < y.size(); ++j)
    y[j] = group == 0 ? int8_dot(quantised, codes + j * x.size(), scales[j])
                      : int4_dot(quantised, codes + j * x.size(), scales + j * of_row, group);
}

}  // namespace model
