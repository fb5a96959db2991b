// Multi-token prediction: the drafting block of both engines, and answers that do not depend on it.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <limits>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/verify_draft.h"
#include "tests/model/wrapped_engine.h"

namespace model {
namespace {

using base::FinishReason;
using testing::Poisoned;
using testing::ScriptedDrafts;

const std::string kSource = SERVAL_SOURCE_DIR;

template <class T>
T loaded(base::Result<T> result) {
  CHECK(result.has_value(), "{}", result.error().what);
  return std::move(*result);
}

EngineOptions with_drafts(KvType kv = KvType::kBf16) {
  EngineOptions options;
  options.kv = kv;
  options.span = 64;  // partials of several spans merge
  options.mtp = true;
  return options;
}

std::vector<TokenId> some_tokens(uint32_t vocab, size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<TokenId> out(n);
  for (TokenId& token : out) token = static_cast<TokenId>(rng.below(vocab));
  return out;
}

class Mtp : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    checkpoint_ =
        std::make_unique<Checkpoint>(loaded(Checkpoint::open(kSource + "/" + GetParam())));
    reference_ = loaded(make_reference_engine(*checkpoint_, with_drafts()));
    local_ = loaded(make_local_engine(*checkpoint_, with_drafts()));
  }
  uint32_t vocab() const { return local_->shape().vocab; }
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Engine> reference_, local_;
};

// One sequence's drafting block alone: hidden rows as if from the target.
struct DraftedSequence {
  DraftedSequence(const Engine& engine, uint32_t n, uint64_t seed)
      : tokens(some_tokens(engine.shape().vocab, n + 1, seed)),
        pool(KvPool::blocks_for(n + 8),
             LayerRange{engine.shape().layers, engine.shape().layers + 1},
             engine.shape().kv_row_bytes),
        blocks(*pool.allocate(pool.total())),
        state(engine.shape().hidden) {
    base::Rng rng(seed + 1);
    hidden.resize(size_t{n} * engine.shape().hidden);
    for (float& h : hidden) h = static_cast<float>(rng.uniform()) - 0.5f;
  }
  Drafting drafting(uint32_t steps) {
    Drafting out;
    out.state = &state;
    out.kv = KvView{&pool, blocks};
    out.tokens = tokens;
    out.steps = steps;
    out.choose = draft_sampler({}, {}, {}, greedy);
    return out;
  }
  std::vector<std::byte> kv_bytes(uint32_t layer, uint32_t count) {
    std::vector<std::byte> out(size_t{count} * pool.row_bytes());
    copy_rows_out(KvView{&pool, blocks}, layer, 0, count, out.data());
    return out;
  }
  base::Sampling greedy = [] {
    base::Sampling sampling;
    sampling.temperature = 0;
    return sampling;
  }();
  std::vector<TokenId> tokens;
  std::vector<float> hidden;
  KvPool pool;
  std::vector<BlockId> blocks;
  Speculation state;
};

TEST_P(Mtp, TheLocalEngineDraftsTheReferencesBitsInEveryVersion) {
  EngineOptions f32 = with_drafts(KvType::kF32), int8 = with_drafts();
  int8.weights = WeightChoice::kInt8;
  for (const EngineOptions& options : {with_drafts(), f32, int8, with_drafts(KvType::kInt8)}) {
    auto reference = loaded(make_reference_engine(*checkpoint_, options));
    auto local = loaded(make_local_engine(*checkpoint_, options));
    for (DraftIndex later :
         {DraftIndex::kFresh, DraftIndex::kReuseAppend, DraftIndex::kReuseExact}) {
      std::vector<float> rows[2];
      std::vector<std::byte> bytes[2];
      Engine* const engines[] = {reference.get(), local.get()};
      for (size_t e = 0; e < 2; ++e) {
        Engine& engine = *engines[e];
        DraftedSequence s(engine, 150, 3);
        Pass pass;
        pass.tokens.assign(s.tokens.begin() + 1, s.tokens.end());
        pass.h = s.hidden;
        pass.segments.resize(1);
        pass.segments[0].count = 150;
        pass.segments[0].kv = KvView{&s.pool, s.blocks};
        engine.draft(pass, DraftIndex::kFresh);
        for (uint32_t step = 0; step < 3; ++step) {
          rows[e].insert(rows[e].end(), pass.h.begin(), pass.h.end());
          const uint32_t last = pass.rows() - 1;
          std::vector<float> logits(vocab());
          engine.draft_head(pass, std::span(&last, 1), logits);
          rows[e].insert(rows[e].end(), logits.begin(), logits.end());
          pass.tokens.assign(1, 7 + step);
          pass.h.erase(pass.h.begin(), pass.h.end() - engine.shape().hidden);
          pass.segments[0].count = 1;
          pass.segments[0].position = 150 + step;
          engine.draft(pass, later);
        }
        bytes[e] = s.kv_bytes(engine.shape().layers, 152);
      }
      ASSERT_EQ(rows[0].size(), rows[1].size());
      EXPECT_EQ(std::memcmp(rows[0].data(), rows[1].data(), rows[0].size() * sizeof(float)), 0);
      EXPECT_EQ(bytes[0], bytes[1]);
      EXPECT_TRUE(all_finite(rows[0]));
    }
  }
}

// draft_round() against the chain that verify checks on the golden data.
TEST_P(Mtp, ARoundDraftsTheChainThatVerifyChecks) {
  for (Engine* engine : {local_.get(), reference_.get()}) {
    const Shape& shape = engine->shape();
    DraftedSequence s(*engine, 90, 12);
    const std::span<const TokenId> prompt = std::span(s.tokens).first(90);
    s.state.add_hidden(s.hidden);
    Pass pass;
    for (DraftIndex later :
         {DraftIndex::kFresh, DraftIndex::kReuseAppend, DraftIndex::kReuseExact}) {
      const DraftTrace chain = draft_trace(*engine, prompt, s.hidden, s.tokens[90], later);
      DraftedSequence round(*engine, 90, 12);
      round.state.add_hidden(round.hidden);
      Drafting drafting = round.drafting(shape.mtp_steps);
      std::vector<float> logits;
      const auto choose = drafting.choose;
      drafting.choose = [&](std::span<const float> row, std::span<const TokenId> drafts) {
        logits.insert(logits.end(), row.begin(), row.end());
        return choose(row, drafts);
      };
      draft_round(*engine, std::span(&drafting, 1), pass, later);
      const auto drafts = round.state.drafts();
      EXPECT_EQ(std::vector<int64_t>(drafts.begin(), drafts.end()),
                std::vector<int64_t>(chain.tokens.begin() + 1, chain.tokens.end()));
      EXPECT_EQ(logits, chain.logits);
    }
  }
}

TEST_P(Mtp, ADraftDoesNotDependOnWhoElseDrafts) {
  Engine& engine = *local_;
  const uint32_t steps[] = {1, 3, 0, 2};
  std::vector<std::unique_ptr<DraftedSequence>> together;
  std::vector<Drafting> all;
  Pass pass;
  for (uint32_t i = 0; i < 4; ++i) {
    together.push_back(std::make_unique<DraftedSequence>(engine, 60 + 17 * i, i));
    together[i]->state.add_hidden(together[i]->hidden);
    all.push_back(together[i]->drafting(steps[i]));
  }
  draft_round(engine, all, pass);
  for (uint32_t i = 0; i < 4; ++i) {
    DraftedSequence alone(engine, 60 + 17 * i, i);
    // Caught up in two parts, as chunks of a prompt come.
    const size_t half = 20 * size_t{engine.shape().hidden};
    alone.state.add_hidden(std::span(alone.hidden).first(half));
    Drafting drafting = alone.drafting(0);
    draft_round(engine, std::span(&drafting, 1), pass);
    EXPECT_EQ(alone.state.filled(), 20u);
    alone.state.add_hidden(std::span(alone.hidden).subspan(half));
    drafting.steps = steps[i];
    draft_round(engine, std::span(&drafting, 1), pass);
    const auto drafts = alone.state.drafts();
    EXPECT_EQ(drafts.size(), steps[i]);
    EXPECT_TRUE(std::equal(drafts.begin(), drafts.end(), together[i]->state.drafts().begin(),
                           together[i]->state.drafts().end()));
    EXPECT_EQ(alone.kv_bytes(engine.shape().layers, 60 + 17 * i),
              together[i]->kv_bytes(engine.shape().layers, 60 + 17 * i));
  }
}

// What a request may ask for, and every kind of draft acceptance.
std::vector<std::pair<std::string, base::Sampling>> settings(uint32_t vocab) {
  std::vector<std::pair<std::string, base::Sampling>> out;
  base::Sampling s;
  s.max_tokens = 24;
  s.temperature = 0;
  out.emplace_back("greedy", s);
  s.ignore_eos = true;
  s.top_logprobs = 3;
  s.max_tokens = 17;
  out.emplace_back("greedy with logprobs", s);
  s = {};
  s.max_tokens = 24;
  s.seed = 11;
  out.emplace_back("seeded", s);
  s.temperature = 0.4f;
  s.top_k = 20;
  s.top_p = 0.9f;
  s.min_p = 0.02f;
  s.presence_penalty = 0.7f;
  s.frequency_penalty = 0.3f;
  s.repetition_penalty = 1.2f;
  s.logit_bias = {{3, 2.0f}, {vocab - 1, -5.0f}};
  s.min_tokens = 9;
  s.stop_tokens.resize(vocab / 8);
  for (uint32_t i = 0; i < s.stop_tokens.size(); ++i) s.stop_tokens[i] = 8 * i;
  s.top_logprobs = 2;
  out.emplace_back("seeded with everything", s);
  return out;
}

void expect_same(const Generated& want, const Generated& got, const std::string& what) {
  EXPECT_EQ(want.tokens, got.tokens) << what;
  EXPECT_EQ(want.finish, got.finish) << what;
  ASSERT_EQ(want.logprobs.size(), got.logprobs.size()) << what;
  for (size_t i = 0; i < want.logprobs.size(); ++i) {
    EXPECT_EQ(want.logprobs[i].logprob, got.logprobs[i].logprob) << what;
    EXPECT_EQ(want.logprobs[i].top, got.logprobs[i].top) << what;
  }
}

TEST_P(Mtp, TheAnswerIsTheSameWithDraftsAndWithout) {
  const std::vector<TokenId> prompt = some_tokens(vocab(), 70, 5);
  for (const auto& [name, sampling] : settings(vocab())) {
    const Generated plain = generate(*local_, prompt, sampling, {.chunk = 0});
    EXPECT_EQ(plain.drafts.rounds, 0u);
    for (uint32_t chunk : {1u, 7u, 64u, 0u}) {
      const Generated drafted =
          generate(*local_, prompt, sampling, {.chunk = chunk, .mtp_steps = 3});
      expect_same(plain, drafted, name);
      EXPECT_GT(drafted.drafts.rounds + (plain.tokens.size() < 2), 0u);
    }
    expect_same(plain, generate(*local_, prompt, sampling, {.mtp_steps = 1}), name);
    const Generated judge = generate(*reference_, prompt, sampling, {.chunk = 64, .mtp_steps = 3});
    expect_same(plain, judge, name);
  }
}

struct Seen {
  std::vector<std::byte> trunk, drafted;
  uint32_t positions = 0, drafted_positions = 0;
};
// Every KV row of the first `limit` positions.
std::function<void(const KvSeen&)> look(const Shape& shape, uint32_t limit, Seen& out) {
  return [&shape, limit, &out](const KvSeen& seen) {
    out.positions = std::min(seen.positions, limit);
    out.drafted_positions = std::min(seen.drafted, limit);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      const size_t at = out.trunk.size();
      out.trunk.resize(at + size_t{out.positions} * shape.kv_row_bytes);
      copy_rows_out(seen.kv, layer, 0, out.positions, out.trunk.data() + at);
    }
    if (out.drafted_positions == 0) return;
    out.drafted.resize(size_t{out.drafted_positions} * shape.kv_row_bytes);
    copy_rows_out(seen.kv, shape.layers, 0, out.drafted_positions, out.drafted.data());
  };
}

// What is in `seen` stands in `prefilled` too, byte for byte.
void expect_kv(const Shape& shape, const Seen& seen, const Seen& prefilled,
               const std::string& what) {
  const size_t row = shape.kv_row_bytes;
  ASSERT_LE(seen.positions, prefilled.positions);
  for (uint32_t layer = 0; layer < shape.layers; ++layer)
    EXPECT_EQ(std::memcmp(seen.trunk.data() + layer * seen.positions * row,
                          prefilled.trunk.data() + layer * prefilled.positions * row,
                          seen.positions * row),
              0)
        << what << " layer " << layer;
  ASSERT_LE(seen.drafted.size(), prefilled.drafted.size());
  EXPECT_TRUE(
      std::ranges::equal(seen.drafted, std::span(prefilled.drafted).first(seen.drafted.size())))
      << what;
}

// With drafts that are right now and then, every number of them is accepted and rejected, and what
// stays in the pool is what a prefill of the same tokens leaves, drafting block included.
TEST_P(Mtp, KvAfterEveryKindOfAcceptanceIsThatOfAPrefill) {
  const std::vector<TokenId> prompt = some_tokens(vocab(), 61, 6);
  for (auto [name, sampling] : settings(vocab())) {
    sampling.max_tokens = 40;
    const Generated plain = generate(*local_, prompt, sampling, {.chunk = 0});
    std::vector<TokenId> truth = prompt;
    truth.insert(truth.end(), plain.tokens.begin(), plain.tokens.end());
    const auto final = static_cast<uint32_t>(truth.size()) - 1;  // the last token has no KV

    Seen prefilled;
    base::Sampling one = sampling;
    one.max_tokens = 1;
    generate(*local_, truth, one,
             {.chunk = 0, .mtp_steps = 3, .at_end = look(local_->shape(), final, prefilled)});
    ASSERT_EQ(prefilled.positions, final);

    const ScriptedDrafts::Right scripts[] = {
        [](uint32_t) { return true; }, [](uint32_t) { return false; },
        [](uint32_t p) { return p % 2 == 0; }, [](uint32_t p) { return p % 5 > 1; }};
    for (const auto& script : scripts) {
      ScriptedDrafts engine(*local_, truth, script);
      Seen seen;
      const Generated drafted =
          generate(engine, prompt, sampling,
                   {.chunk = 7, .mtp_steps = 3, .at_end = look(local_->shape(), final, seen)});
      expect_same(plain, drafted, name);
      EXPECT_GE(seen.positions + 1, final) << "all but the last tokens have their KV";
      EXPECT_GE(seen.drafted_positions + 1, prompt.size());
      expect_kv(local_->shape(), seen, prefilled, name);
    }
    for (Engine* engine : {local_.get(), reference_.get()}) {
      Seen plain_seen;
      generate(*engine, prompt, sampling,
               {.chunk = 0, .at_end = look(local_->shape(), final, plain_seen)});
      EXPECT_GE(plain_seen.positions + 1, final);
      expect_kv(local_->shape(), plain_seen, prefilled, name + " without drafts");
    }
  }
}

TEST_P(Mtp, RightDraftsAreAllAcceptedAndWrongOnesNever) {
  const std::vector<TokenId> prompt = some_tokens(vocab(), 20, 7);
  base::Sampling sampling;
  sampling.seed = 3;
  sampling.max_tokens = 25;
  sampling.ignore_eos = true;
  std::vector<TokenId> truth = prompt;
  const Generated plain = generate(*local_, prompt, sampling);
  truth.insert(truth.end(), plain.tokens.begin(), plain.tokens.end());
  const uint32_t steps = std::min(3u, local_->shape().mtp_steps);
  ScriptedDrafts right(*local_, truth, [](uint32_t) { return true; });
  const DraftCounters all = generate(right, prompt, sampling, {.mtp_steps = 3}).drafts;
  EXPECT_EQ(all.accepted, all.drafted);
  EXPECT_EQ(all.rounds, steps == 3 ? 6u : 12u) << "1 + 6 · 4 and 1 + 12 · 2 tokens";
  EXPECT_EQ(all.accepted_at[0], all.rounds);
  ScriptedDrafts wrong(*local_, truth, [](uint32_t) { return false; });
  const DraftCounters none = generate(wrong, prompt, sampling, {.mtp_steps = 3}).drafts;
  EXPECT_EQ(none.accepted, 0u);
  EXPECT_EQ(none.rounds, 23u) << "a draft that could not be emitted is not made";
}

TEST_P(Mtp, LogitsThatAreNotFiniteEndTheAnswerWhereTheyWouldWithoutDrafts) {
  const std::vector<TokenId> prompt = some_tokens(vocab(), 20, 8);
  base::Sampling sampling;
  sampling.seed = 4;
  sampling.max_tokens = 12;
  sampling.ignore_eos = true;
  const Generated healthy = generate(*local_, prompt, sampling);
  std::vector<TokenId> truth = prompt;
  truth.insert(truth.end(), healthy.tokens.begin(), healthy.tokens.end());
  ScriptedDrafts right(*local_, truth, [](uint32_t p) { return p % 4 != 0; });
  for (uint32_t at = 0; at < 12; ++at) {
    Poisoned engine(right, 20 + at, /*drafts=*/false);
    const Generated plain = generate(engine, prompt, sampling);
    EXPECT_EQ(plain.finish, FinishReason::kError);
    EXPECT_EQ(plain.tokens.size(), at);
    expect_same(plain, generate(engine, prompt, sampling, {.mtp_steps = 3}), "poisoned");
  }
  Poisoned drafts(*local_, /*position=*/0, /*drafts=*/true);
  expect_same(healthy, generate(drafts, prompt, sampling, {.mtp_steps = 3}), "poisoned drafts");
}

TEST_P(Mtp, AStopInsideAnAcceptedRunCutsThere) {
  const std::vector<TokenId> prompt = some_tokens(vocab(), 30, 9);
  base::Sampling sampling;
  sampling.seed = 21;
  sampling.max_tokens = 20;
  sampling.ignore_eos = true;
  const Generated whole = generate(*local_, prompt, sampling);
  std::vector<TokenId> truth = prompt;
  truth.insert(truth.end(), whole.tokens.begin(), whole.tokens.end());
  ScriptedDrafts right(*local_, truth, [](uint32_t) { return true; });
  for (uint32_t at = 0; at < whole.tokens.size(); ++at) {
    base::Sampling stopping = sampling;
    stopping.stop_tokens = {whole.tokens[at]};
    const Generated plain = generate(*local_, prompt, stopping);
    EXPECT_EQ(plain.finish, FinishReason::kStop);
    expect_same(plain, generate(right, prompt, stopping, {.mtp_steps = 3}), "stop");
    stopping.min_tokens = at / 2;
    expect_same(generate(*local_, prompt, stopping),
                generate(right, prompt, stopping, {.mtp_steps = 3}), "min tokens");
    base::Sampling shorter = sampling;
    shorter.max_tokens = at + 1;
    const Generated cut = generate(right, prompt, shorter, {.mtp_steps = 3});
    EXPECT_EQ(cut.finish, FinishReason::kLength);
    EXPECT_TRUE(std::equal(cut.tokens.begin(), cut.tokens.end(), whole.tokens.begin()) &&
                cut.tokens.size() == at + 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Mtp,
                         ::testing::Values("tests/golden/tiny_flash", "tests/golden/tiny_lite",
                                           "tests/golden/tiny_longcat2",
                                           "tests/golden/small_longcat2_realdims",
                                           "models/serval-tiny"),
                         [](const auto& info) {
                           const std::string path = info.param;
                           std::string name = path.substr(path.rfind('/') + 1);
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(MtpOptions, AnEngineOffersTheStepsOfItsCheckpointOnlyWhenAsked) {
  const Checkpoint flash = loaded(Checkpoint::open(kSource + "/tests/golden/tiny_flash"));
  const Checkpoint longcat2 = loaded(Checkpoint::open(kSource + "/tests/golden/tiny_longcat2"));
  for (const auto make : {make_reference_engine, make_local_engine}) {
    EXPECT_EQ(loaded(make(flash, with_drafts()))->shape().mtp_steps, 1u);
    EXPECT_EQ(loaded(make(longcat2, with_drafts()))->shape().mtp_steps, 3u);
    const auto plain = loaded(make(longcat2, {}));
    EXPECT_EQ(plain->shape().mtp_steps, 0u);
    EXPECT_EQ(plain->shape().kv_layers(), plain->shape().layers);
  }
}

TEST(MtpAcceptance, OfTheBuiltInModelIsWhatItWasTrainedFor) {
  const Checkpoint checkpoint = loaded(Checkpoint::open(kSource + "/models/serval-tiny"));
  const auto engine = loaded(make_local_engine(checkpoint, with_drafts()));
  const Safetensors file =
      loaded(Safetensors::open(kSource + "/models/serval-tiny/reference.safetensors"));
  DraftCounters total;
  uint64_t tokens = 0;
  for (uint32_t i = 0; i < 5; ++i) {
    const Tensor& ids = file.tensors().at("prompt" + std::to_string(i) + ".input_ids");
    std::vector<int64_t> wide(ids.elements());
    std::memcpy(wide.data(), ids.bytes.data(), ids.bytes.size());
    const std::vector<TokenId> prompt(wide.begin(), wide.end());
    base::Sampling sampling;
    sampling.temperature = 0;
    sampling.max_tokens = 256;
    sampling.ignore_eos = true;
    const Generated out = generate(*engine, prompt, sampling, {.mtp_steps = 3});
    total.add(out.drafts);
    tokens += out.tokens.size() - 1;
  }
  const auto rounds = static_cast<double>(total.rounds);
  const double per_round = static_cast<double>(tokens) / rounds;
  std::printf("accepted as a prefix: %.3f %.3f %.3f, tokens a verification %.3f\n",
              static_cast<double>(total.accepted_at[0]) / rounds,
              static_cast<double>(total.accepted_at[1]) / rounds,
              static_cast<double>(total.accepted_at[2]) / rounds, per_round);
  EXPECT_GT(per_round, 1.8);  // models/serval-tiny/README.md: 2.177 over its own sample
}

}  // namespace
}  // namespace model
