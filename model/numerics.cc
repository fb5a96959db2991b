#include "model/numerics.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace model {

float merge_sums(std::span<float> sums) {
  size_t n = sums.size();
  if (n == 0) return 0.0f;
  while (n > 1) {
    size_t out = 0;
    for (size_t i = 0; i + 1 < n; i += 2) sums[out++] = sums[i] + sums[i + 1];
    if (n % 2 == 1) sums[out++] = sums[n - 1];
    n = out;
  }
  return sums[0];
}

float dot(std::span<const float> x, std::span<const float> w) {
  std::vector<float> sums;
  for (size_t begin = 0; begin < x.size(); begin += kDotSegment) {
    const size_t end = std::min(begin + kDotSegment, x.size());
    float acc = 0.0f;
    for (size_t k = begin; k < end; ++k) acc = std::fma(x[k], w[k], acc);
    sums.push_back(acc);
  }
  return merge_sums(sums);
}

namespace {

// acc[j] = fma(x[k], w[k][j], acc[j]) for ascending k; rows of w stand `stride` floats apart.
// Columns are done in blocks that stay in registers, which does not touch the order of any chain.
[[gnu::always_inline]] inline void fma_rows(std::span<const float> x, const float* w, size_t stride,
                                            std::span<float> acc) {
  constexpr size_t kBlock = 64;
  size_t j = 0;
  for (; j + kBlock <= acc.size(); j += kBlock) {
    float block[kBlock];
    for (size_t i = 0; i < kBlock; ++i) block[i] = acc[j + i];
    for (size_t k = 0; k < x.size(); ++k)
      for (size_t i = 0; i < kBlock; ++i)
        block[i] = __builtin_fmaf(x[k], w[k * stride + j + i], block[i]);
    for (size_t i = 0; i < kBlock; ++i) acc[j + i] = block[i];
  }
  for (size_t k = 0; k < x.size(); ++k)
    for (size_t i = j; i < acc.size(); ++i)
      acc[i] = __builtin_fmaf(x[k], w[k * stride + i], acc[i]);
}

using FmaRows = void (*)(std::span<const float>, const float*, size_t, std::span<float>);

// fma is exact whoever computes it: the two versions differ in speed alone.
void fma_rows_portable(std::span<const float> x, const float* w, size_t stride,
                       std::span<float> acc) {
  fma_rows(x, w, stride, acc);
}
#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void fma_rows_avx2(std::span<const float> x, const float* w,
                                               size_t stride, std::span<float> acc) {
  fma_rows(x, w, stride, acc);
}
#endif
FmaRows best_fma_rows() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_rows_avx2;
#endif
  return fma_rows_portable;
}
void chain(std::span<const float> x, const float* w, size_t stride, std::span<float> acc) {
  static const FmaRows best = best_fma_rows();
  best(x, w, stride, acc);
}

}  // namespace

void dot_columns(std::span<const float> x, const float* w, std::span<float> y) {
  std::vector<std::vector<float>> sums;  // [segment][column]
  for (size_t begin = 0; begin < x.size(); begin += kDotSegment) {
    const size_t count = std::min(kDotSegment, x.size() - begin);
    std::vector<float>& acc = sums.emplace_back(y.size(), 0.0f);
    chain(x.subspan(begin, count), w + begin * y.size(), y.size(), acc);
  }
  std::vector<float> one(sums.size());
  for (size_t j = 0; j < y.size(); ++j) {
    for (size_t s = 0; s < sums.size(); ++s) one[s] = sums[s][j];
    y[j] = merge_sums(one);
  }
}

namespace {

template <class Add>
float lane_reduce(std::span<const float> v, Add add) {
  std::vector<float> sums;
  for (size_t begin = 0; begin < v.size(); begin += kDotSegment) {
    const size_t end = std::min(begin + kDotSegment, v.size());
    std::array<float, kLanes> lane{};
    for (size_t i = begin; i < end; ++i)
      lane[(i - begin) % kLanes] = add(v[i], lane[(i - begin) % kLanes]);
    for (size_t half = kLanes / 2; half > 0; half /= 2)
      for (size_t l = 0; l < half; ++l) lane[l] += lane[l + half];
    sums.push_back(lane[0]);
  }
  return merge_sums(sums);
}

}  // namespace

float lane_sum(std::span<const float> v) {
  return lane_reduce(v, [](float x, float lane) { return lane + x; });
}

float lane_sum_squares(std::span<const float> v) {
  return lane_reduce(v, [](float x, float lane) { return std::fma(x, x, lane); });
}

void rms_norm(std::span<const float> x, const float* w, float eps, float* y) {
  const float mean = lane_sum_squares(x) / static_cast<float>(x.size());
  const float r = 1.0f / std::sqrt(mean + eps);
  for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] * r) * w[i];
}

float fixed_exp(float x) {
  if (std::isnan(x)) return x;
  if (x <= -87.33654f) return 0.0f;
  if (x >= 88.72283f) return std::numeric_limits<float>::infinity();
  constexpr float kRound =
      12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer, to nearest even
  const float n = (x * 1.44269504f + kRound) - kRound;
  float r = std::fma(n, -0.693359375f, x);
  r = std::fma(n, 2.12194440e-4f, r);
  float p = 1.0f / 5040.0f;
  for (float c : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    p = std::fma(p, r, c);
  const int whole = static_cast<int>(n);
  const int left = whole >> 1;  // ⌊n/2⌋
  const auto power = [](int e) { return std::bit_cast<float>((e + 127) << 23); };
  return (p * power(left)) * power(whole - left);
}

float silu(float g) { return g / (1.0f + fixed_exp(-g)); }

uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

void absorb_tile(Partial& partial, std::span<float> scores, const float* latents, size_t stride) {
  float m = partial.empty ? -std::numeric_limits<float>::infinity() : partial.m;
  for (float score : scores) m = score > m || std::isnan(score) ? score : m;
  const float alpha = partial.empty ? 0.0f : fixed_exp(partial.m - m);
  for (float& score : scores) score = fixed_exp(score - m);
  partial.l = std::fma(partial.l, alpha, lane_sum(scores));
  for (float& o : partial.o) o = o * alpha;
  chain(scores, latents, stride, partial.o);  // o = fma(p_s, c_s, o), ascending s
  partial.m = m;
  partial.empty = false;
}

namespace {

void merge_pair(Partial& a, Partial& b) {
  if (b.empty) return;
  if (a.empty) {
    std::swap(a, b);
    return;
  }
  const float m = std::max(a.m, b.m);
  const float ea = fixed_exp(a.m - m), eb = fixed_exp(b.m - m);
  a.l = std::fma(a.l, ea, b.l * eb);
  for (size_t r = 0; r < a.o.size(); ++r) a.o[r] = std::fma(a.o[r], ea, b.o[r] * eb);
  a.m = m;
}

}  // namespace

void merge_spans(std::span<Partial> spans) {
  for (size_t step = 1; step < spans.size(); step *= 2)
    for (size_t i = 0; i + step < spans.size(); i += 2 * step)
      merge_pair(spans[i], spans[i + step]);
}

}  // namespace model
