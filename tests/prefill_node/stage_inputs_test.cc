#include "prefill_node/stage_inputs.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace {

using prefill::StageInputs;
using proto::Outcome;

constexpr size_t kRow = 8;
base::Blob rows(uint32_t count) { return base::Blob(base::Bytes(count * kRow)); }

TEST(StageInputs, ChunksOutOfOrderAreTakenInOrder) {
  StageInputs inputs(64, 100, kRow);
  EXPECT_FALSE(inputs.has_next());
  EXPECT_EQ(inputs.accept(80, 16, rows(16)), Outcome::kOk);
  EXPECT_FALSE(inputs.has_next());
  EXPECT_EQ(inputs.accept(64, 16, rows(16)), Outcome::kOk);
  EXPECT_EQ(inputs.take().begin, 64u);
  EXPECT_EQ(inputs.take().begin, 80u);
  EXPECT_EQ(inputs.accept(96, 4, rows(4)), Outcome::kOk);
  EXPECT_EQ(inputs.take().count, 4u);
  EXPECT_FALSE(inputs.has_next());
}

TEST(StageInputs, DoubledChunksAreKeptOnce) {
  StageInputs inputs(0, 100, kRow);
  EXPECT_EQ(inputs.accept(0, 10, rows(10)), Outcome::kOk);
  EXPECT_EQ(inputs.accept(0, 10, rows(10)), Outcome::kOk);
  EXPECT_EQ(inputs.waiting(), 1u);
  inputs.take();
  EXPECT_EQ(inputs.accept(0, 10, rows(10)), Outcome::kOk);  // computed already
  EXPECT_EQ(inputs.waiting(), 0u);
}

TEST(StageInputs, AtTheBoundOnlyTheMissingChunkIsTaken) {
  StageInputs inputs(0, 100, kRow);
  for (uint32_t i = 1; i <= StageInputs::kMost; ++i)
    EXPECT_EQ(inputs.accept(10 * i, 10, rows(10)), Outcome::kOk);
  EXPECT_EQ(inputs.accept(50, 10, rows(10)), Outcome::kNoRoom);
  EXPECT_EQ(inputs.accept(20, 10, rows(10)), Outcome::kOk);  // doubled
  EXPECT_EQ(inputs.accept(0, 10, rows(10)), Outcome::kOk);
  for (uint32_t i = 0; i <= StageInputs::kMost; ++i) EXPECT_EQ(inputs.take().begin, 10 * i);
  EXPECT_EQ(inputs.accept(50, 10, rows(10)), Outcome::kOk);
}

TEST(StageInputs, WhatMakesNoSenseIsRefused) {
  StageInputs inputs(10, 100, kRow);
  EXPECT_EQ(inputs.accept(10, 0, rows(0)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(10, 10, rows(9)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(95, 10, rows(10)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(100, 1, rows(1)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(UINT32_MAX, 1, rows(1)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(50, UINT32_MAX, rows(1)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(5, 10, rows(10)), Outcome::kCorrupt);  // over the edge of the past
  EXPECT_EQ(inputs.accept(20, 20, rows(20)), Outcome::kOk);
  EXPECT_EQ(inputs.accept(30, 20, rows(20)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(10, 20, rows(20)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(20, 10, rows(10)), Outcome::kCorrupt);
  EXPECT_EQ(inputs.accept(10, 10, rows(10)), Outcome::kOk);
  EXPECT_EQ(inputs.take().begin, 10u);
  EXPECT_EQ(inputs.take().begin, 20u);
}

TEST(StageInputs, AnyOrderWithDoublesGivesTheWholeInOrder) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    base::Rng rng(seed);
    StageInputs inputs(0, 300, kRow);
    std::vector<bool> sent(30, false);
    uint32_t taken = 0, steps = 0;
    while (taken < 30 && ++steps < 10'000) {
      // A sender that keeps two chunks in flight, in any order, each any number of times.
      const auto chunk = static_cast<uint32_t>(taken + rng.below(3));
      if (chunk < 30) inputs.accept(10 * chunk, 10, rows(10));
      if (rng.chance(0.5) && inputs.has_next()) {
        EXPECT_EQ(inputs.take().begin, 10 * taken);
        ++taken;
      }
    }
    EXPECT_EQ(taken, 30u) << seed;
  }
}

}  // namespace
