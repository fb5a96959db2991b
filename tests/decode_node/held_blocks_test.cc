#include "decode_node/held_blocks.h"

#include <gtest/gtest.h>

#include "decode_node/sequence_table.h"

namespace decode {
namespace {

using proto::Outcome;

constexpr base::Hash128 kTenant{5, 5}, kOther{6, 6};

model::Shape small_shape(uint32_t mtp_steps) {
  model::Shape shape;
  shape.layers = 2;
  shape.vocab = 100;
  shape.hidden = 4;
  shape.kv_row_bytes = 16;
  shape.max_context = 1000;
  shape.mtp_steps = mtp_steps;
  return shape;
}

// Tokens that differ from position `differs` on from those of another `differs`.
std::vector<uint32_t> prompt(uint32_t count, uint32_t differs = 1000) {
  std::vector<uint32_t> tokens(count);
  for (uint32_t i = 0; i < count; ++i) tokens[i] = (i * 7 + (i >= differs ? differs + 1 : 0)) % 99;
  return tokens;
}

class HeldBlocks : public ::testing::TestWithParam<uint32_t> {
 protected:
  HeldBlocks() : table(small_shape(GetParam()), {.blocks = 40}) {}

  // How many leading blocks it is given that were there before.
  uint32_t reserve(uint64_t request, std::vector<uint32_t> tokens, base::Hash128 root = kTenant,
                   uint32_t attempt = 1) {
    proto::ReserveKv m;
    m.request = RequestId{request};
    m.attempt = attempt;
    m.prompt_tokens = static_cast<uint32_t>(tokens.size());
    m.tokens = std::move(tokens);
    m.sampling.max_tokens = 100;
    m.deadline_ms = 600'000;
    m.block_root = root;
    m.whole = true;
    EXPECT_EQ(table.reserve(m, {}), Outcome::kOk);
    return find(request, attempt).held_blocks;
  }
  Sequence& find(uint64_t request, uint32_t attempt = 1) {
    return *table.find({RequestId{request}, attempt});
  }
  Sequence& running(uint64_t request, std::vector<uint32_t> tokens) {
    reserve(request, std::move(tokens));
    table.admit(find(request));
    return find(request);
  }
  const std::vector<Sequence*>& next_batch() {
    return table.next_batch([](Sequence&) { ADD_FAILURE() << "there is room for all"; });
  }
  // A step in which the sequence emits so many tokens; their KV but the last one's is there.
  void step(Sequence& sequence, uint32_t tokens) {
    next_batch();
    for (uint32_t i = 0; i < tokens; ++i)
      sequence.tokens.push_back((static_cast<uint32_t>(sequence.tokens.size()) * 7) % 99);
    table.end_step();
  }
  uint32_t used() { return table.pool().used(); }
  bool drafts() const { return GetParam() > 0; }

  SequenceTable table;
};

TEST_P(HeldBlocks, AreTheFullOnesOfARunningSequenceThatBeginsAlike) {
  Sequence& first = running(1, prompt(200));
  EXPECT_EQ(used(), 5u);  // 300 tokens
  EXPECT_EQ(reserve(2, prompt(200)), 3u);
  EXPECT_EQ(used(), 5u + 2u);
  EXPECT_TRUE(
      std::ranges::equal(std::span(find(2).blocks).first(3), std::span(first.blocks).first(3)));
  EXPECT_NE(find(2).blocks[3], first.blocks[3]);
  EXPECT_EQ(find(2).blocks.size(), 5u);
  EXPECT_EQ(reserve(3, prompt(100)), 1u);
  EXPECT_EQ(reserve(4, prompt(300)), 3u);
  EXPECT_EQ(reserve(5, prompt(63)), 0u);
}

TEST_P(HeldBlocks, EndWhereTheTokensDo) {
  running(1, prompt(250));
  EXPECT_EQ(reserve(2, prompt(250, 0)), 0u);
  EXPECT_EQ(reserve(3, prompt(250, 63)), 0u);
  EXPECT_EQ(reserve(4, prompt(250, 65)), 1u);
  EXPECT_EQ(reserve(5, prompt(250, 191)), 2u);
  // The drafting block's last row of a block is made of the token after it.
  EXPECT_EQ(reserve(6, prompt(250, 192)), drafts() ? 2u : 3u);
  EXPECT_EQ(reserve(7, prompt(192)), drafts() ? 2u : 3u);
}

TEST_P(HeldBlocks, AreNotThoseOfAnotherTenantOrOfNobody) {
  running(1, prompt(200));
  EXPECT_EQ(reserve(2, prompt(200), kOther), 0u);
  EXPECT_EQ(reserve(3, prompt(200), {}), 0u);
  table.admit(find(3));
  EXPECT_EQ(reserve(4, prompt(200), {}), 0u);
  EXPECT_EQ(used(), 4 * 5u);
}

TEST_P(HeldBlocks, OfAReservationAreThoseItWasGiven) {
  reserve(1, prompt(200));
  EXPECT_EQ(reserve(2, prompt(200)), 0u);  // nothing has arrived, or been proved complete
  table.admit(find(1));
  EXPECT_EQ(reserve(3, prompt(100)), 1u);
  table.end(find(1));
  EXPECT_EQ(reserve(4, prompt(200)), 1u);
}

TEST_P(HeldBlocks, AreTheStepsOwnTooOnceTheyAreFull) {
  Sequence& first = running(1, prompt(120));
  first.tokens.push_back(120 * 7 % 99);  // the first token, sampled by prefill
  step(first, 7);                        // 128 tokens, 127 with KV
  EXPECT_EQ(reserve(2, prompt(150)), 1u);
  step(first, 1);
  EXPECT_EQ(reserve(3, prompt(150)), drafts() ? 1u : 2u);
  step(first, 1);
  EXPECT_EQ(reserve(4, prompt(150)), 2u);
}

TEST_P(HeldBlocks, StayWhileAnybodyHasThem) {
  Sequence& first = running(1, prompt(200));
  reserve(2, prompt(200));
  ASSERT_EQ(next_batch().size(), 1u);
  table.end(first);
  EXPECT_EQ(used(), 7u);
  table.end_step();
  EXPECT_EQ(used(), 5u);  // what the second holds
  EXPECT_EQ(reserve(3, prompt(200)), 3u);
  table.cancel(RequestId{2}, 1);
  EXPECT_EQ(used(), 5u);
  table.forget(find(3));
  EXPECT_EQ(used(), 0u);
  EXPECT_EQ(reserve(4, prompt(200)), 0u);
}

TEST_P(HeldBlocks, AreGivenOnceHoweverOftenItIsAsked) {
  running(1, prompt(200));
  EXPECT_EQ(reserve(2, prompt(200)), 3u);
  table.end(find(1));
  EXPECT_EQ(reserve(2, prompt(200)), 3u);
  EXPECT_EQ(used(), 5u);
  EXPECT_EQ(reserve(2, prompt(200), kTenant, /*attempt=*/2), 0u);  // the first one's are gone
  table.clear();
  EXPECT_EQ(used(), 0u);
}

TEST_P(HeldBlocks, WithoutRoomForTheRestNothingIsTaken) {
  running(1, prompt(200));
  running(2, prompt(900, 0));  // 16 of 40 blocks
  running(3, prompt(850, 2));  // 15
  EXPECT_EQ(reserve(4, prompt(200)), 3u);
  EXPECT_EQ(used(), 38u);
  proto::ReserveKv m;
  m.request = RequestId{5};
  m.attempt = 1;
  m.tokens = prompt(200);
  m.prompt_tokens = 200;
  m.sampling.max_tokens = 200;  // 7 blocks, 4 more than are held
  m.block_root = kTenant;
  m.whole = true;
  EXPECT_EQ(table.reserve(m, {}), Outcome::kNoRoom);
  EXPECT_EQ(used(), 38u);
  for (uint64_t request : {1, 2, 3, 4}) table.end(find(request));
  EXPECT_EQ(used(), 0u);
}

TEST_P(HeldBlocks, OnlyTheRowsBehindThemAreToArrive) {
  running(1, prompt(200));
  reserve(2, prompt(200));
  const KvIntake& intake = find(2).intake;
  using Range = KvIntake::Range;
  for (uint32_t layer = 0; layer < (drafts() ? 3u : 2u); ++layer) {
    const uint32_t first = 192 + (layer == 2 ? 1 : 0);
    EXPECT_EQ(intake.classify(layer, first - 1, 2, {1, 1}), Range::kConflict);
    EXPECT_EQ(intake.classify(layer, first, 200 - first, {1, 1}), Range::kNew);
  }
}

TEST(SharedBlocks, AreFreeWhenTheLastSequenceHasGone) {
  model::KvPool pool(3, model::LayerRange{0, 2}, 8);
  SharedBlocks shared(pool);
  pool.reserve_derived(64);
  const auto all = pool.allocate(2);
  ASSERT_TRUE(all);
  const std::span<const model::BlockId> first = std::span(*all).first(1);
  shared.share(first);
  shared.share(first);
  pool.derived(first[0], 1).ready = 1;
  shared.release(*all);
  EXPECT_EQ(pool.used(), 1u);
  shared.release(first);
  EXPECT_EQ(pool.used(), 1u);
  EXPECT_EQ(pool.derived(first[0], 1).ready, 1);
  shared.release(first);
  EXPECT_EQ(pool.used(), 0u);
  EXPECT_EQ(pool.derived(first[0], 1).ready, 0);
  EXPECT_DEATH(shared.release(first), "not taken");
}

INSTANTIATE_TEST_SUITE_P(WithoutAndWithDrafts, HeldBlocks, ::testing::Values(0u, 3u));

}  // namespace
}  // namespace decode
