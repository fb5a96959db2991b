#include "model/draft_length.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "model/draft_slots.h"

namespace model {
namespace {

TEST(DraftLength, DraftsAllThatAreAcceptedAndNothingThatNeverIs) {
  DraftLength right(3), wrong(3);
  for (int round = 0; round < 50; ++round) {
    right.add(right.steps(), right.steps());
    wrong.add(wrong.steps(), 0);
  }
  EXPECT_EQ(right.steps(), 3u);
  EXPECT_EQ(wrong.steps(), 0u);
}

TEST(DraftLength, TriesAgainNowAndThenWhatDidNotPay) {
  DraftLength length(4);
  uint32_t drafted = 0;
  for (int round = 0; round < 1000; ++round) {
    const uint32_t steps = length.steps();
    drafted += steps;
    length.add(steps, 0);
  }
  EXPECT_GT(drafted, 20u);   // or it would not see that the text has changed
  EXPECT_LT(drafted, 300u);  // or it would cost too much
  for (int round = 0; round < 200; ++round) length.add(length.steps(), length.steps());
  EXPECT_EQ(length.steps(), 4u);
}

TEST(DraftLength, StopsAtTheStepThatIsNoLongerWorthItsRow) {
  DraftLength length(3);
  for (int round = 0; round < 100; ++round) {
    const uint32_t steps = length.steps();
    length.add(steps, std::min(steps, 1u));  // the second draft is never right
  }
  EXPECT_LE(length.steps(), 2u);
  EXPECT_GE(length.steps(), 1u);
}

TEST(DraftLength, ItsLengthsFollowFromItsHistoryAndStayInRange) {
  for (uint32_t most : {0u, 1u, 3u, 16u, 99u}) {
    DraftLength a(most), b(most);
    base::Rng rng(most);
    for (int round = 0; round < 2000; ++round) {
      ASSERT_EQ(a.steps(), b.steps());
      ASSERT_LE(a.steps(), std::min(most, kMaxDraftSteps));
      const auto drafted = static_cast<uint32_t>(rng.below(a.steps() + 1));
      const auto accepted = static_cast<uint32_t>(rng.below(drafted + 1));
      a.add(drafted, accepted);
      b.add(drafted, accepted);
    }
  }
}

// Two pools, one filled by rows, the other by slots in pieces.
TEST(DraftSlots, OfTheDraftingBlockAreOneRowBehind) {
  Shape shape;
  shape.layers = 2;
  shape.mtp_steps = 3;
  shape.kv_latent_bytes = 4;
  shape.kv_row_bytes = 11;
  constexpr uint32_t kTokens = 150;
  KvPool from(3, {0, shape.kv_layers()}, shape.kv_row_bytes), to(3, from.layers(), 11);
  const std::vector<BlockId> blocks = *from.allocate(3), others = *to.allocate(3);
  const KvView a{&from, blocks}, b{&to, others};
  for (uint32_t layer = 0; layer < 3; ++layer)
    for (uint32_t p = 0; p < kTokens; ++p)
      std::fill_n(a.write_row(layer, p), 11, static_cast<std::byte>(1 + layer + p));
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t begin = 0; begin < kTokens; begin += 30) {
      base::Bytes slots(30 * 11);
      copy_slots_out(a, shape, layer, begin, 30, slots.data());
      for (uint32_t i = 0; i < 30; ++i) {
        const std::byte* slot = slots.data() + i * 11;
        const uint32_t row = begin + i - (layer == 2 ? 1 : 0);
        const bool none = layer == 2 && begin + i == 0;
        const auto value = none ? std::byte{0} : static_cast<std::byte>(1 + layer + row);
        EXPECT_EQ(slot[0], value);
        EXPECT_EQ(slot[5], layer == 2 ? std::byte{0} : value) << "the place of attention 1";
        EXPECT_EQ(slot[10], value);
      }
      copy_slots_in(b, shape, layer, begin, 30, slots.data());
    }
    const uint32_t last = layer == 2 ? kTokens - 1 : kTokens;
    for (uint32_t p = 0; p < last; ++p) {
      EXPECT_EQ(*b.row(layer, p), *a.row(layer, p)) << layer << " at " << p;
      EXPECT_EQ(b.row(layer, p)[10], a.row(layer, p)[10]);
    }
  }
}

// Whoever has n blocks may neither lack nor write a row of them.
TEST(DraftSlots, OfWholeBlocksAreThoseWhoseRowsLieInThem) {
  Shape shape;
  shape.layers = 2;
  for (const uint32_t mtp_steps : {0u, 2u}) {
    shape.mtp_steps = mtp_steps;
    for (uint32_t slots = 0; slots < 300; ++slots) {
      const uint32_t blocks = blocks_in_slots(shape, slots);
      for (uint32_t layer = 0; layer < shape.kv_layers(); ++layer) {
        const auto rows_of = [&](uint32_t n) { return layer < shape.layers || n == 0 ? n : n - 1; };
        EXPECT_GE(rows_of(slots), blocks * kBlockTokens);
        const uint32_t within = slots_in_blocks(shape, layer, blocks);
        EXPECT_LE(within, slots);
        EXPECT_EQ(rows_of(within), blocks * kBlockTokens);
      }
      const uint32_t rows = slots - (mtp_steps > 0 && slots > 0 ? 1 : 0);  // of the poorest layer
      EXPECT_LT(rows, (blocks + 1) * kBlockTokens);
    }
  }
}

}  // namespace
}  // namespace model
