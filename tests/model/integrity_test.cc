// Row checksums of float products (rows R36 and R37 of the fault table): what is found, what is
// not, and that nothing right is ever called wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "model/multiply.h"
#include "tests/model/matrices.h"

namespace model {
namespace {

using testing::pack;
using testing::random_values;

float flip(float value, uint32_t bit) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ (1u << bit));
}

// An engine's share of a product, with something that goes wrong on the way.
struct Engine {
  explicit Engine(uint32_t threads = 1) : pool(threads) {}
  // `wrong` gets the finished product of a row, `times` times.
  void go_wrong(std::function<void(const PackedMatrix&, uint32_t row, float* y)> wrong, int times) {
    fault = std::move(wrong);
    left = times;
    integrity.inject(
        [](void* context, const PackedMatrix& w, uint32_t row, float* y) {
          auto& self = *static_cast<Engine*>(context);
          if (self.left == 0) return;
          --self.left;
          self.fault(w, row, y);
        },
        this);
  }
  ThreadPool pool;
  Integrity integrity;
  Compute compute{pool, integrity};
  std::function<void(const PackedMatrix&, uint32_t, float*)> fault;
  int left = 0;
};

// What the checksum that covers output j allows the row.
double tolerance(const PackedMatrix& w, const float* x, uint32_t j) {
  const uint32_t block = j / (kCheckPanels * kPanel);
  RowCheck check;
  expect_rows(w.sums(block), w.bounds(block), w.inputs(), x, 0, 1, &check, 0);
  return check.tolerance;
}

// Where the flipped bit was: in an output, in the copy of x that the product read, in a weight.
enum Place { kOutput, kInput, kWeight };
struct Tally {
  int trials = 0, found = 0;
  int large = 0, large_found = 0;  // |Δ| beyond the tolerance
};

class FlipTest : public ::testing::TestWithParam<WeightFormat> {
 protected:
  static constexpr uint32_t kInputs = 700, kOutputs = 600;  // three segments, two checksums

  // One trial: whether it was found, and |Δ| of the sum that is checked, over its tolerance.
  std::pair<bool, double> flip_one(Place place, uint32_t bit, base::Rng& rng) {
    const std::vector<float> x = random_values(kInputs, rng.next());
    const auto j = static_cast<uint32_t>(rng.below(kOutputs));
    const auto k = static_cast<uint32_t>(rng.below(kInputs));
    std::vector<float> y(kOutputs);
    Engine engine;
    double delta = 0, allowed = tolerance(w_, x.data(), j);
    const Product product{&w_, x.data(), kInputs, 1, y.data(), kOutputs};
    if (place == kOutput) {
      engine.go_wrong(
          [&](const PackedMatrix&, uint32_t, float* row) {
            delta = double{flip(row[j], bit)} - row[j];
            row[j] = flip(row[j], bit);
          },
          1);
      multiply(engine.compute, product);
      const bool found = engine.integrity.transient_faults() == 1;
      moved_ += !found && argmax(y) != argmax(right_row(x));
      if (found) {
        EXPECT_EQ(y, right_row(x));
      }
      return {found, std::fabs(delta) / allowed};
    }
    if (place == kInput) {
      std::vector<float> copy = x;
      copy[k] = flip(x[k], bit);
      double worst = 0;
      engine.go_wrong(
          [&](const PackedMatrix&, uint32_t, float* row) {
            const std::vector<float> wrong = right_row(copy);
            const uint32_t covered = kCheckPanels * kPanel;
            for (uint32_t first = 0; first < kOutputs; first += covered) {
              double sum = 0;
              for (uint32_t i = first; i < std::min(first + covered, kOutputs); ++i)
                sum += double{wrong[i]} - row[i];
              const double over = std::fabs(sum) / tolerance(w_, x.data(), first);
              worst = over <= worst ? worst : over;
            }
            std::copy(wrong.begin(), wrong.end(), row);
          },
          1);
      multiply(engine.compute, product);
      return {engine.integrity.transient_faults() == 1, worst};
    }
    const double before = weight(j, k);
    flip_weight(j, k, bit);
    delta = (weight(j, k) - before) * x[k];
    multiply(engine.compute, product);
    flip_weight(j, k, bit);
    const bool found = engine.integrity.broken();
    if (found) {
      EXPECT_EQ(engine.integrity.reason(), "the weights of a test's matrix changed in memory");
    }
    return {found, std::fabs(delta) / allowed};
  }

  static size_t argmax(const std::vector<float>& y) {
    return static_cast<size_t>(std::max_element(y.begin(), y.end()) - y.begin());
  }
  std::vector<float> right_row(const std::vector<float>& x) {
    std::vector<float> y(kOutputs);
    multiply_panels(w_.panel_range(0, w_.panels()), x.data(), kInputs, 1, y.data(), kOutputs);
    return y;
  }
  // Weight [j][k] in place: f32 bits, or the upper half of them.
  void flip_weight(uint32_t j, uint32_t k, uint32_t bit) {
    const size_t panel = j / kPanel * panel_elements(kInputs, bytes()), o = j % kPanel;
    if (GetParam() == WeightFormat::kF32) {
      float& value = reinterpret_cast<float*>(w_.mutable_data())[panel + k * kPanel + o];
      value = flip(value, bit);
    } else {
      auto& half = reinterpret_cast<uint16_t*>(
          w_.mutable_data())[panel + k / 2 * 2 * kPanel + 2 * o + k % 2];
      half = static_cast<uint16_t>(half ^ (1u << (bit - 16)));
    }
  }
  double weight(uint32_t j, uint32_t k) const {
    const size_t panel = j / kPanel * panel_elements(kInputs, bytes()), o = j % kPanel;
    if (GetParam() == WeightFormat::kF32)
      return reinterpret_cast<const float*>(w_.data())[panel + k * kPanel + o];
    return from_bf16(
        reinterpret_cast<const uint16_t*>(w_.data())[panel + k / 2 * 2 * kPanel + 2 * o + k % 2]);
  }
  size_t bytes() const { return GetParam() == WeightFormat::kF32 ? 4 : 2; }

  PackedMatrix w_ =
      pack(kOutputs, kInputs, GetParam(), random_values(size_t{kInputs} * kOutputs, 77, true));
  int moved_ = 0;  // an unnoticed flip that changed the argmax
};

INSTANTIATE_TEST_SUITE_P(Formats, FlipTest,
                         ::testing::Values(WeightFormat::kF32, WeightFormat::kBf16),
                         [](const auto& info) { return name_of(info.param); });

// The guarantee is: |Δ| beyond twice the tolerance is found, for what rounding did to the row may
// hide up to one of them. It hides far less.
TEST_P(FlipTest, EveryFlipBeyondTheToleranceIsFound) {
  base::Rng rng(5);
  const char* const names[] = {"output", "input", "weight"};
  for (Place place : {kOutput, kInput, kWeight}) {
    Tally parts[4];  // low mantissa, high mantissa, exponent, sign
    const uint32_t first = place == kWeight && GetParam() == WeightFormat::kBf16 ? 16 : 0;
    for (uint32_t bit = first; bit < 32; ++bit) {
      for (int trial = 0; trial < 100; ++trial) {
        const auto [found, over] = flip_one(place, bit, rng);
        Tally& tally = parts[bit < 12 ? 0 : bit < 23 ? 1 : bit < 31 ? 2 : 3];
        ++tally.trials;
        tally.found += found;
        if (!(over <= 1)) ++tally.large, tally.large_found += found;
        ASSERT_TRUE(found || over <= 1.02) << names[place] << " bit " << bit << ": " << over;
      }
    }
    const char* const ranges[] = {"bits 0-11", "bits 12-22", "exponent", "sign"};
    for (int part = 0; part < 4; ++part) {
      if (parts[part].trials == 0) continue;
      std::printf("%-7s %-10s found %5d of %5d; beyond the tolerance %5d of %5d\n", names[place],
                  ranges[part], parts[part].found, parts[part].trials, parts[part].large_found,
                  parts[part].large);
    }
  }
  EXPECT_LE(moved_, 3) << "of 3200 flipped outputs";  // 0.1 %
}

struct Weights {
  const char* name;
  std::function<float(base::Rng&)> w, x;
};

float any_exponent(base::Rng& rng, int range) {
  const double sign = rng.chance(0.5) ? 1 : -1;
  const int exponent = static_cast<int>(rng.below(static_cast<uint64_t>(2 * range))) - range;
  return static_cast<float>(sign * std::ldexp(1 + rng.uniform(), exponent));
}

// Over a million rows, hard ones among them, on both formats and many sizes. --gtest_random_seed
// draws others.
TEST(Checksums, NeverCallARightRowWrong) {
  const auto plain = [](base::Rng& rng) { return static_cast<float>(rng.uniform() - 0.5); };
  const auto wide = [](base::Rng& rng) { return any_exponent(rng, 40); };
  const auto huge = [](base::Rng& rng) { return any_exponent(rng, 8) * 1e8f; };
  const auto tiny = [](base::Rng& rng) { return any_exponent(rng, 4) * 1e-38f; };
  const auto ones = [](base::Rng&) { return 1.0f; };
  // 1 + 2^-23 and its like: every product rounds
  const auto odd = [](base::Rng& rng) { return rng.chance(0.5) ? 1.0000001f : 0.33333334f; };
  const auto two = [](base::Rng& rng) { return rng.chance(0.5) ? 1e8f : -1e8f; };
  const Weights kinds[] = {{"plain", plain, plain}, {"wide", wide, wide}, {"huge", huge, plain},
                           {"tiny", tiny, tiny},    {"odd", odd, odd},    {"ones", ones, odd},
                           {"±1e8", plain, two},    {"1e8²", two, plain}};
  base::Rng rng(1000 + static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed()));
  Engine engine;
  constexpr uint32_t kRows = 1024;
  for (const Weights& kind : kinds) {
    for (int matrix = 0; matrix < 16; ++matrix) {
      const auto inputs = static_cast<uint32_t>(1 + rng.below(matrix < 12 ? 300 : 2000));
      const auto outputs = static_cast<uint32_t>(1 + rng.below(matrix < 12 ? 60 : 1200));
      const uint32_t repeats = matrix < 12 ? 10 : 1;
      const WeightFormat format = matrix % 2 == 0 ? WeightFormat::kF32 : WeightFormat::kBf16;
      std::vector<float> w(size_t{inputs} * outputs), x(size_t{inputs} * kRows);
      for (float& v : w) v = kind.w(rng);
      const PackedMatrix packed = pack(outputs, inputs, format, w);
      std::vector<float> y(size_t{outputs} * kRows);
      for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
        for (float& v : x) v = kind.x(rng);
        multiply(engine.compute, {&packed, x.data(), inputs, kRows, y.data(), outputs});
        ASSERT_EQ(engine.integrity.transient_faults(), 0u) << kind.name;
        ASSERT_FALSE(engine.integrity.broken()) << kind.name << engine.integrity.reason();
      }
    }
  }
  EXPECT_GE(engine.integrity.rows_checked(), 1'000'000u);
  EXPECT_EQ(engine.integrity.rows_unverifiable(), 0u);
}

TEST(Checksums, RowsThatAreNotFiniteArePassedOnAndCounted) {
  const uint32_t inputs = 300, outputs = 40;
  std::vector<float> x = random_values(size_t{inputs} * 4, 1);
  x[7] = NAN;
  x[inputs + 9] = INFINITY;
  for (uint32_t k = 0; k < inputs; ++k) x[2 * inputs + k] = 3e38f;  // its products overflow
  const PackedMatrix w =
      pack(outputs, inputs, WeightFormat::kF32, std::vector<float>(size_t{inputs} * outputs, 2.0f));
  Engine engine;
  std::vector<float> y(size_t{outputs} * 4);
  multiply(engine.compute, {&w, x.data(), inputs, 4, y.data(), outputs});
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[outputs], INFINITY);
  EXPECT_EQ(y[2 * outputs], INFINITY);
  EXPECT_TRUE(std::isfinite(y[3 * outputs]));
  EXPECT_EQ(engine.integrity.rows_checked(), 4u);
  EXPECT_EQ(engine.integrity.rows_unverifiable(), 3u);
  EXPECT_EQ(engine.integrity.transient_faults(), 0u);
  EXPECT_FALSE(engine.integrity.broken());
}

TEST(Checksums, AFaultThatRepeatsBreaksTheEngine) {
  const PackedMatrix w = pack(64, 100, WeightFormat::kF32, random_values(6400, 1));
  const std::vector<float> x = random_values(300, 2);
  std::vector<float> y(3 * 64);
  Engine engine;
  engine.go_wrong([](const PackedMatrix&, uint32_t row, float* out) { out[3] += row == 1 ? 1 : 0; },
                  INT32_MAX);
  multiply(engine.compute, {&w, x.data(), 100, 3, y.data(), 64});
  EXPECT_TRUE(engine.integrity.broken());
  EXPECT_EQ(engine.integrity.reason(),
            "the arithmetic of this machine does not repeat (a test's matrix)");
  EXPECT_EQ(engine.integrity.transient_faults(), 0u);
}

TEST(Checksums, CoverBothMatricesOfAGatedProduct) {
  const uint32_t inputs = 200, outputs = 700, rows = 9;
  PackedMatrix gate =
      pack(outputs, inputs, WeightFormat::kBf16, random_values(size_t{inputs} * outputs, 1, true));
  PackedMatrix up =
      pack(outputs, inputs, WeightFormat::kBf16, random_values(size_t{inputs} * outputs, 2, true));
  const std::vector<float> x = random_values(size_t{inputs} * rows, 3);
  std::vector<float> right(size_t{outputs} * rows), y(right.size());
  const GatedProduct product{&gate, &up, x.data(), rows, right.data()};
  Engine clean;
  multiply_gated(clean.compute, {&product, 1});
  for (const PackedMatrix* target : {&gate, &up}) {
    Engine engine;  // once: the row is computed again
    engine.go_wrong(
        [&](const PackedMatrix& w, uint32_t row, float* out) {
          if (&w == target && row == 5) out[640] = -out[640] + 1, engine.left = 0;
        },
        INT32_MAX);
    const GatedProduct again{&gate, &up, x.data(), rows, y.data()};
    multiply_gated(engine.compute, {&again, 1});
    EXPECT_EQ(engine.integrity.transient_faults(), 1u);
    EXPECT_EQ(y, right);
  }
  for (PackedMatrix* target : {&gate, &up}) {
    for (uint32_t threads : {1u, 2u}) {
      Engine engine(threads);
      target->set_name("up or gate");
      std::byte& hurt = target->mutable_data()[target->bytes() / 2 + 1];
      const std::byte before = std::exchange(hurt, hurt ^ std::byte{0x40});
      const GatedProduct again{&gate, &up, x.data(), rows, y.data()};
      multiply_gated(engine.compute, {&again, 1});
      hurt = before;
      EXPECT_EQ(engine.integrity.reason(), "the weights of up or gate changed in memory");
    }
  }
}

TEST(Checksums, AFlippedChecksumIsAFaultOfTheWeights) {
  PackedMatrix w = pack(64, 100, WeightFormat::kF32, random_values(6400, 1));
  EXPECT_TRUE(w.intact());
  const_cast<float*>(w.sums(0))[50] += 1;
  EXPECT_FALSE(w.intact());
  const std::vector<float> x = random_values(100, 2);
  std::vector<float> y(64);
  Engine engine;
  multiply(engine.compute, {&w, x.data(), 100, 1, y.data(), 64});
  EXPECT_EQ(engine.integrity.reason(), "the weights of a test's matrix changed in memory");
}

TEST(Checksums, NothingIsCheckedWhenVerificationIsOff) {
  PackedMatrix w = pack(64, 100, WeightFormat::kF32, random_values(6400, 1));
  w.mutable_data()[3] ^= std::byte{0x40};
  ThreadPool pool(1);
  Integrity off(false);
  const std::vector<float> x = random_values(100, 2);
  std::vector<float> y(64);
  multiply({pool, off}, {&w, x.data(), 100, 1, y.data(), 64});
  EXPECT_EQ(off.rows_checked(), 0u);
  EXPECT_FALSE(off.broken());
}

}  // namespace
}  // namespace model
