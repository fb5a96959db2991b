// Integer products: every instruction set against the scalar rule, byte for byte, and every flipped
// bit found (R36, R37).
#include "model/kernels_int.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "base/rng.h"
#include "model/integrity.h"
#include "model/multiply.h"
#include "model/numerics.h"
#include "model/numerics_int.h"
#include "model/quantise.h"

namespace model {
namespace {

std::vector<float> values(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> out(n);
  for (float& v : out) v = static_cast<float>(rng.uniform()) - 0.5f;
  return out;
}

// Random codes over their whole range, with what they were packed from. group 0: int8.
struct Weights {
  Weights(uint32_t outputs, uint32_t inputs, uint32_t group, uint64_t seed)
      : packed(outputs, inputs, group != 0 ? WeightFormat::kInt4 : WeightFormat::kInt8, group),
        codes(size_t{outputs} * inputs) {
    base::Rng rng(seed);
    for (int8_t& code : codes)
      code = static_cast<int8_t>(group != 0 ? static_cast<int>(rng.below(16)) - 8
                                            : static_cast<int>(rng.below(255)) - 127);
    scales = values(size_t{outputs} * scales_in_row(), seed + 1);
    packed.set_codes(0, outputs, codes.data(), scales.data());
    packed.seal();
  }
  uint32_t scales_in_row() const {
    return packed.group() != 0 ? packed.inputs() / packed.group() : 1;
  }
  // By numerics_int.h.  y: [outputs]
  void apply(std::span<const float> x, float* y) const {
    const QuantisedActivations q = quantise_activations(x);
    for (size_t o = 0; o < packed.outputs(); ++o) {
      const int8_t* row = codes.data() + o * packed.inputs();
      const float* scale = scales.data() + o * scales_in_row();
      y[o] =
          packed.group() != 0 ? int4_dot(q, row, scale, packed.group()) : int8_dot(q, row, *scale);
    }
  }
  PackedMatrix packed;
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

// All panels of `w` on `rows` by `kernels`.
struct Outcome {
  std::vector<float> y;
  std::vector<uint32_t> checks;
  uint32_t scale_sum = 0;
};
Outcome run(const IntKernels& kernels, const PackedMatrix& w, const CodeRows& rows) {
  Outcome out;
  out.y.assign(size_t{rows.rows} * w.outputs(), -1.0f);
  out.checks.assign(rows.rows, 0);
  kernels.multiply(panels_of_codes(w, 0, w.panels()), rows, out.y.data(), w.outputs(),
                   {out.checks.data(), &out.scale_sum});
  return out;
}
std::vector<uint32_t> expected(const IntKernels& kernels, const PackedMatrix& w,
                               const CodeRows& rows) {
  std::vector<uint32_t> checks(rows.rows);
  kernels.expect(rows, w, checks.data());
  return checks;
}

void expect_rule(const Weights& w, const std::vector<float>& x, uint32_t most_rows) {
  const size_t outputs = w.packed.outputs(), inputs = w.packed.inputs();
  std::vector<float> want(most_rows * outputs);
  for (size_t r = 0; r < most_rows; ++r)
    w.apply(std::span(x).subspan(r * inputs, inputs), want.data() + r * outputs);
  for (const IntKernels* kernels : all_int_kernels()) {
    CodeBuffer buffer;
    for (uint32_t rows = 1; rows <= most_rows; rows += rows < 10 ? 1 : 9) {
      const CodeRows& q = buffer.resize(rows, w.packed.inputs());
      kernels->quantise(x.data(), inputs, q);
      const Outcome got = run(*kernels, w.packed, q);
      const size_t bytes = got.y.size() * sizeof(float);
      ASSERT_EQ(std::memcmp(got.y.data(), want.data(), bytes), 0)
          << kernels->name << ", " << inputs << " inputs, " << outputs << " outputs, group "
          << w.packed.group() << ", " << rows << " rows";
      ASSERT_EQ(got.checks, expected(*kernels, w.packed, q)) << kernels->name;
      ASSERT_EQ(got.scale_sum, w.packed.scale_sum()) << kernels->name;
      ASSERT_TRUE(kernels->intact(q)) << kernels->name;
    }
  }
}

TEST(IntKernels, EveryTargetHasTheBitsOfTheRule) {
  uint64_t seed = 1;
  for (const uint32_t inputs : {1u, 31u, 64u, 100u, 128u, 160u, 384u, 2048u, 2176u, 4224u, 8320u})
    for (const uint32_t outputs : {1u, 17u, 48u, 83u})
      for (const uint32_t group : {0u, 32u, 64u, 128u}) {
        if (group != 0 && inputs % group != 0) continue;
        const uint32_t rows = inputs > 3000 ? 10 : 28;
        expect_rule(Weights(outputs, inputs, group, seed), values(size_t{rows} * inputs, seed + 1),
                    rows);
        seed += 2;
      }
}

TEST(IntKernels, ZerosTinyValuesAndHugeOnesFollowTheRule) {
  constexpr uint32_t kInputs = 640;
  std::vector<float> x = values(4 * kInputs, 5);
  std::fill_n(x.begin(), 128, 0.0f);
  std::fill_n(x.begin() + 128, 128, 0x1p-101f);
  for (size_t i = 256; i < 384; ++i) x[i] *= 0x1p-98f;
  for (size_t i = kInputs; i < 2 * kInputs; ++i) x[i] *= 0x1p126f;
  x[2 * kInputs + 5] = -1e30f;  // one value that leaves nothing of its group's others
  expect_rule(Weights(33, kInputs, 0, 6), x, 4);
  expect_rule(Weights(33, kInputs, 64, 7), x, 4);
}

TEST(IntKernels, AValueThatIsNotFiniteMakesItsRowNaNAndNoOther) {
  constexpr uint32_t kInputs = 300, kRows = 10;
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
    std::vector<float> x = values(size_t{kRows} * kInputs, 8);
    x[4 * kInputs + 299] = bad;
    const Weights w(40, kInputs, 0, 9);
    expect_rule(w, x, kRows);
    std::vector<float> y(w.packed.outputs());
    for (uint32_t r = 0; r < kRows; ++r) {
      w.apply(std::span(x).subspan(r * kInputs, kInputs), y.data());
      for (const float v : y) ASSERT_EQ(std::isnan(v), r == 4);
    }
  }
}

// The scale is amax / 127 and codes are to the nearest, ties to even.
TEST(IntKernels, ActivationsAreRoundedToTheNearestEvenCode) {
  std::vector<float> x(128, 0.0f);
  x[0] = 127.0f;
  for (size_t i = 1; i < 128; ++i) x[i] = static_cast<float>(i) - 64.5f;
  const QuantisedActivations q = quantise_activations(x);
  ASSERT_EQ(q.scales, std::vector<float>{1.0f});
  for (size_t i = 1; i < 128; ++i) ASSERT_EQ(q.codes[i] % 2, 0) << x[i];
  ASSERT_EQ(q.codes[0], 127);
}

// --- flipped bits

TEST(IntChecks, EveryFlippedBitOfAnAccumulatorChangesTheCheck) {
  base::Rng rng(11);
  std::vector<uint32_t> accumulators(4096);
  for (uint32_t& a : accumulators) a = static_cast<uint32_t>(rng.next());
  const auto sum = [&] {
    uint32_t total = 0;
    for (const uint32_t a : accumulators) total += a;
    return total;
  };
  const uint32_t right = sum();
  for (uint32_t bit = 0; bit < 32; ++bit)
    for (int i = 0; i < 100; ++i) {
      uint32_t& a = accumulators[rng.below(accumulators.size())];
      a ^= 1u << bit;
      ASSERT_NE(sum(), right);
      a ^= 1u << bit;
    }
}

TEST(IntChecks, EveryFlippedBitOfActivationsIsFound) {
  constexpr uint32_t kInputs = 512, kRows = 5;
  base::Rng rng(12);
  for (const uint32_t group : {0u, 64u}) {
    const Weights w(64, kInputs, group, 13);
    const std::vector<float> x = values(size_t{kRows} * kInputs, 14);
    for (const IntKernels* kernels : all_int_kernels()) {
      CodeBuffer buffer;
      const CodeRows& q = buffer.resize(kRows, kInputs);
      kernels->quantise(x.data(), kInputs, q);
      const std::vector<uint32_t> right = expected(*kernels, w.packed, q);
      for (int bit = 0; bit < 8; ++bit)
        for (int i = 0; i < 100; ++i) {
          int8_t& code = q.codes[rng.below(kRows) * q.stride + rng.below(kInputs)];
          code = static_cast<int8_t>(code ^ (1 << bit));
          ASSERT_FALSE(kernels->intact(q)) << kernels->name << " bit " << bit;
          code = static_cast<int8_t>(code ^ (1 << bit));
        }
      for (int bit = 0; bit < 32; ++bit) {
        int32_t& sum = q.sums[rng.below(size_t{kRows} * q.units())];
        sum = static_cast<int32_t>(static_cast<uint32_t>(sum) ^ (1u << bit));
        ASSERT_FALSE(kernels->intact(q)) << kernels->name << " bit " << bit;
        sum = static_cast<int32_t>(static_cast<uint32_t>(sum) ^ (1u << bit));
      }
      ASSERT_EQ(run(*kernels, w.packed, q).checks, right);
    }
  }
}

// What multiply() says of products over weights of which one bit is flipped.
void expect_found(Weights& w, const std::function<void()>& flip, uint32_t rows) {
  ThreadPool threads(1);
  Integrity integrity;
  const Compute compute{threads, integrity};
  const uint32_t inputs = w.packed.inputs(), outputs = w.packed.outputs();
  const std::vector<float> x = values(size_t{rows} * inputs, 15);
  std::vector<float> y(size_t{rows} * outputs);
  multiply(compute, {&w.packed, x.data(), inputs, rows, y.data(), outputs});
  ASSERT_FALSE(integrity.broken()) << integrity.reason();
  flip();
  multiply(compute, {&w.packed, x.data(), inputs, rows, y.data(), outputs});
  ASSERT_TRUE(integrity.broken());
  ASSERT_NE(integrity.reason().find("changed in memory"), std::string::npos) << integrity.reason();
  ASSERT_EQ(integrity.transient_faults(), 0u);
  flip();
  ASSERT_TRUE(w.packed.codes_intact());
}

TEST(IntChecks, EveryFlippedBitOfWeightsBreaksTheEngineDown) {
  constexpr uint32_t kOutputs = 48, kInputs = 256;
  base::Rng rng(16);
  for (const uint32_t group : {0u, 32u, 128u}) {
    Weights w(kOutputs, kInputs, group, 17);
    for (int bit = 0; bit < 8; ++bit)
      for (int i = 0; i < 50; ++i) {
        std::byte& code = w.packed.mutable_data()[rng.below(w.packed.bytes())];
        expect_found(
            w, [&] { code ^= std::byte{1} << bit; }, static_cast<uint32_t>(1 + i % 9));
      }
    auto* scales = reinterpret_cast<uint32_t*>(const_cast<float*>(w.packed.scales()));
    const size_t count = size_t{kOutputs} * w.scales_in_row();
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t& scale = scales[rng.below(count)];
      expect_found(
          w, [&] { scale ^= 1u << bit; }, static_cast<uint32_t>(1 + bit % 9));
    }
  }
}

// Flips one bit of y, `times` times.
struct Flip {
  uint32_t row, output, bit;
  int times;
  static void apply(void* context, const PackedMatrix&, uint32_t row, float* y) {
    auto& flip = *static_cast<Flip*>(context);
    if (row != flip.row || flip.times == 0) return;
    --flip.times;
    uint32_t bits;
    std::memcpy(&bits, y + flip.output, sizeof bits);
    bits ^= 1u << flip.bit;
    std::memcpy(y + flip.output, &bits, sizeof bits);
  }
};

TEST(IntChecks, EveryFlippedBitOfAProductIsFoundAndMendedOrBreaksTheEngineDown) {
  constexpr uint32_t kOutputs = 50, kInputs = 200, kRows = 9;
  const Weights w(kOutputs, kInputs, 0, 18);
  const std::vector<float> x = values(size_t{kRows} * kInputs, 19);
  std::vector<float> right(size_t{kRows} * kOutputs), y(right.size());
  for (uint32_t r = 0; r < kRows; ++r)
    w.apply(std::span(x).subspan(r * kInputs, kInputs), right.data() + r * kOutputs);
  base::Rng rng(20);
  ThreadPool threads(2);
  for (uint32_t bit = 0; bit < 32; ++bit)
    for (const int times : {1, 2}) {
      Integrity integrity;
      const Compute compute{threads, integrity};
      Flip flip{static_cast<uint32_t>(rng.below(kRows)), static_cast<uint32_t>(rng.below(kOutputs)),
                bit, times};
      integrity.inject(Flip::apply, &flip);
      multiply(compute, {&w.packed, x.data(), kInputs, kRows, y.data(), kOutputs});
      ASSERT_EQ(flip.times, 0);
      ASSERT_EQ(integrity.broken(), times == 2);
      ASSERT_EQ(integrity.transient_faults(), times == 1 ? 1u : 0u);
      ASSERT_EQ(integrity.rows_checked(), kRows);
      if (times == 1) {
        ASSERT_EQ(y, right);
      }
    }
}

// --- regions

TEST(IntRegions, ThreadsFormatsAndSharedRowsMakeNoDifference) {
  constexpr uint32_t kInputs = 384;
  const Weights a(300, kInputs, 0, 21), b(40, kInputs, 64, 22), c(17, kInputs, 0, 23);
  PackedMatrix plain(70, kInputs, WeightFormat::kF32);
  const std::vector<float> w = values(size_t{70} * kInputs, 24);
  plain.set_rows(0, 70, w.data());
  plain.seal();
  for (const uint32_t rows : {1u, 3u, 200u}) {
    const std::vector<float> x = values(size_t{rows} * kInputs, 25);
    std::vector<float> want_a(size_t{rows} * 300), want_b(size_t{rows} * 40),
        want_c(size_t{rows} * 17);
    for (uint32_t r = 0; r < rows; ++r) {
      const auto row = std::span(x).subspan(r * kInputs, kInputs);
      a.apply(row, want_a.data() + r * 300);
      b.apply(row, want_b.data() + r * 40);
      c.apply(row, want_c.data() + r * 17);
    }
    for (const uint32_t count : {1u, 2u, 3u}) {
      ThreadPool threads(count);
      Integrity integrity;
      const Compute compute{threads, integrity};
      std::vector<float> y_a(want_a.size()), y_b(want_b.size()), y_c(want_c.size()),
          y_plain(size_t{rows} * 70);
      const Product products[] = {{&a.packed, x.data(), kInputs, rows, y_a.data(), 300},
                                  {&plain, x.data(), kInputs, rows, y_plain.data(), 70},
                                  {&b.packed, x.data(), kInputs, rows, y_b.data(), 40},
                                  {&c.packed, x.data(), kInputs, rows, y_c.data(), 17}};
      multiply(compute, products);
      EXPECT_EQ(y_a, want_a);
      EXPECT_EQ(y_b, want_b);
      EXPECT_EQ(y_c, want_c);
      EXPECT_EQ(y_plain[69], dot({x.data(), kInputs}, std::span(w).subspan(69 * kInputs, kInputs)));
      EXPECT_FALSE(integrity.broken()) << integrity.reason();
      EXPECT_EQ(integrity.transient_faults(), 0u);
    }
  }
}

TEST(IntRegions, GatedProductsAreSiluOfTheGateTimesUp) {
  constexpr uint32_t kInputs = 256, kOutputs = 150;
  for (const uint32_t group : {0u, 32u}) {
    const Weights gate(kOutputs, kInputs, group, 26), up(kOutputs, kInputs, group, 27);
    const Weights gate2(kOutputs, kInputs, group, 28), up2(kOutputs, kInputs, group, 29);
    for (const uint32_t rows : {1u, 7u, 40u}) {
      const std::vector<float> x = values(size_t{rows} * kInputs, 30);
      const std::vector<float> x2 = values(size_t{2} * kInputs, 31);
      std::vector<float> want(size_t{rows} * kOutputs), g(kOutputs), u(kOutputs);
      for (uint32_t r = 0; r < rows; ++r) {
        gate.apply(std::span(x).subspan(r * kInputs, kInputs), g.data());
        up.apply(std::span(x).subspan(r * kInputs, kInputs), u.data());
        for (uint32_t o = 0; o < kOutputs; ++o) want[r * kOutputs + o] = silu(g[o]) * u[o];
      }
      ThreadPool threads(2);
      Integrity integrity;
      const Compute compute{threads, integrity};
      std::vector<float> y(want.size()), y2(2 * kOutputs);
      const GatedProduct products[] = {{&gate.packed, &up.packed, x.data(), rows, y.data()},
                                       {&gate2.packed, &up2.packed, x2.data(), 2, y2.data()}};
      multiply_gated(compute, products);
      EXPECT_EQ(y, want);
      gate2.apply(std::span(x2).subspan(kInputs), g.data());
      up2.apply(std::span(x2).subspan(kInputs), u.data());
      EXPECT_EQ(y2.back(), silu(g.back()) * u.back());
      EXPECT_FALSE(integrity.broken()) << integrity.reason();
    }
  }
}

// --- accuracy

// ‖y − y*‖ / ‖y*‖ of int8 weights, made from f32 ones, against f64.
double relative_error(const std::vector<float>& w, const std::vector<float>& x, uint32_t inputs) {
  const auto outputs = static_cast<uint32_t>(w.size() / inputs);
  const QuantisedRows rows = quantise_int8(outputs, inputs, w.data());
  double off = 0, all = 0;
  for (size_t at = 0; at < x.size(); at += inputs) {
    const std::span<const float> row = std::span(x).subspan(at, inputs);
    const QuantisedActivations q = quantise_activations(row);
    for (size_t o = 0; o < outputs; ++o) {
      double exact = 0;
      for (size_t k = 0; k < inputs; ++k) exact += double{row[k]} * double{w[o * inputs + k]};
      const double got = int8_dot(q, rows.codes.data() + o * inputs, rows.scales[o]);
      off += (got - exact) * (got - exact);
      all += exact * exact;
    }
  }
  return std::sqrt(off / all);
}

std::vector<float> normal(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> out(n);
  for (float& v : out)
    v = static_cast<float>(std::sqrt(-2 * std::log(1 - rng.uniform())) *
                           std::cos(2 * 3.14159265358979 * rng.uniform()));
  return out;
}

TEST(IntAccuracy, IsOnePercentOnNormalRows) {
  constexpr uint32_t kInputs = 2048;
  const double error = relative_error(normal(64 * kInputs, 32), normal(16 * kInputs, 33), kInputs);
  RecordProperty("relative_error", std::to_string(error));
  EXPECT_LT(error, 0.012);
  EXPECT_GT(error, 0.004);  // of int8, not of f32
}

// One input in 256 is 40 times the others, as in the residual streams of large models: its group of
// 128 loses precision, the other groups keep theirs.
TEST(IntAccuracy, IsThreePercentOnRowsWithOutliers) {
  constexpr uint32_t kInputs = 2048;
  std::vector<float> x = normal(16 * kInputs, 34);
  for (size_t i = 0; i < x.size(); i += 256) x[i + 77] *= 40;
  const double error = relative_error(normal(64 * kInputs, 35), x, kInputs);
  RecordProperty("relative_error", std::to_string(error));
  EXPECT_LT(error, 0.03);
}

}  // namespace
}  // namespace model
