// The rules of docs/NUMERICS.md against their definitions, spelled out once more by hand.
#include "model/numerics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"

namespace {

using model::ModelConfig;
using model::Partial;
using model::TokenId;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> noise(size_t n, uint64_t seed, float scale = 1.0f) {
  base::Rng rng(seed);
  std::vector<float> out(n);
  for (float& v : out) v = static_cast<float>(rng.uniform() * 2 - 1) * scale;
  return out;
}
uint32_t bits(float x) { return std::bit_cast<uint32_t>(x); }

// --- reductions

TEST(Merge, AddsNeighboursAndMovesTheOddOneUp) {
  const auto v = noise(7, 1, 1e4f);
  const auto merged = [&](size_t n) {
    std::vector<float> sums(v.begin(), v.begin() + static_cast<ptrdiff_t>(n));
    return model::merge_sums(sums);
  };
  EXPECT_EQ(merged(0), 0.0f);
  EXPECT_EQ(merged(1), v[0]);
  EXPECT_EQ(merged(3), (v[0] + v[1]) + v[2]);
  EXPECT_EQ(merged(5), ((v[0] + v[1]) + (v[2] + v[3])) + v[4]);
  EXPECT_EQ(merged(6), ((v[0] + v[1]) + (v[2] + v[3])) + (v[4] + v[5]));
  EXPECT_EQ(merged(7), ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6]));
}

TEST(Dot, ChainsInsideSegmentsOf256AndMergesThem) {
  const auto x = noise(600, 2), w = noise(600, 3);
  const auto chain = [&](size_t begin, size_t end) {
    float acc = 0;
    for (size_t k = begin; k < end; ++k) acc = std::fma(x[k], w[k], acc);
    return acc;
  };
  EXPECT_EQ(model::dot(std::span(x).first(256), std::span(w).first(256)), chain(0, 256));
  EXPECT_EQ(model::dot(std::span(x).first(257), std::span(w).first(257)),
            chain(0, 256) + chain(256, 257));
  EXPECT_EQ(model::dot(x, w), (chain(0, 256) + chain(256, 512)) + chain(512, 600));
}

TEST(Dot, ColumnsHaveTheBitsOfDot) {
  for (const size_t depth : {1u, 40u, 255u, 256u, 257u, 700u, 1030u}) {
    for (const size_t columns : {1u, 7u, 63u, 64u, 65u, 130u}) {
      const auto x = noise(depth, depth), w = noise(depth * columns, columns);
      std::vector<float> y(columns), column(depth);
      model::dot_columns(x, w.data(), y);
      for (size_t j = 0; j < columns; ++j) {
        for (size_t k = 0; k < depth; ++k) column[k] = w[k * columns + j];
        ASSERT_EQ(bits(y[j]), bits(model::dot(x, column))) << depth << " " << j;
      }
    }
  }
}

TEST(LaneSum, AddsSixteenLanesAndFoldsThem) {
  const auto v = noise(300, 4);
  const auto segment = [&](size_t begin, size_t end, bool squares) {
    std::array<float, 16> lane{};
    for (size_t i = begin; i < end; ++i) {
      float& l = lane[(i - begin) % 16];
      l = squares ? std::fma(v[i], v[i], l) : l + v[i];
    }
    for (size_t l = 0; l < 8; ++l) lane[l] += lane[l + 8];
    for (size_t l = 0; l < 4; ++l) lane[l] += lane[l + 4];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
  };
  EXPECT_EQ(model::lane_sum(std::span(v).first(10)), segment(0, 10, false));
  EXPECT_EQ(model::lane_sum(v), segment(0, 256, false) + segment(256, 300, false));
  EXPECT_EQ(model::lane_sum_squares(v), segment(0, 256, true) + segment(256, 300, true));
}

TEST(RmsNorm, ScalesToUnitMeanSquareAndMayWriteInPlace) {
  auto x = noise(96, 5, 7.0f);
  const auto w = noise(96, 6);
  const float r = 1.0f / std::sqrt(model::lane_sum_squares(x) / 96.0f + 1e-5f);
  std::vector<float> y(96);
  model::rms_norm(x, w.data(), 1e-5f, y.data());
  for (size_t i = 0; i < 96; ++i) EXPECT_EQ(y[i], (x[i] * r) * w[i]);
  model::rms_norm(x, w.data(), 1e-5f, x.data());
  EXPECT_EQ(x, y);
}

// --- elementary functions

TEST(Exp, IsWithinTwoUnitsInTheLastPlace) {
  double worst = 0;
  for (double x = -87.3; x < 88.7; x += 0.00173) {
    const auto f = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(f));
    const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::abs(static_cast<double>(model::fixed_exp(f)) - exact) / unit);
  }
  EXPECT_LT(worst, 2.0);
}

TEST(Exp, HasItsDocumentedEnds) {
  EXPECT_EQ(model::fixed_exp(0.0f), 1.0f);
  EXPECT_EQ(model::fixed_exp(-0.0f), 1.0f);
  EXPECT_EQ(model::fixed_exp(-87.33654f), 0.0f);
  EXPECT_EQ(model::fixed_exp(-kInf), 0.0f);
  EXPECT_EQ(model::fixed_exp(88.72283f), kInf);
  EXPECT_EQ(model::fixed_exp(kInf), kInf);
  EXPECT_TRUE(std::isnan(model::fixed_exp(kNan)));
  EXPECT_GT(model::fixed_exp(std::nextafter(-87.33654f, 0.0f)), 0.0f);
  EXPECT_LT(model::fixed_exp(std::nextafter(88.72283f, 0.0f)), kInf);
}

// Frozen: a change of these bits is a change of every stored KV row and every promised answer.
TEST(Exp, BitsAreFrozen) {
  uint32_t sum = 0;
  for (int i = -8700; i < 8870; ++i)
    sum = sum * 31 + bits(model::fixed_exp(static_cast<float>(i) * 0.01f));
  EXPECT_EQ(sum, 1324071718u);  // the same from exact rational arithmetic, rounded step by step
}

TEST(Silu, IsTheGateTimesItsSigmoid) {
  EXPECT_EQ(model::silu(0.0f), 0.0f);
  EXPECT_EQ(model::silu(3.0f), 3.0f / (1.0f + model::fixed_exp(-3.0f)));
  EXPECT_EQ(model::silu(-200.0f), -0.0f);
  EXPECT_EQ(model::silu(200.0f), 200.0f);
  EXPECT_TRUE(std::isnan(model::silu(kNan)));
}

TEST(Bf16, RoundsToNearestEven) {
  const auto rounded = [](uint32_t from) { return model::to_bf16(std::bit_cast<float>(from)); };
  EXPECT_EQ(rounded(0x3F800000), 0x3F80);
  EXPECT_EQ(rounded(0x3F808000), 0x3F80) << "a tie goes to even";
  EXPECT_EQ(rounded(0x3F818000), 0x3F82) << "a tie goes to even";
  EXPECT_EQ(rounded(0x3F808001), 0x3F81);
  EXPECT_EQ(rounded(0x7F7FFFFF), 0x7F80) << "past the largest is infinity";
  EXPECT_EQ(rounded(0xFF800000), 0xFF80);
  EXPECT_TRUE(std::isnan(model::from_bf16(rounded(0x7F800001)))) << "NaN stays NaN";
  EXPECT_EQ(rounded(0x80000000), 0x8000);
  for (uint32_t b = 0; b < 0x7F80; ++b)
    ASSERT_EQ(model::to_bf16(model::from_bf16(static_cast<uint16_t>(b))), b);
}

// --- rotary embedding

ModelConfig rope_config(double theta, uint32_t rope) {
  ModelConfig config;
  config.rope_theta = theta;
  config.rope = rope;
  return config;
}

TEST(Rope, PlainFrequenciesArePowersOfTheta) {
  const model::Rope rope(rope_config(1e6, 64));
  ASSERT_EQ(rope.pairs(), 32u);
  for (uint32_t i = 0; i < 32; ++i)
    EXPECT_EQ(rope.inv_freq()[i], static_cast<float>(std::pow(1e6, -2.0 * i / 64)));
}

// LongCat-2.0: pairs up to 8 as trained, from 17 on divided by 120, a ramp between.
TEST(Rope, YarnKeepsFastPairsAndDividesSlowOnes) {
  ModelConfig config = rope_config(1e6, 64);
  const model::Rope plain(config);
  config.yarn.emplace();
  config.yarn->factor = 120;
  config.yarn->original_max_position = 8192;
  const model::Rope yarn(config);
  for (uint32_t i = 0; i < 32; ++i) {
    const double ratio =
        static_cast<double>(yarn.inv_freq()[i]) / static_cast<double>(plain.inv_freq()[i]);
    const double ramp = std::clamp((i - 8.0) / 9.0, 0.0, 1.0);
    EXPECT_NEAR(ratio, 1 - ramp + ramp / 120, 1e-6) << i;
  }
  std::array<float, 32> cos, sin;
  yarn.angles(0, cos.data(), sin.data());
  EXPECT_EQ(cos[5], 1.0f) << "mscale and mscale_all_dim are equal, so the multiplier is 1";
}

TEST(Rope, AnglesAreF32ProductsAndPairsTurnByThem) {
  const model::Rope rope(rope_config(1e4, 8));
  std::array<float, 4> cos, sin;
  rope.angles(1234, cos.data(), sin.data());
  std::array<float, 8> x{1, 2, 3, 4, 5, 6, 7, 8}, halves = x;
  model::rotate_pairs(x.data(), 4, cos.data(), sin.data());
  model::rotate_halves(halves.data(), 4, cos.data(), sin.data());
  for (size_t i = 0; i < 4; ++i) {
    const float angle = 1234.0f * rope.inv_freq()[i];
    EXPECT_EQ(cos[i], static_cast<float>(std::cos(static_cast<double>(angle))));
    const float a = static_cast<float>(2 * i + 1), b = a + 1;
    EXPECT_EQ(x[2 * i], std::fma(a, cos[i], -(b * sin[i])));
    EXPECT_EQ(x[2 * i + 1], std::fma(b, cos[i], a * sin[i]));
    const float c = static_cast<float>(i + 1), d = c + 4;
    EXPECT_EQ(halves[i], std::fma(c, cos[i], -(d * sin[i])));
    EXPECT_EQ(halves[i + 4], std::fma(d, cos[i], c * sin[i]));
  }
}

// --- n-gram rows

ModelConfig longcat2_ngram() {
  ModelConfig config;
  config.vocab = 163840;
  config.eos = {2, 7};
  config.ngram.emplace();
  config.ngram->ratio = 100.567;
  config.ngram->order = 5;
  config.ngram->splits = 4;
  return config;
}

// The hash of the ids u, newest first, in 128-bit arithmetic without intermediate reductions.
uint64_t hash_of(const ModelConfig& config, const std::vector<uint64_t>& u, uint32_t table) {
  __extension__ typedef unsigned __int128 Wide;
  const uint64_t modulus = config.ngram_rows(table);
  Wide sum = 0, power = 1;
  for (uint32_t d = 0; d < table / config.ngram->splits + 2; ++d) {
    sum += u[d] * (power % modulus);
    power *= config.vocab;
  }
  return static_cast<uint64_t>(sum % modulus);
}

void expect_ids(const std::vector<TokenId>& before, TokenId token, std::vector<uint64_t> u) {
  const ModelConfig config = longcat2_ngram();
  std::vector<uint64_t> ids(config.ngram->tables());
  model::ngram_ids(config, before, token, ids.data());
  u.resize(5, 0);
  for (uint32_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], hash_of(config, u, i)) << i;
}

TEST(NgramIds, HashTheLastIdsNewestFirst) {
  EXPECT_EQ(longcat2_ngram().ngram_rows(0), 16476898u);
  expect_ids({163839, 163838, 163837, 163836}, 163835, {163835, 163836, 163837, 163838, 163839});
  expect_ids({9, 8, 163839, 163838, 163837, 163836}, 5, {5, 163836, 163837, 163838, 163839});
}

TEST(NgramIds, StopAtTheStartOfTheSequence) {
  expect_ids({}, 11, {11});
  expect_ids({12}, 11, {11, 12});
  expect_ids({0, 12}, 0, {0, 12, 0});
}

TEST(NgramIds, StopAtAnEarlierEosButNotAtTheCurrentOne) {
  expect_ids({5, 6, 2, 12}, 11, {11, 12});
  expect_ids({5, 6, 12, 2}, 11, {11});
  expect_ids({4, 5, 6, 12}, 2, {2, 12, 6, 5, 4});
  expect_ids({5, 6, 7, 12}, 11, {11, 12, 7, 6, 5});  // only the first EOS separates
}

// --- choices

ModelConfig router_config() {
  ModelConfig config;
  config.topk = 3;
  config.routed_scaling = 6;
  return config;
}

TEST(SelectExperts, TakesTheHighestAndScalesTheUnbiasedProbability) {
  std::vector<float> logits{0.5f, 2.0f, 1.0f, -1.0f, 1.5f};
  const std::vector<float> bias(5, 0.0f);
  std::vector<float> p = logits;
  for (float& v : p) v = model::fixed_exp(v - 2.0f);
  const float sum = model::lane_sum(p);
  uint32_t ids[3];
  float weights[3];
  model::select_experts(router_config(), logits, bias, ids, weights);
  EXPECT_EQ((std::vector<uint32_t>(ids, ids + 3)), (std::vector<uint32_t>{1, 2, 4}));
  for (size_t k = 0; k < 3; ++k) EXPECT_EQ(weights[k], p[ids[k]] / sum * 6.0f);
}

TEST(SelectExperts, BiasMovesTheChoiceOnlyAndTiesGoToTheLowerId) {
  std::vector<float> logits(6, 0.0f);
  std::vector<float> bias{0, 0, 0, 0, 0.5f, -0.1f};
  uint32_t ids[3];
  float weights[3];
  model::select_experts(router_config(), logits, bias, ids, weights);
  EXPECT_EQ((std::vector<uint32_t>(ids, ids + 3)), (std::vector<uint32_t>{0, 1, 4}));
  for (float w : weights) EXPECT_EQ(w, 1.0f / 6.0f * 6.0f);
}

TEST(SelectExperts, NormalisesOnlyWhenTheModelSaysSo) {
  ModelConfig config = router_config();
  config.norm_topk_prob = true;
  std::vector<float> logits{3, 1, 2, 0};
  const std::vector<float> bias(4, 0.0f);
  uint32_t ids[3];
  float weights[3];
  model::select_experts(config, logits, bias, ids, weights);
  EXPECT_NEAR(weights[0] + weights[1] + weights[2], 6.0f, 1e-5f);
}

TEST(SelectExperts, NanLogitsStillGiveDistinctIds) {
  std::vector<float> logits{kNan, 1, 2, 3, kNan};
  const std::vector<float> bias(5, 0.0f);
  uint32_t ids[3];
  float weights[3];
  model::select_experts(router_config(), logits, bias, ids, weights);
  EXPECT_TRUE(ids[0] < ids[1] && ids[1] < ids[2] && ids[2] < 5);
  EXPECT_TRUE(std::isnan(weights[0]));
}

model::IndexerConfig indexer(uint32_t topk, uint32_t init, uint32_t local) {
  model::IndexerConfig config;
  config.topk = topk;
  config.init_tokens = init;
  config.local_tokens = local;
  return config;
}

TEST(SelectPositions, TakeAllWithinTheBudget) {
  std::vector<uint32_t> out;
  model::select_positions(indexer(5, 1, 2), std::vector<float>{5, 4, 3, 2, 1}, out);
  EXPECT_EQ(out, (std::vector<uint32_t>{0, 1, 2, 3, 4}));
}

TEST(SelectPositions, ForceSinkAndLocalInsideTheBudgetAndFillByScore) {
  std::vector<uint32_t> out;
  //                         sink                              local
  const std::vector<float> scores{-9, 1, 7, 3, 7, 7, -5, 2, -8, -9};
  model::select_positions(indexer(5, 1, 2), scores, out);
  EXPECT_EQ(out, (std::vector<uint32_t>{0, 2, 4, 8, 9})) << "equal scores: the lower position";
  model::select_positions(indexer(6, 1, 2), scores, out);
  EXPECT_EQ(out, (std::vector<uint32_t>{0, 2, 4, 5, 8, 9}));
  model::select_positions(indexer(7, 1, 2), scores, out);
  EXPECT_EQ(out, (std::vector<uint32_t>{0, 2, 3, 4, 5, 8, 9}));
}

TEST(SelectPositions, TreatBothZerosAsEqual) {
  std::vector<uint32_t> out;
  model::select_positions(indexer(3, 1, 1), std::vector<float>{9, -0.0f, 0.0f, -0.0f, 9}, out);
  EXPECT_EQ(out, (std::vector<uint32_t>{0, 1, 4}));
}

// --- attention partials

struct Attended {
  std::vector<float> scores, latents;
};
constexpr size_t kWidth = 5;
Attended attended(size_t n, uint64_t seed) {
  return {noise(n, seed, 8), noise(n * kWidth, seed + 1)};
}

Partial empty() {
  Partial partial;
  partial.o.assign(kWidth, 0.0f);
  return partial;
}
void absorb(Partial& partial, const Attended& all, size_t begin, size_t end) {
  std::vector<float> scores(all.scores.begin() + static_cast<ptrdiff_t>(begin),
                            all.scores.begin() + static_cast<ptrdiff_t>(end));
  model::absorb_tile(partial, scores, all.latents.data() + begin * kWidth, kWidth);
}
void expect_softmax(const Partial& partial, const Attended& all) {
  const double most = *std::max_element(all.scores.begin(), all.scores.end());
  double sum = 0;
  std::vector<double> o(kWidth, 0.0);
  for (size_t s = 0; s < all.scores.size(); ++s) {
    const double p = std::exp(static_cast<double>(all.scores[s]) - most);
    sum += p;
    for (size_t r = 0; r < kWidth; ++r)
      o[r] += p * static_cast<double>(all.latents[s * kWidth + r]);
  }
  for (size_t r = 0; r < kWidth; ++r)
    EXPECT_NEAR(static_cast<double>(partial.o[r] / partial.l), o[r] / sum, 1e-5);
}

TEST(AbsorbTile, IsTheSoftmaxOverAllTiles) {
  const Attended all = attended(300, 10);
  Partial partial = empty();
  for (size_t begin = 0; begin < 300; begin += model::kTile)
    absorb(partial, all, begin, std::min<size_t>(begin + model::kTile, 300));
  expect_softmax(partial, all);
}

TEST(AbsorbTile, FollowsItsRecurrence) {
  const Attended all = attended(20, 11);
  Partial partial = empty();
  absorb(partial, all, 0, 12);
  const Partial before = partial;
  absorb(partial, all, 12, 20);
  const float m = std::max(before.m, *std::max_element(all.scores.begin() + 12, all.scores.end()));
  const float alpha = model::fixed_exp(before.m - m);
  std::vector<float> p;
  for (size_t s = 12; s < 20; ++s) p.push_back(model::fixed_exp(all.scores[s] - m));
  EXPECT_EQ(partial.m, m);
  EXPECT_EQ(partial.l, std::fma(before.l, alpha, model::lane_sum(p)));
  for (size_t r = 0; r < kWidth; ++r) {
    float o = before.o[r] * alpha;
    for (size_t s = 0; s < 8; ++s) o = std::fma(p[s], all.latents[(12 + s) * kWidth + r], o);
    EXPECT_EQ(partial.o[r], o);
  }
}

TEST(AbsorbTile, ANanScoreIsNotSwallowed) {
  Attended all = attended(4, 12);
  all.scores[1] = kNan;
  Partial partial = empty();
  absorb(partial, all, 0, 4);
  EXPECT_TRUE(std::isnan(partial.l));
}

TEST(MergeSpans, PairsByIndexAndPassesTheOtherUpWhenOneIsAbsent) {
  const Attended all = attended(90, 13);
  std::vector<Partial> parts(3, empty());
  for (size_t i = 0; i < 3; ++i) absorb(parts[i], all, 30 * i, 30 * (i + 1));

  std::vector<Partial> spans{parts[0], empty(), parts[1], parts[2]};
  model::merge_spans(spans);
  expect_softmax(spans[0], all);

  std::vector<Partial> pair{parts[1], parts[2]};  // spans 2 and 3 meet first
  model::merge_spans(pair);
  std::vector<Partial> ends{parts[0], pair[0]};
  model::merge_spans(ends);
  EXPECT_EQ(spans[0].m, ends[0].m);
  EXPECT_EQ(spans[0].l, ends[0].l);
  EXPECT_EQ(spans[0].o, ends[0].o);
}

TEST(MergeSpans, FollowsItsFormula) {
  const Attended all = attended(20, 14);
  Partial a = empty(), b = empty();
  absorb(a, all, 0, 10);
  absorb(b, all, 10, 20);
  std::vector<Partial> spans{a, b};
  model::merge_spans(spans);
  const float m = std::max(a.m, b.m);
  const float ea = model::fixed_exp(a.m - m), eb = model::fixed_exp(b.m - m);
  EXPECT_EQ(spans[0].l, std::fma(a.l, ea, b.l * eb));
  for (size_t r = 0; r < kWidth; ++r) EXPECT_EQ(spans[0].o[r], std::fma(a.o[r], ea, b.o[r] * eb));
}

// --- digest

TEST(ArithmeticDigest, SeesEveryOperationAndTheRopeTable) {
  const model::Rope rope(rope_config(1e6, 16));
  const base::Hash128 reference = model::arithmetic_digest(model::reference_ops(), rope);
  EXPECT_EQ(model::arithmetic_digest(model::reference_ops(), rope), reference);
  EXPECT_NE(model::arithmetic_digest(model::reference_ops(), model::Rope(rope_config(1e7, 16))),
            reference);
  model::ProbedOps ops = model::reference_ops();
  ops.exp = [](std::span<float> values) {
    for (float& v : values) v = std::exp(v);  // libm's, one bit off somewhere
  };
  EXPECT_NE(model::arithmetic_digest(ops, rope), reference);
  ops = model::reference_ops();
  ops.project = [](std::span<const float> x, std::span<const float> w, std::span<float> y) {
    for (size_t j = 0; j < y.size(); ++j)  // one chain instead of segments
      y[j] = std::inner_product(x.begin(), x.end(),
                                w.begin() + static_cast<ptrdiff_t>(j * x.size()), 0.0f);
  };
  EXPECT_NE(model::arithmetic_digest(ops, rope), reference);
}

}  // namespace
