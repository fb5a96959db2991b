// MicroBatches: when a step is split, where, and that its results do not depend on it.
#include "decode_node/micro_batches.h"

#include <gtest/gtest.h>

#include "model/forward.h"

namespace decode {
namespace {

// Members with so many rows each: one, and drafts of the oracle's own.
class MicroBatchesTest : public ::testing::Test {
 protected:
  explicit MicroBatchesTest(uint32_t drafts = 0) {
    model::OracleOptions options;
    options.mtp_steps = drafts;
    engine = model::make_oracle_engine(options);
    pool = std::make_unique<model::KvPool>(64, model::LayerRange{0, engine->shape().kv_layers()},
                                           engine->shape().kv_row_bytes);
  }
  Sequence& add(std::vector<TokenId> tokens) {
    Sequence& sequence = *sequences.emplace_back(std::make_unique<Sequence>());
    sequence.prompt_tokens = 1;
    sequence.tokens = std::move(tokens);
    sequence.sampling.max_tokens = 100;
    sequence.most_emitted = 100;
    sequence.blocks = *pool->allocate(1);
    members.push_back(&sequence);
    return sequence;
  }
  uint32_t passes_for(uint32_t most, uint32_t least, bool peers) const {
    return MicroBatches::passes_for(members, most, least, peers);
  }
  std::vector<TokenId> tokens_of_step(uint32_t passes) {
    MicroBatches step;
    step.assemble(members, *pool, engine->shape(), passes);
    EXPECT_EQ(step.passes().size(), passes);
    EXPECT_EQ(step.rows(), members.size());
    model::InlineSite site(*engine);
    const model::LayerRange all{0, engine->shape().layers};
    for (StepBatch& pass : step.passes()) {
      EXPECT_TRUE(base::run_inline(model::forward(*engine, all, pass.pass(), site)));
      pass.sample(*engine);
    }
    std::vector<TokenId> tokens;
    for (size_t i = 0; i < members.size(); ++i) {
      EXPECT_TRUE(step.next(i).finite) << step.fault(i);
      tokens.push_back(step.next(i).run.tokens.at(0));
    }
    return tokens;
  }

  std::unique_ptr<model::Engine> engine;
  std::unique_ptr<model::KvPool> pool;
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<Sequence*> members;
};

TEST_F(MicroBatchesTest, AStepIsSplitWhereRowsLeaveAndBothPassesHaveEnough) {
  for (uint32_t i = 0; i < 15; ++i) add({i});
  EXPECT_EQ(passes_for(2, 8, true), 1u);  // 7 and 8
  EXPECT_EQ(passes_for(2, 7, true), 2u);
  EXPECT_EQ(passes_for(2, 7, false), 1u);
  EXPECT_EQ(passes_for(1, 7, true), 1u);
  members.resize(1);
  EXPECT_EQ(passes_for(2, 1, true), 1u);
}

TEST_F(MicroBatchesTest, EachMemberGetsTheSameTokenInEitherPass) {
  for (uint32_t i = 0; i < 7; ++i) add({10 + i});
  const std::vector<TokenId> whole = tokens_of_step(1);
  EXPECT_EQ(tokens_of_step(2), whole);
  members.resize(2);
  EXPECT_EQ(tokens_of_step(2), std::vector<TokenId>(whole.begin(), whole.begin() + 2));
}

class DraftedMicroBatchesTest : public MicroBatchesTest {
 protected:
  DraftedMicroBatchesTest() : MicroBatchesTest(3) {}
  // As a member that has drafted `drafts` tokens.
  void add_drafted(uint32_t drafts) {
    Sequence& sequence = add({5, 6});
    const std::vector<float> hidden(engine->shape().hidden, 1.0f);
    sequence.speculation.emplace(engine->shape().hidden, 0);
    sequence.speculation->add_hidden(hidden);
    model::Drafting drafting;
    drafting.state = &*sequence.speculation;
    drafting.kv = model::KvView{pool.get(), sequence.blocks};
    drafting.tokens = sequence.tokens;
    drafting.steps = drafts;
    drafting.choose = model::draft_sampler(drafting.tokens.first(1), drafting.tokens.subspan(1),
                                           engine->shape().eos, sequence.sampling, nullptr);
    std::vector<model::Drafting> round;
    round.push_back(std::move(drafting));
    model::Pass pass;
    model::draft_round(*engine, round, pass);
    ASSERT_EQ(sequence.speculation->drafts().size(), drafts);
  }
};

TEST_F(DraftedMicroBatchesTest, RowsOfAMemberStayTogetherAndHalvesAreOfRows) {
  for (const uint32_t drafts : {3u, 0u, 0u, 0u, 0u}) add_drafted(drafts);
  MicroBatches step;
  step.assemble(members, *pool, engine->shape(), 2);
  EXPECT_EQ(step.rows(), 8u);
  ASSERT_EQ(step.passes().size(), 2u);
  EXPECT_EQ(step.passes()[0].pass().rows(), 4u);
  EXPECT_EQ(step.passes()[0].pass().segments.size(), 1u);
  EXPECT_EQ(step.passes()[1].pass().segments.size(), 4u);
  EXPECT_EQ(passes_for(2, 4, true), 2u);
  EXPECT_EQ(passes_for(2, 5, true), 1u);
}

}  // namespace
}  // namespace decode
