// Drafting and verifying in one batch, against one process that does it for one sequence.
#include "decode_node/drafter.h"

#include <gtest/gtest.h>

#include <numeric>

#include "decode_node/step_batch.h"
#include "model/draft_slots.h"
#include "model/forward.h"
#include "tests/decode_node/poisoned_engine.h"

namespace decode {
namespace {

model::OracleOptions drafting() {
  model::OracleOptions options;
  options.mtp_steps = 3;
  return options;
}

// A node with sequences that are ready to decode, as a finished intake leaves them.
class Node {
 public:
  Node(model::Engine& engine, uint32_t steps, uint32_t max_rows = 1000)
      : engine_(engine),
        pool_(64, {0, engine.shape().kv_layers()}, engine.shape().kv_row_bytes),
        drafter_(engine.shape(), steps, max_rows) {}

  Sequence& add(const std::vector<TokenId>& prompt, const base::Sampling& sampling) {
    auto made = std::make_unique<Sequence>();
    Sequence& sequence = *made;
    sequence.prompt_tokens = static_cast<uint32_t>(prompt.size());
    sequence.most_emitted = sampling.max_tokens;
    sequence.tokens = prompt;
    sequence.sampling = sampling;
    sequence.blocks = *pool_.allocate(model::KvPool::blocks_for(sequence.prompt_tokens + 150));
    std::vector<float> hidden;
    const TokenId first = prefill(sequence, &hidden);
    drafter_.begin(sequence, hidden);
    sequence.tokens.push_back(first);
    sequences_.push_back(std::move(made));
    return sequence;
  }
  // One step of those that have not ended.
  void step() {
    std::vector<Sequence*> batch;
    for (const auto& sequence : sequences_)
      if (!sequence->doomed) batch.push_back(sequence.get());
    if (batch.empty()) return;
    drafter_.draft(engine_, batch, pool_);
    step_.assemble(batch, pool_, engine_.shape());
    model::InlineSite site(engine_);
    const model::LayerRange all{0, engine_.shape().layers};
    ASSERT_TRUE(base::run_inline(model::forward(engine_, all, step_.pass(), site)));
    step_.sample(engine_);
    for (size_t i = 0; i < batch.size(); ++i) {
      const StepBatch::Next& next = step_.next()[i];
      batch[i]->doomed = !next.finite;
      if (!next.finite) continue;
      const std::vector<TokenId>& run = next.run.tokens;
      batch[i]->tokens.insert(batch[i]->tokens.end(), run.begin(), run.end());
      counters_[batch[i]].add(next.drafted, next.run.accepted);
      batch[i]->doomed = finish_of(*batch[i], engine_.shape().eos) != base::FinishReason::kNone;
    }
    const std::vector<Sequence*> behind = Drafter::behind(batch);
    if (!behind.empty()) drafter_.finish(engine_, behind, pool_);
  }
  bool done() const {
    return std::ranges::all_of(sequences_, [](const auto& sequence) { return sequence->doomed; });
  }
  // Slots that have travelled or could: those of final_slots() in every layer.
  std::vector<std::byte> slots(Sequence& sequence, uint32_t layer, uint32_t count) {
    std::vector<std::byte> out(size_t{count} * engine_.shape().kv_row_bytes);
    const model::KvView kv{&pool_, sequence.blocks};
    model::copy_slots_out(kv, engine_.shape(), layer, 0, count, out.data());
    return out;
  }
  const model::DraftCounters& counters(const Sequence& sequence) { return counters_[&sequence]; }

 private:
  TokenId prefill(Sequence& sequence, std::vector<float>* hidden) {
    model::Pass pass;
    pass.tokens = sequence.tokens;
    model::Segment segment;
    segment.count = pass.rows();
    segment.kv = model::KvView{&pool_, sequence.blocks};
    pass.segments = {segment};
    model::InlineSite site(engine_);
    base::run_inline(model::forward(engine_, {0, engine_.shape().layers}, pass, site));
    std::vector<float> logits(engine_.shape().vocab);
    const uint32_t last = segment.count - 1;
    engine_.head(pass, std::span(&last, 1), logits, hidden);
    if (last > 0) {
      std::vector<uint32_t> rows(last);
      std::iota(rows.begin(), rows.end(), 0u);
      model::Pass drafts;
      engine_.final_norm(pass, rows, drafts.h);
      drafts.tokens.assign(sequence.tokens.begin() + 1, sequence.tokens.end());
      segment.count = last;
      drafts.segments = {segment};
      engine_.begin_draft(drafts);
    }
    return model::sample({logits, sequence.tokens, {}, engine_.shape().eos}, sequence.sampling)
        .token;
  }

  model::Engine& engine_;
  model::KvPool pool_;
  Drafter drafter_;
  StepBatch step_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::map<const Sequence*, model::DraftCounters> counters_;
};

struct Case {
  std::vector<TokenId> prompt;
  base::Sampling sampling;
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (uint32_t i = 0; i < 8; ++i) {
    Case one;
    for (uint32_t t = 0; t < 1 + i * 23; ++t)
      one.prompt.push_back(static_cast<TokenId>(3 + (i * 37 + t * 11) % 500));
    one.sampling.max_tokens = 30 + i * 15;
    one.sampling.temperature = i % 2 == 0 ? 0.0f : 0.7f;
    one.sampling.seed = i;
    one.sampling.ignore_eos = i % 3 != 0;
    one.sampling.top_logprobs = i % 4 == 1 ? 3 : -1;
    if (i == 2) one.sampling.repetition_penalty = 1.3f;
    if (i == 4) one.sampling.presence_penalty = 3.0f;
    if (i == 5) one.sampling.min_tokens = 40;
    if (i == 5 || i == 6) {
      for (TokenId id = 10; id < 90; ++id) one.sampling.stop_tokens.push_back(id);
    }
    out.push_back(std::move(one));
  }
  return out;
}

std::vector<TokenId> emitted(const Sequence& sequence) {
  return {sequence.tokens.begin() + sequence.prompt_tokens, sequence.tokens.end()};
}

TEST(Drafter, ABatchDraftsAndEmitsWhatEachSequenceWouldAlone) {
  const auto engine = model::make_oracle_engine(drafting());
  for (const uint32_t steps : {1u, 3u}) {
    Node node(*engine, steps);
    std::vector<Sequence*> sequences;
    for (const Case& one : cases()) {
      sequences.push_back(&node.add(one.prompt, one.sampling));
      node.step();  // each begins while those before it run
    }
    while (!node.done()) node.step();
    uint64_t accepted = 0, rejected = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      SCOPED_TRACE("case " + std::to_string(i));
      const Case one = cases()[i];
      const auto plain = model::generate(*engine, one.prompt, one.sampling);
      EXPECT_EQ(emitted(*sequences[i]), plain.tokens);
      EXPECT_EQ(finish_of(*sequences[i], engine->shape().eos), plain.finish);
      // Not only the tokens: the drafts too, for they follow from the block's own KV.
      model::GenerateOptions options;
      options.mtp_steps = steps;
      options.adapt = true;
      const auto alone = model::generate(*engine, one.prompt, one.sampling, options);
      EXPECT_EQ(alone.tokens, plain.tokens);
      const model::DraftCounters& counters = node.counters(*sequences[i]);
      EXPECT_EQ(counters.rounds, alone.drafts.rounds);
      EXPECT_EQ(counters.drafted, alone.drafts.drafted);
      EXPECT_EQ(counters.accepted, alone.drafts.accepted);
      accepted += counters.accepted;
      rejected += counters.drafted - counters.accepted;
    }
    EXPECT_GT(accepted, 100u);
    EXPECT_GT(rejected, 50u);
  }
}

TEST(Drafter, TheKvThatStepsLeaveIsThatOfAPrefillOfTheSameTokens) {
  const auto engine = model::make_oracle_engine(drafting());
  Node node(*engine, 3), judge(*engine, 3);
  for (const Case& one : cases()) {
    Sequence& sequence = node.add(one.prompt, one.sampling);
    while (!sequence.doomed) node.step();
    const uint32_t count = final_slots(sequence);
    const auto tokens = static_cast<uint32_t>(sequence.tokens.size());
    EXPECT_LE(count, tokens - 1);
    EXPECT_GE(count / 64, (tokens - 1) / 64) << "the last full block lacks rows";
    Sequence& whole = judge.add(sequence.tokens, one.sampling);
    for (uint32_t layer = 0; layer < engine->shape().kv_layers(); ++layer)
      EXPECT_EQ(node.slots(sequence, layer, count), judge.slots(whole, layer, count))
          << "layer " << layer;
  }
}

TEST(Drafter, ARowThatIsNotFiniteEndsTheRunBeforeItAndFailsOnlyAsTheFirst) {
  model::OracleOptions options = drafting();
  options.vocab = 64;
  PoisonedEngine engine(model::make_oracle_engine(options), /*token=*/33);
  const auto healthy = model::make_oracle_engine(options);
  uint32_t failed = 0;
  for (TokenId seed = 3; seed < 23; ++seed) {
    Node node(engine, 3);
    base::Sampling sampling;
    sampling.temperature = 0;
    sampling.max_tokens = 100;
    sampling.ignore_eos = true;
    Sequence& sequence = node.add({seed, 4, 5}, sampling);
    while (!sequence.doomed) node.step();
    const std::vector<TokenId> want = model::generate(*healthy, {{seed, 4, 5}}, sampling).tokens;
    const auto poison = std::ranges::find(want, 33u);
    const bool fails = want.end() - poison > 1;
    failed += fails;
    EXPECT_EQ(emitted(sequence), fails ? std::vector<TokenId>(want.begin(), poison + 1) : want);
  }
  EXPECT_GT(failed, 0u);
  EXPECT_LT(failed, 20u);
}

}  // namespace
}  // namespace decode
