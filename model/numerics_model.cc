// The rules of numerics.h that depend on a model's configuration: rotary angles, n-gram rows,
// expert and position choices, and the arithmetic digest.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/check.h"
#include "base/rng.h"
#include "model/numerics.h"
#include "model/numerics_int.h"

namespace model {
namespace {

// YaRN's attention factor: g(f, m) = 0.1 · m · ln f + 1, 1 when f ≤ 1.
double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// How much of pair i is interpolated (0: as trained, 1: divided by the factor).
class YarnRamp {
 public:
  YarnRamp(const YarnConfig& yarn, double dim, double theta) {
    const auto corr = [&](double rotations) {
      return dim * std::log(yarn.original_max_position / (2 * std::numbers::pi * rotations)) /
             (2 * std::log(theta));
    };
    low_ = std::max(std::floor(corr(yarn.beta_fast)), 0.0);
    high_ = std::min(std::ceil(corr(yarn.beta_slow)), dim - 1);
    if (high_ == low_) high_ += 0.001;
  }
  double at(uint32_t i) const { return std::clamp((i - low_) / (high_ - low_), 0.0, 1.0); }

 private:
  double low_, high_;
};

}  // namespace

// inv_freq[i] = θ^(−2i/dim), with YaRN times (1 − ramp_i) + ramp_i / factor; all in f64.
Rope::Rope(const ModelConfig& config) : inv_freq_(config.rope / 2) {
  const double dim = config.rope;
  for (uint32_t i = 0; i < pairs(); ++i) {
    double frequency = std::pow(config.rope_theta, -2.0 * i / dim);
    if (config.yarn) {
      const double ramp = YarnRamp(*config.yarn, dim, config.rope_theta).at(i);
      frequency *= (1 - ramp) + ramp / config.yarn->factor;
    }
    inv_freq_[i] = static_cast<float>(frequency);
  }
  if (config.yarn) {
    multiplier_ = yarn_mscale(config.yarn->factor, config.yarn->mscale) /
                  yarn_mscale(config.yarn->factor, config.yarn->mscale_all_dim);
  }
}

void Rope::angles(uint32_t position, float* cos, float* sin) const {
  for (size_t i = 0; i < inv_freq_.size(); ++i) {
    const float angle = static_cast<float>(position) * inv_freq_[i];
    cos[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * multiplier_);
    sin[i] = static_cast<float>(std::sin(static_cast<double>(angle)) * multiplier_);
  }
}

namespace {
void rotate(float& a, float& b, float cos, float sin) {
  const float x = a, y = b;
  a = std::fma(x, cos, -(y * sin));
  b = std::fma(y, cos, x * sin);
}
}  // namespace

void rotate_pairs(float* x, uint32_t pairs, const float* cos, const float* sin) {
  for (uint32_t i = 0; i < pairs; ++i) rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
}

void rotate_halves(float* x, uint32_t pairs, const float* cos, const float* sin) {
  for (uint32_t i = 0; i < pairs; ++i) rotate(x[i], x[i + pairs], cos[i], sin[i]);
}

// Table i = (n − 2) · splits + j hashes the last n ids: (Σ_d u_d · (V^d mod M)) mod M with
// M = rows of table i, u_0 = token, u_d = the id d back, 0 from the sequence start or an EOS on.
void ngram_ids(const ModelConfig& config, std::span<const TokenId> before, TokenId token,
               uint64_t* ids) {
  const NgramConfig& ngram = *config.ngram;
  std::vector<uint64_t> u(ngram.order, 0);
  u[0] = token;
  for (uint32_t d = 1; d < ngram.order && d <= before.size(); ++d) {
    const TokenId id = before[before.size() - d];
    if (!config.eos.empty() && id == config.eos[0]) break;
    u[d] = id;
  }
  for (uint32_t i = 0; i < ngram.tables(); ++i) {
    const uint32_t n = i / ngram.splits + 2;
    const uint64_t modulus = config.ngram_rows(i);
    uint64_t sum = 0, power = 1;
    for (uint32_t d = 0; d < n; ++d) {
      sum += u[d] * power;
      power = power * config.vocab % modulus;
    }
    ids[i] = sum % modulus;
  }
}

namespace {

// An integer that orders as the float does, −0 and +0 alike; NaN above all.
uint32_t ordered(float x) {
  if (std::isnan(x)) return 0xFFFFFFFFu;
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Larger is better: the higher value, then the lower index.
uint64_t preference(float value, uint32_t index) {
  return static_cast<uint64_t>(ordered(value)) << 32 | (0xFFFFFFFFu - index);
}
uint32_t index_of(uint64_t preference) { return 0xFFFFFFFFu - static_cast<uint32_t>(preference); }

}  // namespace

void select_experts(const ModelConfig& config, std::span<float> logits, std::span<const float> bias,
                    uint32_t* ids, float* weights) {
  const float most = *std::max_element(logits.begin(), logits.end());
  for (float& logit : logits) logit = fixed_exp(logit - most);
  const float sum = lane_sum(logits);
  for (float& p : logits) p = p / sum;
  const std::span<const float> p = logits;

  std::vector<uint64_t> order(p.size());
  for (uint32_t i = 0; i < p.size(); ++i) order[i] = preference(p[i] + bias[i], i);
  std::partial_sort(order.begin(), order.begin() + config.topk, order.end(), std::greater<>());
  for (uint32_t k = 0; k < config.topk; ++k) ids[k] = index_of(order[k]);
  std::sort(ids, ids + config.topk);

  float chosen = 0.0f;
  for (uint32_t k = 0; k < config.topk; ++k) chosen += p[ids[k]];
  for (uint32_t k = 0; k < config.topk; ++k) {
    const float weight = config.norm_topk_prob ? p[ids[k]] / (chosen + 1e-20f) : p[ids[k]];
    weights[k] = weight * static_cast<float>(config.routed_scaling);
  }
}

void select_highest(std::span<const float> values, size_t need, std::vector<uint32_t>& out) {
  if (need == 0) return;
  if (need >= values.size()) {
    for (uint32_t i = 0; i < values.size(); ++i) out.push_back(i);
    return;
  }
  // Narrows the range of keys that holds the last one to take, by histograms.
  constexpr uint32_t kBins = 2048;
  thread_local std::vector<uint32_t> keys, within;
  keys.resize(values.size());
  uint32_t low = UINT32_MAX, high = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t key = ordered(values[i]);
    keys[i] = key;
    low = std::min(low, key);
    high = std::max(high, key);
  }
  std::span<const uint32_t> candidates = keys;  // those in [low, high]
  size_t left = need;                           // to take of them
  while (low < high) {
    const uint32_t width = static_cast<uint32_t>(std::bit_width(high - low));
    const uint32_t shift = width > 11 ? width - 11 : 0;
    std::array<uint32_t, kBins> bins{};
    for (const uint32_t key : candidates) ++bins[(key - low) >> shift];
    uint32_t bin = (high - low) >> shift;
    for (; bins[bin] < left; --bin) left -= bins[bin];
    const uint32_t first = low + (bin << shift);
    size_t n = 0;
    if (candidates.data() == keys.data()) within.resize(keys.size());
    for (const uint32_t key : candidates) {
      within[n] = key;
      n += ((key - low) >> shift) == bin ? 1 : 0;
    }
    candidates = std::span(within).first(n);
    low = first;
    high = first + ((1u << shift) - 1);
  }
  const size_t at = out.size();
  out.resize(at + need);
  uint32_t* to = out.data() + at;
  for (uint32_t i = 0; i < keys.size() && to != out.data() + out.size(); ++i) {
    const bool equal = keys[i] == low && left > 0;
    *to = i;
    to += keys[i] > low || equal ? 1 : 0;
    left -= equal ? 1 : 0;
  }
}

ForcedPositions forced_positions(const IndexerConfig& indexer, uint32_t count) {
  ForcedPositions forced;
  forced.sink_end = std::min({indexer.init_tokens, count, indexer.topk});
  const uint32_t local_begin = count - std::min(indexer.local_tokens, count);
  forced.local_begin = std::max(local_begin, std::min(indexer.init_tokens, count));
  forced.local_end = std::min(count, forced.local_begin + (indexer.topk - forced.sink_end));
  forced.free = indexer.topk - forced.sink_end - (forced.local_end - forced.local_begin);
  return forced;
}

void select_positions(const IndexerConfig& indexer, std::span<const float> scores,
                      std::vector<uint32_t>& out) {
  const auto count = static_cast<uint32_t>(scores.size());
  out.clear();
  if (count <= indexer.topk) {
    out.resize(count);
    std::iota(out.begin(), out.end(), 0u);
    return;
  }
  const ForcedPositions forced = forced_positions(indexer, count);
  for (uint32_t s = 0; s < forced.sink_end; ++s) out.push_back(s);
  if (forced.free > 0) {
    const uint32_t begin = forced.sink_end;
    select_highest(scores.subspan(begin, forced.local_begin - begin), forced.free, out);
    for (size_t i = begin; i < out.size(); ++i) out[i] += begin;
  }
  for (uint32_t s = forced.local_begin; s < forced.local_end; ++s) out.push_back(s);
}

ProbedOps reference_ops() {
  ProbedOps ops;
  ops.project = [](std::span<const float> x, std::span<const float> w, std::span<float> y) {
    for (size_t j = 0; j < y.size(); ++j) y[j] = dot(x, w.subspan(j * x.size(), x.size()));
  };
  ops.project_codes = int_dots;
  ops.rms_norm = [](std::span<const float> x, const float* w, float eps, float* y) {
    rms_norm(x, w, eps, y);
  };
  ops.exp = [](std::span<float> values) {
    for (float& v : values) v = fixed_exp(v);
  };
  ops.silu = [](std::span<float> values) {
    for (float& v : values) v = silu(v);
  };
  ops.absorb_tile = absorb_tile;
  return ops;
}

base::Hash128 arithmetic_digest(const ProbedOps& ops, const Rope& rope) {
  constexpr size_t kDepth = 700, kOutputs = 19, kSpread = 96, kLatent = 24;
  base::Rng rng(/*seed=*/1);
  const auto draw = [&](size_t n, float scale) {
    std::vector<float> values(n);
    for (float& v : values) v = (static_cast<float>(rng.uniform()) - 0.5f) * 2.0f * scale;
    return values;
  };
  std::vector<float> results;
  const auto keep = [&](std::span<const float> values) {
    results.insert(results.end(), values.begin(), values.end());
  };
  const std::vector<float> x = draw(kDepth, 3.0f), w = draw(kDepth * kOutputs, 1.0f);
  std::vector<float> y(kOutputs);
  ops.project(x, w, y);
  keep(y);
  std::vector<int8_t> codes(kDepth * kOutputs);
  for (const uint32_t group : {0u, 32u}) {
    const size_t depth = group == 0 ? kDepth : kDepth / group * group;
    for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(rng.below(16)) - 8);
    ops.project_codes(std::span(x).first(depth), codes.data(), w.data(), group, y);
    keep(y);
  }
  std::vector<float> norm(kDepth);
  ops.rms_norm(x, w.data(), 1e-5f, norm.data());
  keep(norm);
  std::vector<float> exps = draw(kSpread, 90.0f), gates = draw(kSpread, 20.0f);
  ops.exp(exps);
  ops.silu(gates);
  keep(exps);
  keep(gates);
  Partial partial;
  partial.o.assign(kLatent, 0.0f);
  for (const size_t tile : {size_t{kTile}, size_t{37}}) {
    std::vector<float> scores = draw(tile, 9.0f);
    const std::vector<float> latents = draw(tile * kLatent, 1.0f);
    ops.absorb_tile(partial, scores, latents.data(), kLatent);
  }
  keep(partial.o);
  keep(std::array{partial.m, partial.l});
  std::vector<float> cos(rope.pairs()), sin(rope.pairs());
  for (const uint32_t position : {1u, 4095u, 131071u}) {
    rope.angles(position, cos.data(), sin.data());
    keep(cos);
    keep(sin);
  }
  return base::hash128(std::as_bytes(std::span(results)));
}

}  // namespace model
