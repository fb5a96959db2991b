#include "decode_node/step_batch.h"

#include <gtest/gtest.h>

#include "decode_node/grammars.h"
#include "model/forward.h"
#include "tests/decode_node/poisoned_engine.h"

namespace decode {
namespace {

// A sequence whose prompt has its KV, as a finished intake leaves it.
struct Prepared {
  Prepared(model::Engine& engine, model::KvPool& pool, std::vector<TokenId> prompt, uint64_t seed) {
    sequence.prompt_tokens = static_cast<uint32_t>(prompt.size());
    sequence.tokens = prompt;
    sequence.sampling.seed = seed;
    sequence.sampling.max_tokens = 100;
    sequence.blocks = *pool.allocate(3);
    model::Pass pass;
    pass.tokens = prompt;
    model::Segment segment;
    segment.count = sequence.prompt_tokens;
    segment.kv = model::KvView{&pool, sequence.blocks};
    pass.segments = {segment};
    model::InlineSite site(engine);
    const model::LayerRange all{0, engine.shape().layers};
    base::run_inline(model::forward(engine, all, pass, site));
    std::vector<float> logits(engine.shape().vocab);
    const uint32_t last = sequence.prompt_tokens - 1;
    engine.head(pass, std::span(&last, 1), logits);
    const auto first = model::sample({logits, prompt, {}, engine.shape().eos}, sequence.sampling);
    sequence.tokens.push_back(first.token);
  }
  Sequence sequence;
};

void step(model::Engine& engine, StepBatch& batch, std::vector<Sequence*> members,
          model::KvPool& pool) {
  batch.assemble(members, pool, engine.shape());
  model::InlineSite site(engine);
  const model::LayerRange all{0, engine.shape().layers};
  ASSERT_TRUE(base::run_inline(model::forward(engine, all, batch.pass(), site)));
  batch.sample(engine);
  for (size_t i = 0; i < members.size(); ++i) {
    if (!batch.next()[i].finite || batch.next()[i].stuck) continue;
    ASSERT_EQ(batch.next()[i].run.tokens.size(), 1u);
    members[i]->tokens.push_back(batch.next()[i].run.tokens[0]);
  }
}

TEST(StepBatch, ABatchEmitsWhatEachSequenceWouldAlone) {
  const auto engine = model::make_oracle_engine({});
  model::KvPool pool(12, {0, engine->shape().layers}, engine->shape().kv_row_bytes);
  std::vector<std::vector<TokenId>> prompts = {{5}, {9, 8, 7, 6}, std::vector<TokenId>(70, 11)};
  std::vector<std::unique_ptr<Prepared>> all;
  for (size_t i = 0; i < prompts.size(); ++i) {
    all.push_back(std::make_unique<Prepared>(*engine, pool, prompts[i], i));
    all.back()->sequence.sampling.ignore_eos = true;
  }
  StepBatch batch;
  for (int i = 1; i < 40; ++i) {
    std::vector<Sequence*> members;
    for (size_t j = 0; j < all.size(); ++j) {
      if (j != 1 || i % 2 == 0) members.push_back(&all[j]->sequence);  // one comes and goes
    }
    step(*engine, batch, members, pool);
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Sequence& sequence = all[i]->sequence;
    base::Sampling sampling = sequence.sampling;
    sampling.max_tokens = sequence.emitted();
    const auto expected = model::generate(*engine, prompts[i], sampling).tokens;
    EXPECT_EQ(std::vector<TokenId>(sequence.tokens.begin() + sequence.prompt_tokens,
                                   sequence.tokens.end()),
              expected);
    EXPECT_GE(expected.size(), 20u);
  }
}

TEST(StepBatch, ANumericalErrorStaysInItsRow) {
  PoisonedEngine engine(model::make_oracle_engine({}), /*token=*/499);
  model::KvPool pool(12, {0, engine.shape().layers}, engine.shape().kv_row_bytes);
  Prepared healthy(engine, pool, {5, 6, 7}, 1), sick(engine, pool, {8, 9}, 2);
  sick.sequence.tokens.back() = 499;
  StepBatch batch;
  step(engine, batch, {&sick.sequence, &healthy.sequence}, pool);
  EXPECT_FALSE(batch.next()[0].finite);
  EXPECT_TRUE(batch.next()[1].finite);
  EXPECT_EQ(healthy.sequence.tokens.size(), 5u);
}

TEST(StepBatch, AGrammarBindsItsRowAlone) {
  const auto engine = model::make_oracle_engine({});
  const model::Shape& shape = engine->shape();
  std::vector<std::string> bytes(shape.vocab);
  for (size_t id = 0; id < bytes.size(); ++id) bytes[id] = std::string(1, static_cast<char>(id));
  const grammar::Vocabulary vocabulary(std::move(bytes), shape.eos);
  Grammars grammars;
  const base::GrammarText text{base::GrammarKind::kRegex, "[a-f]{8}"};
  grammars.load([&]() -> base::Result<grammar::Vocabulary> { return vocabulary; });

  model::KvPool pool(12, {0, shape.layers}, shape.kv_row_bytes);
  Prepared free(*engine, pool, {5, 6, 7}, 1), alone(*engine, pool, {5, 6, 7}, 1);
  Prepared bound(*engine, pool, {8, 9}, 2), lost(*engine, pool, {9, 9}, 3);
  bound.sequence.tokens.back() = 'a';
  lost.sequence.tokens.back() = 'z';  // breaks it already
  for (Prepared* each : {&bound, &lost}) each->sequence.sampling.grammar = text;
  EXPECT_TRUE(bound.sequence.waits_for_grammar());
  EXPECT_TRUE(grammars.must_compile(bound.sequence));
  EXPECT_FALSE(grammars.must_compile(lost.sequence)) << "once for both";
  grammars.hand_in(text, std::move(*grammars.compile(text)));
  for (Prepared* each : {&bound, &lost}) {
    EXPECT_FALSE(grammars.must_compile(each->sequence));
    EXPECT_FALSE(each->sequence.waits_for_grammar());
  }

  StepBatch batch, other;
  for (int i = 0; i < 8; ++i) {
    step(*engine, other, {&alone.sequence}, pool);
    std::vector<Sequence*> members{&free.sequence, &bound.sequence};
    if (i == 0) members.push_back(&lost.sequence);
    step(*engine, batch, members, pool);
    if (i == 0) {
      EXPECT_TRUE(batch.next()[2].stuck);
    }
    EXPECT_FALSE(batch.next()[1].stuck);
  }
  EXPECT_EQ(free.sequence.tokens, alone.sequence.tokens);
  const std::span<const TokenId> tokens(bound.sequence.tokens);
  EXPECT_TRUE(bound.sequence.matcher->may_end(tokens.subspan(bound.sequence.prompt_tokens)));
  EXPECT_EQ(tokens.back(), shape.eos[0]);
}

}  // namespace
}  // namespace decode
