#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "model/kernels.h"
#include "model/numerics.h"

namespace model {
namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();

bool contains(std::span<const TokenId> ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Divides (multiplies, if negative) the logit of every distinct token of both once.
void penalise_repetition(std::span<const TokenId> prompt, std::span<const TokenId> emitted,
                         float penalty, std::span<float> logits) {
  std::vector<bool> seen(logits.size(), false);
  for (const std::span<const TokenId> ids : {prompt, emitted}) {
    for (const TokenId id : ids) {
      if (id >= logits.size() || seen[id]) continue;
      seen[id] = true;
      logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }
  }
}

// logit −= count · frequency;  logit −= presence: for every distinct emitted token.
void penalise_emitted(std::span<const TokenId> emitted, float frequency, float presence,
                      std::span<float> logits) {
  std::vector<uint32_t> counts(logits.size(), 0);
  for (const TokenId id : emitted)
    if (id < logits.size()) ++counts[id];
  for (const TokenId id : emitted) {
    if (id >= logits.size() || counts[id] == 0) continue;
    logits[id] -= static_cast<float>(counts[id]) * frequency;
    logits[id] -= presence;
    counts[id] = 0;
  }
}

bool bars_ends(const SampleInput& in, const base::Sampling& sampling) {
  return in.emitted.size() < sampling.min_tokens;
}

void bar(std::span<const TokenId> ids, std::span<float> logits) {
  for (const TokenId id : ids)
    if (id < logits.size()) logits[id] = kBarred;
}

// What the constraint forbids. An end that min_tokens bars stays possible where nothing else is.
void constrain(const SampleInput& in, const base::Sampling& sampling, std::span<float> logits) {
  const std::span<const uint64_t> allowed = in.constraint->allowed(in.emitted);
  CHECK(!allowed.empty(), "the {} tokens before break the constraint", in.emitted.size());
  std::vector<float> ends;  // as they were, while min_tokens bars them
  const auto each_end = [&](auto&& visit) {
    for (const std::span<const TokenId> ids : {in.eos, std::span(sampling.stop_tokens)})
      for (const TokenId id : ids)
        if (id < logits.size()) visit(id);
  };
  if (bars_ends(in, sampling)) {
    each_end([&](TokenId id) { ends.push_back(logits[id]); });
    each_end([&](TokenId id) { logits[id] = kBarred; });
  }
  for (size_t begin = 0; begin < logits.size(); begin += 64) {
    const uint64_t word = begin / 64 < allowed.size() ? allowed[begin / 64] : 0;
    if (word == ~uint64_t{0}) continue;  // most masks are nearly full or nearly empty
    const size_t end = std::min(begin + 64, logits.size());
    for (size_t id = begin; id < end; ++id)
      if ((word >> (id - begin) & 1) == 0) logits[id] = kBarred;
  }
  if (ends.empty() || std::ranges::any_of(logits, [](float x) { return x != kBarred; })) return;
  const auto is_allowed = [allowed](size_t id) {
    return id / 64 < allowed.size() && (allowed[id / 64] >> (id % 64) & 1) != 0;
  };
  size_t i = 0;
  each_end([&](TokenId id) {
    if (is_allowed(id)) logits[id] = ends[i];
    ++i;
  });
}

// Bias, then penalties, then what may not come.
std::vector<float> adjust(const SampleInput& in, const base::Sampling& sampling) {
  std::vector<float> logits(in.logits.begin(), in.logits.end());
  for (const auto& [id, bias] : sampling.logit_bias)
    if (id < logits.size()) logits[id] += bias;

  if (sampling.repetition_penalty != 1.0f)
    penalise_repetition(in.prompt, in.emitted, sampling.repetition_penalty, logits);
  if (sampling.frequency_penalty != 0.0f || sampling.presence_penalty != 0.0f)
    penalise_emitted(in.emitted, sampling.frequency_penalty, sampling.presence_penalty, logits);
  if (in.constraint != nullptr) {
    constrain(in, sampling, logits);
  } else if (bars_ends(in, sampling)) {
    bar(in.eos, logits);
    bar(sampling.stop_tokens, logits);
  }
  return logits;
}

// An integer that orders as the logit does; −0 equals +0.
int32_t order_of(float logit) {
  const auto bits = std::bit_cast<int32_t>(logit + 0.0f);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

// Ids by (logit descending, id ascending), as many as are asked for. Selects instead of sorting:
// the n-th largest of the maxima of blocks bounds the n-th largest logit from below, so only ids in
// blocks that reach it can be among the first n. The order is that of a whole sort.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : logits_(logits) {}

  size_t size() const { return logits_.size(); }
  // REQUIRES: i < size()
  TokenId operator[](size_t i) {
    expect(i + 1);
    return static_cast<TokenId>(entries_[i]);  // its lower half
  }
  // At least the first `n` from now on are at hand.
  void expect(size_t n) {
    if (n > entries_.size()) grow(n);
  }

 private:
  static constexpr size_t kBlock = 64, kFirst = 64, kGrowth = 8, kRadix = 2048;

  void grow(size_t wanted) {
    wanted = std::max({wanted, kFirst, entries_.size() * kGrowth});
    if (maxima_.empty()) find_maxima();
    entries_.clear();
    int32_t least = std::numeric_limits<int32_t>::min();
    if (wanted * 4 < maxima_.size()) {
      std::vector<int32_t> order = maxima_;
      const auto nth = order.begin() + static_cast<ptrdiff_t>(wanted - 1);
      std::nth_element(order.begin(), nth, order.end(), std::greater<>());
      least = *nth;
    }
    for (size_t block = 0; block < maxima_.size(); ++block)
      if (maxima_[block] >= least) take(block, least);
    if (entries_.size() < kRadix)
      std::sort(entries_.begin(), entries_.end());
    else
      radix_sort();
  }
  void find_maxima() {
    maxima_.resize((size() + kBlock - 1) / kBlock);
    for (size_t block = 0; block < maxima_.size(); ++block) {
      const size_t end = std::min(size(), (block + 1) * kBlock);
      int32_t most = std::numeric_limits<int32_t>::min();
      for (size_t i = block * kBlock; i < end; ++i) most = std::max(most, order_of(logits_[i]));
      maxima_[block] = most;
    }
  }
  void take(size_t block, int32_t least) {
    const size_t end = std::min(size(), (block + 1) * kBlock);
    for (size_t id = block * kBlock; id < end; ++id) {
      const int32_t order = order_of(logits_[id]);
      const uint32_t key = 0x7FFFFFFFu - static_cast<uint32_t>(order);  // ascending = descending
      if (order >= least) entries_.push_back(uint64_t{key} << 32 | id);
    }
  }
  // By key; stable, and the ids ascend already. Three passes of 11 bits.
  void radix_sort() {
    constexpr uint32_t kBits = 11, kBuckets = 1u << kBits;
    std::vector<uint64_t> other(entries_.size());
    for (uint32_t shift = 32; shift < 64; shift += kBits) {
      std::array<uint32_t, kBuckets + 1> begin{};
      for (const uint64_t e : entries_) ++begin[((e >> shift) & (kBuckets - 1)) + 1];
      for (uint32_t b = 0; b < kBuckets; ++b) begin[b + 1] += begin[b];
      for (const uint64_t e : entries_) other[begin[(e >> shift) & (kBuckets - 1)]++] = e;
      entries_.swap(other);
    }
  }

  const std::span<const float> logits_;
  std::vector<int32_t> maxima_;    // of each block of logits, as order_of
  std::vector<uint64_t> entries_;  // (key, id), ascending: a head of the ranking
};

// The lower id among equals.
TokenId largest(std::span<const float> logits) {
  int32_t most = std::numeric_limits<int32_t>::min();
  for (const float logit : logits) most = std::max(most, order_of(logit));
  size_t id = 0;
  while (order_of(logits[id]) != most) ++id;
  return static_cast<TokenId>(id);
}

// Probabilities are counted in whole units of 2⁻⁴⁴ of the most probable token's, so that their sum
// does not depend on the order in which it is taken.
uint64_t units_of(float weight) { return static_cast<uint64_t>(weight * 0x1p44f); }

// weight(id) = exp((logit − max) / T)
class Weights {
 public:
  Weights(std::span<const float> logits, float most, float temperature)
      : logits_(logits), most_(most), temperature_(temperature) {}
  float of(TokenId id) const { return fixed_exp((logits_[id] - most_) / temperature_); }
  // Of all ids together, in units.
  uint64_t total() const {
    constexpr size_t kAtOnce = 1024;
    float block[kAtOnce];
    uint64_t sum = 0;
    for (size_t begin = 0; begin < logits_.size(); begin += kAtOnce) {
      const size_t n = std::min(kAtOnce, logits_.size() - begin);
      for (size_t i = 0; i < n; ++i) block[i] = (logits_[begin + i] - most_) / temperature_;
      exp_in_place({block, n});
      for (size_t i = 0; i < n; ++i) sum += units_of(block[i]);
    }
    return sum;
  }

 private:
  const std::span<const float> logits_;
  const float most_, temperature_;
};

// How many of the ranking's head remain after top-k, top-p and min-p, and their units.
struct Kept {
  size_t count = 0;
  uint64_t units = 0;
};
Kept keep(Ranking& ranking, const Weights& weights, const base::Sampling& sampling) {
  const size_t most =
      sampling.top_k > 0 ? std::min<size_t>(sampling.top_k, ranking.size()) : ranking.size();
  const bool all = most == ranking.size();
  if (all && sampling.top_p >= 1.0f && sampling.min_p <= 0.0f)
    return {most, weights.total()};  // nothing cuts: no order is needed
  if (!all) ranking.expect(most);
  uint64_t enough = std::numeric_limits<uint64_t>::max();  // of top-p
  if (sampling.top_p < 1.0f) {
    uint64_t total = 0;
    if (all) total = weights.total();
    for (size_t i = 0; !all && i < most; ++i) total += units_of(weights.of(ranking[i]));
    const double share = static_cast<double>(sampling.top_p) * static_cast<double>(total);
    enough = std::min(total, static_cast<uint64_t>(std::ceil(share)));
  }
  Kept kept;
  while (kept.count < most && kept.units < enough) {
    const float weight = weights.of(ranking[kept.count]);
    if (kept.count > 0 && (weight < sampling.min_p || units_of(weight) == 0)) break;
    kept.units += units_of(weight);
    ++kept.count;
  }
  return kept;
}

TokenId draw(std::span<const float> logits, const base::Sampling& sampling, uint64_t index) {
  Ranking ranking(logits);
  const TokenId best = largest(logits);
  if (logits[best] == kBarred) return best;  // every token is barred
  const Weights weights(logits, logits[best], sampling.temperature);
  const Kept kept = keep(ranking, weights, sampling);
  const double share = base::uniform_at(sampling.seed, sampling.choice, index);  // [0, 1)
  const auto units = static_cast<uint64_t>(share * static_cast<double>(kept.units));
  const uint64_t target = std::min(units, kept.units - 1);  // the product may have rounded up
  uint64_t sum = 0;
  for (size_t i = 0; i < kept.count; ++i) {
    sum += units_of(weights.of(ranking[i]));
    if (sum > target) return ranking[i];
  }
  CHECK(false, "{} of {} units were counted", sum, kept.units);
  return best;
}

base::TokenLogprobs logprobs_of(std::span<const float> logits, TokenId chosen, uint32_t count) {
  const float most = logits[largest(logits)];
  std::vector<float> weights(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) weights[i] = logits[i] - most;
  exp_in_place(weights);
  double sum = 0;
  for (const float weight : weights) sum += static_cast<double>(weight);
  const double log_sum = std::log(sum) + static_cast<double>(most);
  const auto logprob = [&](TokenId id) {
    return static_cast<float>(static_cast<double>(logits[id]) - log_sum);
  };
  base::TokenLogprobs out;
  out.logprob = logprob(chosen);
  if (count == 0) return out;
  Ranking ranking(logits);
  const size_t top = std::min<size_t>(count, logits.size());
  ranking.expect(top);
  for (size_t i = 0; i < top; ++i) out.top.emplace_back(ranking[i], logprob(ranking[i]));
  return out;
}

}  // namespace

Sampled sample(const SampleInput& input, const base::Sampling& sampling) {
  CHECK(!input.logits.empty(), "nothing to sample from");
  const std::vector<float> logits = adjust(input, sampling);
  Sampled out;
  out.token =
      sampling.temperature <= 0.0f ? largest(logits) : draw(logits, sampling, input.emitted.size());
  if (sampling.top_logprobs >= 0) {
    out.logprobs =
        logprobs_of(input.logits, out.token, static_cast<uint32_t>(sampling.top_logprobs));
  }
  return out;
}

base::FinishReason finish_after(std::span<const TokenId> emitted, std::span<const TokenId> eos,
                                const base::Sampling& sampling) {
  if (!emitted.empty()) {
    const TokenId last = emitted.back();
    if (!sampling.ignore_eos && contains(eos, last)) return base::FinishReason::kStop;
    if (contains(sampling.stop_tokens, last)) return base::FinishReason::kStop;
  }
  if (emitted.size() >= sampling.max_tokens) return base::FinishReason::kLength;
  return base::FinishReason::kNone;
}

}  // namespace model
