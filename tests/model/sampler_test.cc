#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

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

}  // namespace
