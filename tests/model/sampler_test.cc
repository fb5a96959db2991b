#include "model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <limits>
#include <map>
#include <numeric>

#include "base/rng.h"
#include "model/numerics.h"

namespace {

using base::FinishReason;
using base::Sampling;
using model::SampleInput;
using model::TokenId;

// Draws at index emitted.size(); the index is moved by giving emitted tokens that no penalty reads.
TokenId draw(const std::vector<float>& logits, const Sampling& sampling,
             const std::vector<TokenId>& emitted = {}, const std::vector<TokenId>& prompt = {}) {
  const std::vector<TokenId> eos{2};
  return model::sample(SampleInput{logits, prompt, emitted, eos}, sampling).token;
}

std::map<TokenId, int> histogram(const std::vector<float>& logits, Sampling sampling, int draws) {
  std::map<TokenId, int> out;
  for (int i = 0; i < draws; ++i) {
    sampling.seed = static_cast<uint64_t>(i);
    ++out[draw(logits, sampling)];
  }
  return out;
}

TEST(Sampler, TemperatureZeroTakesTheLargestAndTheLowerIdAmongEquals) {
  Sampling sampling;
  sampling.temperature = 0;
  EXPECT_EQ(draw({1, 5, 3, 5}, sampling), 1u);
  EXPECT_EQ(draw({-3, -0.0f, 0.0f}, sampling), 1u);
}

TEST(Sampler, IsAFunctionOfSeedChoiceAndIndexAlone) {
  const std::vector<float> logits(64, 0.5f);
  Sampling sampling;
  sampling.seed = 7;
  const TokenId first = draw(logits, sampling);
  EXPECT_EQ(draw(logits, sampling), first);
  std::map<TokenId, int> seen;
  for (uint32_t choice = 0; choice < 20; ++choice) {
    sampling.choice = choice;
    ++seen[draw(logits, sampling)];
  }
  EXPECT_GT(seen.size(), 8u);
  seen.clear();
  for (size_t index = 0; index < 20; ++index)
    ++seen[draw(logits, sampling, std::vector<TokenId>(index, 1))];
  EXPECT_GT(seen.size(), 8u);
}

TEST(Sampler, FrequenciesFollowTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits{0, 1, 2, -1};
  constexpr int kDraws = 20000;
  for (float temperature : {1.0f, 0.5f}) {
    Sampling sampling;
    sampling.temperature = temperature;
    const auto seen = histogram(logits, sampling, kDraws);
    double sum = 0;
    for (float l : logits) sum += std::exp(l / temperature);
    for (TokenId id = 0; id < 4; ++id) {
      const double p = std::exp(logits[id] / temperature) / sum;
      const double deviation = std::sqrt(kDraws * p * (1 - p));
      const auto it = seen.find(id);
      EXPECT_NEAR(it == seen.end() ? 0 : it->second, kDraws * p, 5 * deviation + 1) << id;
    }
  }
}

TEST(Sampler, TopKTopPAndMinPKeepTheirCandidates) {
  const std::vector<float> logits{std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  Sampling sampling;
  sampling.top_k = 2;
  auto seen = histogram(logits, sampling, 300);
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen.count(1) == 1 && seen.count(3) == 1);

  sampling = {};
  sampling.top_p = 0.65f;  // 0.4 + 0.3 is the first to reach it
  seen = histogram(logits, sampling, 300);
  EXPECT_TRUE(seen.size() == 2 && seen.count(1) == 1 && seen.count(3) == 1);
  sampling.top_p = 0.75f;
  EXPECT_EQ(histogram(logits, sampling, 300).size(), 3u);
  sampling.top_p = 1e-6f;
  EXPECT_EQ(histogram(logits, sampling, 100).size(), 1u);

  sampling = {};
  sampling.min_p = 0.4f;  // of 0.4: at least 0.16
  seen = histogram(logits, sampling, 300);
  EXPECT_TRUE(seen.size() == 3 && seen.count(0) == 0);
}

TEST(Sampler, TopKKeepsTheLowerIdAmongEquals) {
  Sampling sampling;
  sampling.top_k = 2;
  const auto seen = histogram({1, 1, 1, 1}, sampling, 100);
  EXPECT_TRUE(seen.size() == 2 && seen.count(0) == 1 && seen.count(1) == 1);
}

TEST(Sampler, BiasAndPenaltiesMoveTheChoice) {
  Sampling sampling;
  sampling.temperature = 0;
  sampling.logit_bias = {{3, 10.0f}, {900, 5.0f}};
  EXPECT_EQ(draw({1, 2, 0, 0}, sampling), 3u);

  sampling = {};
  sampling.temperature = 0;
  sampling.presence_penalty = 0.6f;
  EXPECT_EQ(draw({1, 1.5f, 0, 0}, sampling, {1}), 0u);
  EXPECT_EQ(draw({1, 1.7f, 0, 0}, sampling, {1, 1}), 1u) << "presence counts once";
  EXPECT_EQ(draw({1, 1.5f, 0, 0}, sampling, {}, {1}), 1u) << "the prompt is not penalised";

  sampling = {};
  sampling.temperature = 0;
  sampling.frequency_penalty = 0.4f;
  EXPECT_EQ(draw({1, 1.5f, 0, 0}, sampling, {1}), 1u);
  EXPECT_EQ(draw({1, 1.5f, 0, 0}, sampling, {1, 1}), 0u);

  sampling = {};
  sampling.temperature = 0;
  sampling.repetition_penalty = 2.0f;
  EXPECT_EQ(draw({1, 1.5f, 0, 0}, sampling, {}, {1}), 0u) << "the prompt counts here";
  EXPECT_EQ(draw({-1, -0.6f, -5, -5}, sampling, {1}), 0u) << "a negative logit is multiplied";
}

TEST(Sampler, NoEndBeforeMinTokens) {
  Sampling sampling;
  sampling.temperature = 0;
  sampling.min_tokens = 2;
  sampling.stop_tokens = {3};
  const std::vector<float> logits{0, 1, 9, 8};
  EXPECT_EQ(draw(logits, sampling), 1u);
  EXPECT_EQ(draw(logits, sampling, {1}), 1u);
  EXPECT_EQ(draw(logits, sampling, {1, 1}), 2u);
}

TEST(Sampler, LogprobsAreOfTheRawSoftmaxDescending) {
  Sampling sampling;
  sampling.temperature = 0;
  sampling.top_logprobs = 2;
  sampling.logit_bias = {{0, 100.0f}};
  const std::vector<float> logits{0.5f, 2.0f, 1.0f, 2.0f};
  const std::vector<TokenId> eos{2};
  const auto out = model::sample(SampleInput{logits, {}, {}, eos}, sampling);
  EXPECT_EQ(out.token, 0u);
  double sum = 0;
  for (float l : logits) sum += std::exp(l);
  EXPECT_NEAR(out.logprobs.logprob, 0.5 - std::log(sum), 1e-6);
  ASSERT_EQ(out.logprobs.top.size(), 2u);
  EXPECT_EQ(out.logprobs.top[0].first, 1u);
  EXPECT_EQ(out.logprobs.top[1].first, 3u);
  EXPECT_NEAR(out.logprobs.top[0].second, 2.0 - std::log(sum), 1e-6);

  sampling.top_logprobs = -1;
  EXPECT_TRUE(model::sample(SampleInput{logits, {}, {}, eos}, sampling).logprobs.top.empty());
}

TEST(Sampler, ALargeVocabularyIsSortedExactly) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(static_cast<int>((i * 7919) % 4001) - 2000) / 64.0f;
  Sampling sampling;
  sampling.temperature = 0;
  sampling.top_logprobs = 5000;
  const std::vector<TokenId> eos;
  const auto out = model::sample(SampleInput{logits, {}, {}, eos}, sampling);
  ASSERT_EQ(out.logprobs.top.size(), logits.size());
  for (size_t i = 1; i < logits.size(); ++i) {
    const TokenId a = out.logprobs.top[i - 1].first, b = out.logprobs.top[i].first;
    ASSERT_TRUE(logits[a] > logits[b] || (logits[a] == logits[b] && a < b)) << i;
  }
}

constexpr size_t kVocab = 163840;

std::vector<float> large_logits(uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = static_cast<float>(rng.uniform() + rng.uniform()) * 6 - 6;
  for (size_t i = 0; i < 400; ++i) logits[rng.below(kVocab)] = 7.5f;  // equals at the top
  return logits;
}

// The rule of docs/NUMERICS.md, "Sampling", with a whole sort and no short cut.
TokenId draw_plainly(const std::vector<float>& logits, const Sampling& s, uint64_t index) {
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0u);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  if (s.top_k > 0) ids.resize(std::min<size_t>(ids.size(), s.top_k));
  const auto weight = [&](TokenId id) {
    return model::fixed_exp((logits[id] - logits[ids[0]]) / s.temperature);
  };
  const auto units = [&](TokenId id) { return static_cast<uint64_t>(weight(id) * 0x1p44f); };
  const auto total = [&] {
    uint64_t sum = 0;
    for (TokenId id : ids) sum += units(id);
    return sum;
  };
  const double enough = static_cast<double>(s.top_p) * static_cast<double>(total());
  uint64_t sum = 0;
  size_t n = 0;
  while (n < ids.size() && (n == 0 || s.top_p >= 1 || static_cast<double>(sum) < enough))
    sum += units(ids[n++]);
  ids.resize(n);
  while (ids.size() > 1 && weight(ids.back()) < s.min_p) ids.pop_back();
  const uint64_t all = total();
  const double share = base::uniform_at(s.seed, s.choice, index) * static_cast<double>(all);
  const uint64_t target = std::min(static_cast<uint64_t>(share), all - 1);
  sum = 0;
  for (TokenId id : ids)
    if ((sum += units(id)) > target) return id;
  return ids.back();
}

TEST(Sampler, SelectionGivesWhatAWholeSortGives) {
  base::Rng rng(5);
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const std::vector<float> logits = large_logits(seed);
    for (int turn = 0; turn < 12; ++turn) {
      Sampling sampling;
      sampling.seed = rng.next();
      sampling.temperature = turn % 3 == 0 ? 1.0f : turn % 3 == 1 ? 0.3f : 1.7f;
      if (turn % 2 == 0) sampling.top_k = static_cast<uint32_t>(1 + rng.below(1000));
      if (turn % 4 > 1) sampling.top_p = static_cast<float>(rng.uniform());
      if (turn % 5 == 4) sampling.min_p = static_cast<float>(rng.uniform()) * 0.2f;
      ASSERT_EQ(draw(logits, sampling), draw_plainly(logits, sampling, 0)) << turn;
    }
  }
}

// Pearson's χ² of seeded draws against the exact distribution: 99.99 % quantiles.
TEST(Sampler, DrawsPassAChiSquareTest) {
  std::vector<float> logits(24);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>((i * 7) % 24) / 6.0f - 2.0f;
  struct Case {
    float temperature;
    uint32_t top_k;
    float top_p;
    double limit;  // of χ² with (candidates − 1) degrees of freedom
  };
  // 23, 7 and 11 degrees of freedom.
  for (const Case& c :
       {Case{1.0f, 0, 1.0f, 56.5}, Case{0.7f, 8, 1.0f, 29.9}, Case{1.3f, 12, 1.0f, 37.4}}) {
    Sampling sampling;
    sampling.temperature = c.temperature;
    sampling.top_k = c.top_k;
    sampling.top_p = c.top_p;
    constexpr int kDraws = 40000;
    const auto seen = histogram(logits, sampling, kDraws);
    std::vector<TokenId> order(logits.size());
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
    if (c.top_k > 0) order.resize(c.top_k);
    double sum = 0, chi = 0;
    int counted = 0;
    for (TokenId id : order) sum += std::exp(logits[id] / c.temperature);
    for (TokenId id : order) {
      const double expected = kDraws * std::exp(logits[id] / c.temperature) / sum;
      const auto it = seen.find(id);
      const int count = it == seen.end() ? 0 : it->second;
      chi += (count - expected) * (count - expected) / expected;
      counted += count;
    }
    EXPECT_EQ(counted, kDraws) << "nothing outside the candidates";
    EXPECT_LT(chi, c.limit) << c.temperature;
    EXPECT_GT(chi, 0.1) << "draws of different seeds are not arranged";
  }
}

TEST(Sampler, ChoicesAreIndependentAndIndexesToo) {
  // Two equal tokens: neighbouring choices and indexes agree half of the time.
  const std::vector<float> logits{0, 0};
  Sampling a, b;
  int same_choice = 0, same_index = 0;
  for (uint32_t i = 0; i < 4000; ++i) {
    a.seed = b.seed = i;
    b.choice = 1;
    same_choice += draw(logits, a) == draw(logits, b);
    same_index += draw(logits, a) == draw(logits, a, {9});
  }
  EXPECT_NEAR(same_choice, 2000, 200);
  EXPECT_NEAR(same_index, 2000, 200);
}

TEST(Sampler, EverythingBarredGivesTheLowestId) {
  Sampling sampling;
  sampling.seed = 1;
  const float barred = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(draw({barred, barred, barred}, sampling), 0u);
  EXPECT_EQ(draw({barred, 1.0f, barred}, sampling), 1u);
}

TEST(Sampler, IgnoringEosStillDrawsIt) {
  Sampling sampling;
  sampling.temperature = 0;
  sampling.ignore_eos = true;
  sampling.min_tokens = 1;
  EXPECT_EQ(draw({0, 1, 9, 8}, sampling), 3u) << "min_tokens bars it all the same";
  EXPECT_EQ(draw({0, 1, 9, 8}, sampling, {1}), 2u);
}

// Thread time, so that neighbours do not count; the best of several, so that a cold cache does not.
double best_milliseconds(const std::vector<float>& logits, Sampling sampling) {
  const std::vector<TokenId> eos{2};
  double best = 1e9;
  for (uint64_t turn = 0; turn < 9; ++turn) {
    sampling.seed = turn;
    timespec begin{}, end{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    const TokenId token = model::sample(SampleInput{logits, {}, {}, eos}, sampling).token;
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    EXPECT_LT(token, logits.size());
    best = std::min(best, static_cast<double>(end.tv_sec - begin.tv_sec) * 1e3 +
                              static_cast<double>(end.tv_nsec - begin.tv_nsec) * 1e-6);
  }
  return best;
}

TEST(Sampler, ALargeVocabularyIsSampledQuickly) {
  const std::vector<float> logits = large_logits(1);
  Sampling greedy, top_k, top_p, plain, logprobs;
  greedy.temperature = 0;
  top_k.top_k = 40;
  top_p.top_p = 0.9f;
  top_p.temperature = 0.3f;
  logprobs.temperature = 0;
  logprobs.top_logprobs = 20;
  const double greedy_ms = best_milliseconds(logits, greedy);
  const double top_k_ms = best_milliseconds(logits, top_k);
  std::printf("greedy %.3f ms, top-k %.3f, top-p %.3f, plain %.3f, logprobs %.3f\n", greedy_ms,
              top_k_ms, best_milliseconds(logits, top_p), best_milliseconds(logits, plain),
              best_milliseconds(logits, logprobs));
#ifdef NDEBUG  // other builds are not made for speed
  EXPECT_LT(greedy_ms, 1.0);
  EXPECT_LT(top_k_ms, 1.0);
#endif
}

TEST(FinishAfter, NamesTheReason) {
  const std::vector<TokenId> eos{2, 9};
  Sampling sampling;
  sampling.max_tokens = 3;
  sampling.stop_tokens = {5};
  const auto after = [&](std::vector<TokenId> emitted) {
    return model::finish_after(emitted, eos, sampling);
  };
  EXPECT_EQ(after({}), FinishReason::kNone);
  EXPECT_EQ(after({1, 1}), FinishReason::kNone);
  EXPECT_EQ(after({1, 9}), FinishReason::kStop);
  EXPECT_EQ(after({5}), FinishReason::kStop);
  EXPECT_EQ(after({1, 1, 1}), FinishReason::kLength);
  EXPECT_EQ(after({1, 1, 2}), FinishReason::kStop);
  sampling.ignore_eos = true;
  EXPECT_EQ(after({1, 2}), FinishReason::kNone);
  EXPECT_EQ(after({5}), FinishReason::kStop);
}

// Allows the same tokens after whatever came.
struct Fixed final : model::Constraint {
  explicit Fixed(const std::vector<TokenId>& ids, size_t words) : mask(words, 0) {
    for (const TokenId id : ids) mask[id / 64] |= uint64_t{1} << (id % 64);
  }
  std::span<const uint64_t> allowed(std::span<const TokenId>) override { return mask; }
  TokenId only_token(std::span<const TokenId>) override { return kNoToken; }
  std::vector<uint64_t> mask;
};

TEST(Constraint, DrawsOnlyWhatIsAllowedByTheProbabilitiesThatAreLeft) {
  std::vector<float> logits(130, 1.0f);
  logits[3] = 9;
  logits[129] = 2;
  const std::vector<TokenId> eos{2};
  Fixed constraint({5, 64, 129}, 3);
  Sampling sampling;
  SampleInput input{logits, {}, {}, eos, &constraint};
  std::map<TokenId, int> seen;
  for (sampling.seed = 0; sampling.seed < 3000; ++sampling.seed)
    ++seen[model::sample(input, sampling).token];
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_NEAR(seen[129], 3000 * 0.576, 120);  // e / (e + 2)
  EXPECT_NEAR(seen[5], seen[64], 120);
  sampling.temperature = 0;
  EXPECT_EQ(model::sample(input, sampling).token, 129u);
  sampling.logit_bias = {{129, -50.0f}};
  EXPECT_EQ(model::sample(input, sampling).token, 5u);
  sampling.top_logprobs = 1;
  EXPECT_EQ(model::sample(input, sampling).logprobs.top[0].first, 3u) << "of the raw logits";
}

TEST(Constraint, ThatAllowsEverythingChangesNothing) {
  base::Rng rng(3);
  std::vector<float> logits(300);
  for (float& logit : logits) logit = static_cast<float>(rng.uniform() * 8);
  std::vector<TokenId> all(logits.size());
  std::iota(all.begin(), all.end(), 0u);
  Fixed constraint(all, 5);
  const std::vector<TokenId> eos{2}, emitted{4, 4, 9};
  Sampling sampling;
  sampling.frequency_penalty = 0.7f;
  sampling.min_tokens = 4;
  for (sampling.seed = 0; sampling.seed < 300; ++sampling.seed) {
    sampling.top_p = sampling.seed % 2 == 0 ? 1.0f : 0.8f;
    EXPECT_EQ(model::sample({logits, {}, emitted, eos, &constraint}, sampling).token,
              model::sample({logits, {}, emitted, eos}, sampling).token);
  }
}

TEST(Constraint, LetsAnAnswerEndBeforeMinTokensOnlyWhereNothingElseIsAllowed) {
  const std::vector<float> logits{1, 1, 9, 1};
  const std::vector<TokenId> eos{2};
  Sampling sampling;
  sampling.temperature = 0;
  sampling.min_tokens = 5;
  Fixed choice({1, 2}, 1), end({2}, 1), beyond({0, 70}, 2);
  EXPECT_EQ(model::sample({logits, {}, {}, eos, &choice}, sampling).token, 1u);
  EXPECT_EQ(model::sample({logits, {}, {}, eos, &end}, sampling).token, 2u);
  EXPECT_EQ(model::sample({logits, {}, {}, eos, &beyond}, sampling).token, 0u);
}

}  // namespace
