#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "model/numerics.h"

namespace model {
namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();

bool contains(std::span<const TokenId> ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// The distinct tokens of `ids` with how often they occur, ascending.
std::vector<std::pair<TokenId, uint32_t>> counts_of(std::vector<TokenId> ids) {
  std::sort(ids.begin(), ids.end());
  std::vector<std::pair<TokenId, uint32_t>> out;
  for (TokenId id : ids) {
    if (out.empty() || out.back().first != id) out.emplace_back(id, 0u);
    ++out.back().second;
  }
  return out;
}

// Bias, then penalties, then the bar on early ends.
std::vector<float> adjust(const SampleInput& in, const base::Sampling& sampling) {
  std::vector<float> logits(in.logits.begin(), in.logits.end());
  for (const auto& [id, bias] : sampling.logit_bias)
    if (id < logits.size()) logits[id] += bias;

  std::vector<TokenId> emitted(in.emitted.begin(), in.emitted.end());
  if (sampling.repetition_penalty != 1.0f) {
    std::vector<TokenId> seen = emitted;
    seen.insert(seen.end(), in.prompt.begin(), in.prompt.end());
    for (const auto& [id, count] : counts_of(std::move(seen))) {
      if (id >= logits.size()) continue;
      float& logit = logits[id];
      logit = logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
    }
  }
  if (sampling.frequency_penalty != 0.0f || sampling.presence_penalty != 0.0f) {
    for (const auto& [id, count] : counts_of(std::move(emitted))) {
      if (id >= logits.size()) continue;
      logits[id] -= static_cast<float>(count) * sampling.frequency_penalty;
      logits[id] -= sampling.presence_penalty;
    }
  }
  if (in.emitted.size() < sampling.min_tokens) {
    for (TokenId id : in.eos)
      if (id < logits.size()) logits[id] = kBarred;
    for (TokenId id : sampling.stop_tokens)
      if (id < logits.size()) logits[id] = kBarred;
  }
  return logits;
}

struct Candidate {
  TokenId id = 0;
  float weight = 0;  // e^((logit − max) / T)
};

// Ids by (logit descending, id ascending): a stable radix sort, three passes of 11 bits.
std::vector<TokenId> sorted_ids(std::span<const float> logits) {
  constexpr uint32_t kBits = 11, kBuckets = 1u << kBits;
  struct Entry {
    uint32_t key;
    TokenId id;
  };
  std::vector<Entry> entries(logits.size()), other(logits.size());
  for (uint32_t i = 0; i < logits.size(); ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(logits[i] + 0.0f);     // −0 becomes +0
    entries[i] = {(bits >> 31) != 0 ? bits : ~(bits | 0x80000000u), i};  // ascending = descending
  }
  for (uint32_t shift = 0; shift < 32; shift += kBits) {
    std::array<uint32_t, kBuckets + 1> begin{};
    for (const Entry& e : entries) ++begin[((e.key >> shift) & (kBuckets - 1)) + 1];
    for (uint32_t b = 0; b < kBuckets; ++b) begin[b + 1] += begin[b];
    for (const Entry& e : entries) other[begin[(e.key >> shift) & (kBuckets - 1)]++] = e;
    entries.swap(other);
  }
  std::vector<TokenId> ids(entries.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = entries[i].id;
  return ids;
}

TokenId largest(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double total_of(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += static_cast<double>(c.weight);
  return total;
}

TokenId draw(std::span<const float> logits, const base::Sampling& sampling, uint64_t index) {
  const std::vector<TokenId> ids = sorted_ids(logits);
  const float most = logits[ids[0]];
  size_t keep = ids.size();
  if (sampling.top_k > 0) keep = std::min<size_t>(keep, sampling.top_k);
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < keep; ++i) {
    const float weight = fixed_exp((logits[ids[i]] - most) / sampling.temperature);
    if (weight == 0.0f) break;  // nor has any after it
    candidates.push_back({ids[i], weight});
  }
  if (candidates.empty()) return ids[0];  // every token is barred
  if (sampling.top_p < 1.0f) {
    // The shortest head that holds top_p of the probability.
    const double enough = static_cast<double>(sampling.top_p) * total_of(candidates);
    double sum = 0;
    size_t n = 0;
    while (n < candidates.size() && (n == 0 || sum < enough))
      sum += static_cast<double>(candidates[n++].weight);
    candidates.resize(n);
  }
  // The most probable candidate's weight is 1.
  while (candidates.size() > 1 && candidates.back().weight < sampling.min_p) candidates.pop_back();

  const double target =
      base::uniform_at(sampling.seed, sampling.choice, index) * total_of(candidates);
  double sum = 0;
  for (const Candidate& c : candidates) {
    sum += static_cast<double>(c.weight);
    if (sum > target) return c.id;
  }
  return candidates.back().id;
}

base::TokenLogprobs logprobs_of(std::span<const float> logits, TokenId chosen, uint32_t count) {
  const float most = logits[largest(logits)];
  double sum = 0;
  for (float logit : logits) sum += static_cast<double>(fixed_exp(logit - most));
  const double log_sum = std::log(sum) + static_cast<double>(most);
  const auto logprob = [&](TokenId id) {
    return static_cast<float>(static_cast<double>(logits[id]) - log_sum);
  };
  base::TokenLogprobs out;
  out.logprob = logprob(chosen);
  if (count == 0) return out;
  const std::vector<TokenId> ids = sorted_ids(logits);
  for (size_t i = 0; i < std::min<size_t>(count, ids.size()); ++i)
    out.top.emplace_back(ids[i], logprob(ids[i]));
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
