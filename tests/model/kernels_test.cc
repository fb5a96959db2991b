// The float kernels against the scalar rules of docs/NUMERICS.md, on every instruction set that
// this machine has: not close, equal.
#include "model/kernel_targets.h"
// after kernel_targets
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>

#include "model/multiply.h"
#include "model/multiply_fast.h"
#include "tests/model/matrices.h"

namespace model {
namespace {

using testing::pack;
using testing::random_values;
using testing::row_of;

// Each instruction set in turn.
class KernelsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { use(GetParam()); }
  void TearDown() override { use(0); }
  static void use(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

std::vector<int64_t> targets() {
  std::vector<int64_t> out;
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1)
    out.push_back(rest & -rest);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Targets, KernelsTest, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return hwy::TargetName(info.param); });

struct Engine {
  explicit Engine(uint32_t threads, bool verify = true) : pool(threads), integrity(verify) {}
  ThreadPool pool;
  Integrity integrity;
  Compute compute{pool, integrity};
};

// y[r][j] = dot(x[r], w[j]), the rule itself.
std::vector<float> dots(const std::vector<float>& w, const std::vector<float>& x, uint32_t inputs,
                        uint32_t outputs, uint32_t rows) {
  std::vector<float> y;
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t j = 0; j < outputs; ++j)
      y.push_back(dot(row_of(x, inputs, r), row_of(w, inputs, j)));
  return y;
}

TEST_P(KernelsTest, MultiplyHasTheBitsOfDotAtEverySizeAndRowCount) {
  Engine engine(1);
  for (uint32_t inputs : {1u, 15u, 33u, 256u, 257u, 700u, 1024u, 1801u}) {
    for (uint32_t outputs : {1u, 16u, 17u, 50u, 96u}) {
      for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBf16}) {
        const std::vector<float> w =
            random_values(size_t{inputs} * outputs, inputs, format == WeightFormat::kBf16);
        const std::vector<float> x = random_values(size_t{inputs} * 19, outputs);
        const PackedMatrix packed = pack(outputs, inputs, format, w);
        std::vector<float> want = dots(w, x, inputs, outputs, 19);
        for (uint32_t rows : {19u, 13u, 9u, 8u, 7u, 6u, 5u, 4u, 3u, 2u, 1u}) {
          std::vector<float> y(size_t{outputs} * rows, -1.0f);
          multiply(engine.compute, {&packed, x.data(), inputs, rows, y.data(), outputs});
          want.resize(y.size());
          ASSERT_EQ(std::memcmp(want.data(), y.data(), y.size() * sizeof(float)), 0)
              << inputs << "x" << outputs << ", " << rows << " rows of " << name_of(format);
        }
      }
    }
  }
  EXPECT_EQ(engine.integrity.transient_faults(), 0u);
  EXPECT_FALSE(engine.integrity.broken()) << engine.integrity.reason();
}

TEST_P(KernelsTest, MultiplyDoesNotDependOnThreadsAndTiles) {
  const uint32_t inputs = 300, outputs = 600, rows = 130;
  const std::vector<float> w = random_values(size_t{inputs} * outputs, 1);
  const std::vector<float> x = random_values(size_t{inputs} * rows, 2);
  const PackedMatrix packed = pack(outputs, inputs, WeightFormat::kF32, w);
  const std::vector<float> small = random_values(40 * size_t{inputs}, 3);
  const PackedMatrix narrow = pack(40, inputs, WeightFormat::kF32, small);
  const std::vector<float> want = dots(w, x, inputs, outputs, rows);
  const std::vector<float> want_small = dots(small, x, inputs, 40, rows);
  for (uint32_t threads : {1u, 2u, 3u}) {
    for (bool verify : {true, false}) {
      Engine engine(threads, verify);
      std::vector<float> y(size_t{outputs} * rows), z(size_t{40} * rows);
      const Product both[] = {{&narrow, x.data(), inputs, rows, z.data(), 40},
                              {&packed, x.data(), inputs, rows, y.data(), outputs}};
      multiply(engine.compute, both);
      EXPECT_EQ(std::memcmp(want.data(), y.data(), y.size() * sizeof(float)), 0);
      EXPECT_EQ(std::memcmp(want_small.data(), z.data(), z.size() * sizeof(float)), 0);
      EXPECT_EQ(engine.integrity.rows_checked(), verify ? 2 * rows : 0u);
      EXPECT_FALSE(engine.integrity.broken()) << engine.integrity.reason();
    }
  }
}

TEST_P(KernelsTest, MultiplyGatedIsSiluOfOneProductTimesTheOther) {
  const uint32_t inputs = 270, outputs = 600;
  std::vector<std::vector<float>> gates, ups, xs, ys;
  std::vector<PackedMatrix> packed;
  const uint32_t rows[] = {1, 0, 5, 33};
  for (uint64_t i = 0; i < 4; ++i) {
    gates.push_back(random_values(size_t{inputs} * outputs, 10 + i, true));
    ups.push_back(random_values(size_t{inputs} * outputs, 20 + i, true));
    xs.push_back(random_values(size_t{inputs} * rows[i], 30 + i));
    ys.emplace_back(size_t{outputs} * rows[i]);
    packed.push_back(pack(outputs, inputs, WeightFormat::kBf16, gates[i]));
    packed.push_back(pack(outputs, inputs, WeightFormat::kBf16, ups[i]));
  }
  for (uint32_t threads : {1u, 2u}) {
    Engine engine(threads);
    std::vector<GatedProduct> products;
    for (size_t i = 0; i < 4; ++i)
      products.push_back({&packed[2 * i], &packed[2 * i + 1], xs[i].data(), rows[i], ys[i].data()});
    multiply_gated(engine.compute, products);
    for (size_t i = 0; i < 4; ++i) {
      for (uint32_t r = 0; r < rows[i]; ++r) {
        for (uint32_t j = 0; j < outputs; ++j) {
          const float gate = dot(row_of(xs[i], inputs, r), row_of(gates[i], inputs, j));
          const float up = dot(row_of(xs[i], inputs, r), row_of(ups[i], inputs, j));
          ASSERT_EQ(silu(gate) * up, ys[i][size_t{r} * outputs + j]) << i << " " << r << " " << j;
        }
      }
    }
    EXPECT_EQ(engine.integrity.rows_checked(), 39u);
    EXPECT_FALSE(engine.integrity.broken()) << engine.integrity.reason();
  }
}

TEST_P(KernelsTest, ExpHasTheBitsOfTheScalarForm) {
  std::vector<float> x;
  for (float v = -100.0f; v < 100.0f; v += 0.0137f) x.push_back(v);
  for (float v : {0.0f, -0.0f, 88.72283f, -87.33654f, INFINITY, -INFINITY, 1e-30f}) x.push_back(v);
  std::vector<float> y = x;
  exp_in_place(y);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(fixed_exp(x[i]), y[i]) << x[i];
}

TEST_P(KernelsTest, NormHasTheBitsOfTheScalarForm) {
  for (uint32_t n : {1u, 16u, 100u, 256u, 300u, 1536u}) {
    const std::vector<float> x = random_values(n, n), w = random_values(n, n + 1);
    std::vector<float> ours(n), theirs(n);
    rms_norm(x, w.data(), 1e-5f, theirs.data());
    rms_norm_rows({.rows = 1, .n = n, .x_stride = n, .y_stride = n, .eps = 1e-5f, .scale = 1},
                  x.data(), w.data(), ours.data());
    EXPECT_EQ(std::memcmp(ours.data(), theirs.data(), n * sizeof(float)), 0) << n;
  }
}

TEST_P(KernelsTest, TheArithmeticDigestIsTheReferences) {
  ModelConfig config;
  config.rope = 64;
  config.rope_theta = 1e6;
  EXPECT_EQ(arithmetic_digest(local_ops(), Rope(config)),
            arithmetic_digest(reference_ops(), Rope(config)));
}

// In "fast" mode many rows go through OpenBLAS: right within rounding, verified within wider
// bounds.
TEST(FastMode, ProductsAreRightAndVerified) {
  if (!fast_available()) return;  // a build without OpenBLAS has no such mode
  const uint32_t inputs = 600, outputs = 1100, rows = 40;
  for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBf16}) {
    const std::vector<float> w = random_values(size_t{inputs} * outputs, 1, true);
    const std::vector<float> x = random_values(size_t{inputs} * rows, 2);
    PackedMatrix packed = pack(outputs, inputs, format, w);
    const std::vector<float> want = dots(w, x, inputs, outputs, rows);
    ThreadPool pool(2);
    Integrity integrity;
    const Compute compute{pool, integrity, NumericsMode::kFast};
    std::vector<float> y(want.size()), few(y.size());
    multiply(compute, {&packed, x.data(), inputs, rows, y.data(), outputs});
    // u · 600 roundings · Σ |x| |w| ≤ 2^-24 · 600 · 600 / 4
    for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(want[i], y[i], 0.0054);
    EXPECT_NE(std::memcmp(want.data(), y.data(), y.size() * sizeof(float)), 0);
    EXPECT_EQ(integrity.transient_faults(), 0u);
    EXPECT_EQ(integrity.rows_unverifiable(), 0u);
    multiply(compute, {&packed, x.data(), inputs, kFastRows - 1, few.data(), outputs});
    EXPECT_EQ(std::memcmp(want.data(), few.data(), (kFastRows - 1) * outputs * sizeof(float)), 0);
    packed.mutable_data()[packed.bytes() / 2 + 3] ^= std::byte{0x40};  // an exponent
    multiply(compute, {&packed, x.data(), inputs, rows, y.data(), outputs});
    EXPECT_TRUE(integrity.broken());
  }
}

TEST(PackedMatrix, TakesRowsInAnyPortionsAndAlignment) {
  for (uint32_t inputs : {1u, 2u, 31u, 64u, 259u}) {
    const uint32_t outputs = 53;
    const std::vector<float> w = random_values(size_t{inputs} * outputs, inputs, true);
    for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBf16}) {
      const PackedMatrix whole = pack(outputs, inputs, format, w);
      PackedMatrix parts(outputs, inputs, format);
      for (uint32_t at = 0; at < outputs;) {
        const uint32_t count = std::min(7u, outputs - at);
        parts.set_rows(at, count, w.data() + size_t{at} * inputs);
        at += count;
      }
      std::vector<std::byte> stored(1);  // so that what follows stands at an odd address
      for (float v : w) {
        const uint16_t half = to_bf16(v);
        const auto* bytes = format == WeightFormat::kF32
                                ? reinterpret_cast<const std::byte*>(&v)
                                : reinterpret_cast<const std::byte*>(&half);
        stored.insert(stored.end(), bytes, bytes + (format == WeightFormat::kF32 ? 4 : 2));
      }
      PackedMatrix raw(outputs, inputs, format);
      raw.set_stored_rows(0, outputs, stored.data() + 1);
      ASSERT_EQ(whole.bytes(), raw.bytes());
      EXPECT_EQ(std::memcmp(whole.data(), parts.data(), whole.bytes()), 0);
      EXPECT_EQ(std::memcmp(whole.data(), raw.data(), whole.bytes()), 0);
    }
  }
}

}  // namespace
}  // namespace model
