// The oracle engine: the same tokens however the work is cut, other tokens when one row is wrong.
#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"
#include "tests/model/pass_runner.h"

namespace {

using base::FinishReason;
using base::Sampling;
using model::Engine;
using model::LayerRange;
using model::OracleOptions;
using model::Pass;
using model::TokenId;
using model::testing::Sequence;

std::vector<TokenId> some_tokens(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<TokenId> out(n);
  for (TokenId& t : out) t = static_cast<TokenId>(3 + rng.below(500));
  return out;
}

Sampling greedy(uint32_t max_tokens) {
  Sampling sampling;
  sampling.temperature = 0;
  sampling.max_tokens = max_tokens;
  return sampling;
}

TEST(Oracle, BitsDoNotDependOnChunks) {
  auto engine = model::make_oracle_engine({});
  const auto tokens = some_tokens(200, 1);
  const Sequence whole = model::testing::run_alone(*engine, tokens, 0);
  for (uint32_t chunk : {1u, 7u, 64u, 199u}) {
    const Sequence cut = model::testing::run_alone(*engine, tokens, chunk);
    EXPECT_EQ(cut.hidden, whole.hidden) << chunk;
    EXPECT_EQ(cut.kv_bytes(engine->shape()), whole.kv_bytes(engine->shape())) << chunk;
  }
}

TEST(Oracle, BitsDoNotDependOnTheBatch) {
  auto engine = model::make_oracle_engine({});
  std::vector<Sequence> batch;
  for (uint64_t i = 0; i < 3; ++i) batch.emplace_back(*engine, some_tokens(90 + 20 * i, i));
  Pass pass;
  const std::vector<std::vector<uint32_t>> plans{{64, 1, 10}, {1, 64, 0}, {0, 3, 77}};
  for (size_t step = 0; !(batch[0].finished() && batch[1].finished() && batch[2].finished());
       ++step)
    model::testing::advance(*engine, {&batch[0], &batch[1], &batch[2]}, plans[step % 3], pass);
  for (const Sequence& s : batch) {
    const Sequence alone = model::testing::run_alone(*engine, s.tokens, 0);
    EXPECT_EQ(s.hidden, alone.hidden);
    EXPECT_EQ(s.kv_bytes(engine->shape()), alone.kv_bytes(engine->shape()));
  }
}

TEST(Oracle, OneWrongKvRowAnywhereChangesEveryLaterToken) {
  auto engine = model::make_oracle_engine({});
  const auto tokens = some_tokens(100, 5);
  const Sequence good = model::testing::run_alone(*engine, tokens, 0);
  for (uint32_t layer = 0; layer < engine->shape().layers; ++layer) {
    for (uint32_t position : {0u, 50u, 98u}) {
      for (size_t byte : {size_t{0}, size_t{15}}) {
        Sequence bad(*engine, tokens);
        Pass pass;
        model::testing::advance(*engine, {&bad}, {99}, pass);
        model::KvView{bad.pool.get(), bad.blocks}.row(layer, position)[byte] ^= std::byte{1};
        model::testing::advance(*engine, {&bad}, {1}, pass);
        EXPECT_TRUE(std::equal(good.hidden.begin(), good.hidden.end() - 8, bad.hidden.begin()));
        EXPECT_FALSE(std::equal(good.hidden.end() - 8, good.hidden.end(), bad.hidden.end() - 8));
      }
    }
  }
}

TEST(Oracle, SwappedKvRowsChangeTheToken) {
  auto engine = model::make_oracle_engine({});
  const auto tokens = some_tokens(40, 6);
  const Sequence good = model::testing::run_alone(*engine, tokens, 0);
  Sequence bad(*engine, tokens);
  Pass pass;
  model::testing::advance(*engine, {&bad}, {39}, pass);
  const model::KvView kv{bad.pool.get(), bad.blocks};
  std::swap_ranges(kv.row(2, 10), kv.row(2, 10) + engine->shape().kv_row_bytes, kv.row(2, 11));
  model::testing::advance(*engine, {&bad}, {1}, pass);
  EXPECT_NE(good.hidden, bad.hidden);
}

TEST(Oracle, AWrongContextAtAChunkBoundChangesTheRow) {
  auto engine = model::make_oracle_engine({});
  const std::vector<TokenId> a = some_tokens(10, 7);
  std::vector<TokenId> b = a;
  b[6] += 1;  // within the context of row 9, whose own id is the same
  Pass pass;
  std::vector<std::vector<float>> rows;
  for (const std::vector<TokenId>* ids : {&a, static_cast<const std::vector<TokenId>*>(&b)}) {
    pass.tokens = {a[9]};
    model::Segment segment;
    segment.count = 1;
    segment.position = 9;
    segment.context = std::span<const TokenId>(*ids).subspan(6, 3);
    pass.segments = {segment};
    engine->embed(pass);
    rows.push_back(pass.h);
  }
  EXPECT_NE(rows[0], rows[1]);
}

// Gives expert outputs of one pair a push.
class FaultySite final : public model::Site {
 public:
  FaultySite(Engine& engine, uint32_t layer, size_t slot)
      : engine_(engine), layer_(layer), slot_(slot) {}
  base::Task<void> compute(std::function<void()> job, uint32_t) override {
    job();
    co_return;
  }
  base::Task<bool> run_experts(uint32_t layer, Pass& pass) override {
    engine_.routed_experts(layer, pass);
    const uint32_t hidden = engine_.shape().hidden;
    if (layer == layer_ && pass.expert_ids[slot_] < engine_.shape().experts) {
      pass.expert_out[slot_ * hidden] += 1.0f;
      ++faults;
    }
    co_return true;
  }
  void kv_ready(uint32_t layer, Pass&) override { kv_layers.push_back(layer); }
  int faults = 0;
  std::vector<uint32_t> kv_layers;

 private:
  Engine& engine_;
  uint32_t layer_;
  size_t slot_;
};

TEST(Oracle, OneWrongExpertRowChangesItsRowAndNoOther) {
  auto engine = model::make_oracle_engine({});
  const auto tokens = some_tokens(4, 8);
  const Sequence good = model::testing::run_alone(*engine, tokens, 0);
  int faults = 0;
  const uint32_t last = engine->shape().layers - 1;
  for (size_t slot = 3 * engine->shape().topk; slot < 4 * engine->shape().topk; ++slot) {
    Sequence bad(*engine, tokens);
    Pass pass;
    pass.tokens = tokens;
    model::Segment segment;
    segment.count = 4;
    segment.kv = model::KvView{bad.pool.get(), bad.blocks};
    pass.segments = {segment};
    FaultySite site(*engine, last, slot);
    ASSERT_TRUE(base::run_inline(
        model::forward(*engine, LayerRange{0, engine->shape().layers}, pass, site)));
    EXPECT_EQ(site.kv_layers, (std::vector<uint32_t>{0, 1, 2, 3}));
    EXPECT_TRUE(std::equal(pass.h.begin(), pass.h.end() - 8, good.hidden.begin()));
    EXPECT_EQ(std::equal(pass.h.end() - 8, pass.h.end(), good.hidden.end() - 8), site.faults == 0);
    faults += site.faults;
  }
  EXPECT_GT(faults, 0);
}

TEST(Forward, LayerRangesInTurnEqualOnePass) {
  auto engine = model::make_oracle_engine({});
  const auto tokens = some_tokens(30, 9);
  const Sequence whole = model::testing::run_alone(*engine, tokens, 0);
  Sequence staged(*engine, tokens);
  Pass pass;
  pass.tokens = tokens;
  model::Segment segment;
  segment.count = 30;
  segment.kv = model::KvView{staged.pool.get(), staged.blocks};
  pass.segments = {segment};
  model::InlineSite site(*engine);
  for (LayerRange range : {LayerRange{0, 1}, LayerRange{1, 3}, LayerRange{3, 4}})
    ASSERT_TRUE(base::run_inline(model::forward(*engine, range, pass, site)));
  EXPECT_EQ(pass.h, whole.hidden);
}

// Loses the experts of one layer.
class LosingSite final : public model::Site {
 public:
  base::Task<void> compute(std::function<void()> job, uint32_t) override {
    job();
    co_return;
  }
  base::Task<bool> run_experts(uint32_t layer, Pass&) override { co_return layer != 1; }
};

TEST(Forward, IsVoidWhenTheExpertsCannotBeHad) {
  auto engine = model::make_oracle_engine({});
  Sequence sequence(*engine, some_tokens(3, 1));
  Pass pass;
  pass.tokens = sequence.tokens;
  model::Segment segment;
  segment.count = 3;
  segment.kv = model::KvView{sequence.pool.get(), sequence.blocks};
  pass.segments = {segment};
  LosingSite site;
  EXPECT_FALSE(base::run_inline(model::forward(*engine, LayerRange{0, 4}, pass, site)));
}

TEST(Generate, GivesTheSameTokensForEveryChunk) {
  auto engine = model::make_oracle_engine({.seed = 4});
  const auto prompt = some_tokens(130, 2);
  Sampling sampling = greedy(40);
  sampling.temperature = 1.5f;
  sampling.seed = 99;
  const auto whole = model::generate(*engine, prompt, sampling, {.chunk = 0});
  EXPECT_GE(whole.tokens.size(), 1u);
  for (uint32_t chunk : {1u, 7u, 64u})
    EXPECT_EQ(model::generate(*engine, prompt, sampling, {.chunk = chunk}).tokens, whole.tokens);
}

TEST(Generate, ContinuesFromItsOwnLogWithTheSameTokens) {
  auto engine = model::make_oracle_engine({.seed = 5});
  const auto prompt = some_tokens(20, 3);
  Sampling sampling = greedy(30);
  sampling.ignore_eos = true;
  const auto whole = model::generate(*engine, prompt, sampling);
  ASSERT_EQ(whole.tokens.size(), 30u);
  EXPECT_EQ(whole.finish, FinishReason::kLength);
  std::vector<TokenId> log = prompt;
  log.insert(log.end(), whole.tokens.begin(), whole.tokens.begin() + 11);
  sampling.max_tokens = 19;
  const auto rest = model::generate(*engine, log, sampling);
  EXPECT_TRUE(std::equal(rest.tokens.begin(), rest.tokens.end(), whole.tokens.begin() + 11,
                         whole.tokens.end()));
}

TEST(Generate, AnswersEndNowAndThenAndDifferByPrompt) {
  auto engine = model::make_oracle_engine({});
  int stopped = 0;
  std::set<std::vector<TokenId>> answers;
  for (uint64_t i = 0; i < 12; ++i) {
    const auto out = model::generate(*engine, some_tokens(5, 100 + i), greedy(200));
    stopped += out.finish == FinishReason::kStop;
    EXPECT_EQ(out.finish == FinishReason::kStop, out.tokens.back() == engine->shape().eos[0]);
    answers.insert(out.tokens);
  }
  EXPECT_GT(stopped, 0);
  EXPECT_LT(stopped, 12);
  EXPECT_EQ(answers.size(), 12u);
}

TEST(Generate, StopsAtTheContextBound) {
  auto engine = model::make_oracle_engine({.max_context = 32});
  Sampling sampling = greedy(100);
  sampling.ignore_eos = true;
  const auto out = model::generate(*engine, some_tokens(30, 1), sampling);
  EXPECT_EQ(out.tokens.size(), 2u);
  EXPECT_EQ(out.finish, FinishReason::kLength);
}

}  // namespace
