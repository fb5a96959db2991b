#include "base/rng.h"

#include <gtest/gtest.h>

#include <array>

namespace base {
namespace {

// The known answers of Random123 (kat_vectors, philox4x32 10), first two words.
TEST(Rng, GivesThePublishedPhiloxNumbers) {
  EXPECT_EQ(random_at(0, 0, 0), 0xe169c58d6627e8d5u);
  EXPECT_EQ(random_at(~0ull, ~0ull, ~0ull), 0x41c83b0e408f276du);
  EXPECT_EQ(random_at(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u),
            0x94fdccebd16cfe09u);
}

TEST(Rng, IsAPureFunctionOfSeedStreamAndCounter) {
  Rng a(5, 1), b(5, 2);
  EXPECT_EQ(a.next(), random_at(5, 1, 0));
  EXPECT_EQ(a.next(), random_at(5, 1, 1));
  EXPECT_EQ(a.uniform(), uniform_at(5, 1, 2));
  EXPECT_NE(b.next(), random_at(5, 1, 0));
}

TEST(Rng, UniformLiesInItsIntervalWithTheRightMean) {
  Rng rng(7);
  double sum = 0;
  for (int i = 0; i < 100000; ++i) {
    const double u = rng.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / 100000, 0.5, 0.005);  // five standard deviations
}

TEST(Rng, BelowIsEvenOverItsRange) {
  Rng rng(11);
  std::array<int, 6> counts{};
  for (int i = 0; i < 60000; ++i) ++counts.at(rng.below(6));
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);
  EXPECT_EQ(rng.below(1), 0u);
  for (int i = 0; i < 100; ++i) EXPECT_LT(rng.below((1ull << 63) + 1), (1ull << 63) + 1);
}

}  // namespace
}  // namespace base
