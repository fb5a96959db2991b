// N-gram embedding: the ids, and every way in which the context of a token can get lost (chunk
// boundary, prefix hit, hand-off, rejected drafts, rows looked up elsewhere). Always equal bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/rng.h"
#include "model/ngram_tables.h"
#include "model/numerics.h"
#include "tests/model/pass_runner.h"

namespace model {
namespace {

using testing::advance;
using testing::run_alone;
using testing::Sequence;

const std::string kSource = SERVAL_SOURCE_DIR;

template <class T>
T loaded(base::Result<T> result) {
  CHECK(result.has_value(), "{}", result.error().what);
  return std::move(*result);
}

class Ngram : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    checkpoint_ =
        std::make_unique<Checkpoint>(loaded(Checkpoint::open(kSource + "/" + GetParam())));
    reference_ = loaded(make_reference_engine(*checkpoint_, {}));
    local_ = loaded(make_local_engine(*checkpoint_, {}));
  }
  const ModelConfig& config() const { return checkpoint_->config(); }
  TokenId eos() const { return config().eos[0]; }
  // Random, with EOS here and there, twice in a row too, and at the start.
  std::vector<TokenId> tokens(size_t n, uint64_t seed) const {
    base::Rng rng(seed);
    std::vector<TokenId> out(n);
    for (TokenId& token : out)
      token = rng.chance(0.15) ? eos() : static_cast<TokenId>(rng.below(config().vocab));
    if (seed % 2 == 0) out[0] = eos();
    out[n / 2] = out[n / 2 + 1] = eos();
    return out;
  }
  // The formula as model cards write it, in wide arithmetic: walk back until the start or an EOS.
  uint64_t id_by_hand(const std::vector<TokenId>& all, size_t p, uint32_t table) const {
    const NgramConfig& ngram = *config().ngram;
    const uint32_t n = table / ngram.splits + 2;
    const auto m = static_cast<uint64_t>(ngram.ratio * config().vocab);
    const uint64_t modulus = m + 2 * table + 1;
    __extension__ unsigned __int128 sum = 0, power = 1;
    for (uint32_t d = 0; d < n; ++d) {
      if (d > p || (d > 0 && all[p - d] == eos())) break;
      sum += power * all[p - d];
      power *= config().vocab;
    }
    return static_cast<uint64_t>(sum % modulus);
  }
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Engine> reference_, local_;
};

void expect_equal(const Engine& engine, const Sequence& a, const Sequence& b) {
  ASSERT_EQ(a.hidden.size(), b.hidden.size());
  EXPECT_EQ(std::memcmp(a.hidden.data(), b.hidden.data(), a.hidden.size() * sizeof(float)), 0);
  EXPECT_EQ(a.kv_bytes(engine.shape()), b.kv_bytes(engine.shape()));
}

Pass pass_of(const std::vector<TokenId>& all, uint32_t begin, uint32_t count, uint32_t back) {
  Pass pass;
  pass.tokens.assign(all.begin() + begin, all.begin() + begin + count);
  Segment segment;
  segment.count = count;
  segment.position = begin;
  back = std::min(begin, back);
  segment.context = std::span<const TokenId>(all).subspan(begin - back, back);
  pass.segments.push_back(segment);
  return pass;
}

TEST_P(Ngram, IdsAreThoseOfTheFormulaWhereverTheTokenStands) {
  const NgramTables tables(*checkpoint_);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const std::vector<TokenId> all = tokens(60, seed);
    const uint32_t back = config().ngram->order - 1;
    for (uint32_t chunk : {60u, 1u, 2u, 5u}) {
      for (uint32_t begin = 0; begin < 60; begin += chunk) {
        const uint32_t count = std::min(chunk, 60 - begin);
        const std::vector<uint64_t> ids = tables.ids_of(pass_of(all, begin, count, back));
        for (uint32_t t = 0; t < tables.tables(); ++t)
          for (uint32_t i = 0; i < count; ++i)
            ASSERT_EQ(ids[size_t{t} * count + i], id_by_hand(all, begin + i, t))
                << "table " << t << " position " << begin + i;
      }
    }
  }
}

TEST_P(Ngram, AnEosBeforeCutsTheContextAndAnEosAtHandDoesNot) {
  const NgramTables tables(*checkpoint_);
  const auto last_ids = [&](std::vector<TokenId> all) {
    const auto n = static_cast<uint32_t>(all.size());
    std::vector<uint64_t> ids = tables.ids_of(pass_of(all, 0, n, 0)), last;
    for (uint32_t t = 0; t < tables.tables(); ++t) last.push_back(ids[size_t{t} * n + n - 1]);
    return last;
  };
  EXPECT_EQ(last_ids({5, 6, eos(), 9}), last_ids({9})) << "as at the start of a sequence";
  EXPECT_EQ(last_ids({5, 6, eos(), 9}), last_ids({7, 8, eos(), 9}));
  EXPECT_NE(last_ids({5, 6, 7, 9}), last_ids({9}));
  EXPECT_NE(last_ids({5, 6, eos()}), last_ids({5, 7, eos()})) << "the EOS itself looks back";
  EXPECT_EQ(last_ids({3, eos(), eos()}), last_ids({4, eos(), eos()}));
}

TEST_P(Ngram, ChunkBoundariesAnywhereLeaveTheBitsOfOnePass) {
  for (Engine* engine : {local_.get(), reference_.get()}) {
    for (uint64_t seed : {2u, 3u}) {
      const Sequence whole = run_alone(*engine, tokens(40, seed), 0);
      for (uint32_t chunk : {1u, 2u, 3u, 4u, 7u})
        expect_equal(*engine, whole, run_alone(*engine, whole.tokens, chunk));
    }
  }
}

// The rest of a sequence on another engine that has only its KV rows and, of its tokens, the few
// ids before: a prefix hit, or the hand-off from prefill to decode.
TEST_P(Ngram, APrefixHitAndAHandOffNeedTheLastIdsAlone) {
  const auto other = loaded(make_local_engine(*checkpoint_, {}));
  const Shape& shape = other->shape();
  for (uint32_t cut : {1u, 2u, 19u, 64u}) {
    const Sequence whole = run_alone(*local_, tokens(100, 4), 0);
    const Sequence before =
        run_alone(*local_, {whole.tokens.begin(), whole.tokens.begin() + cut}, 0);
    Sequence after(*other, whole.tokens);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      std::vector<std::byte> rows(size_t{cut} * shape.kv_row_bytes);
      copy_rows_out(KvView{before.pool.get(), before.blocks}, layer, 0, cut, rows.data());
      copy_rows_in(KvView{after.pool.get(), after.blocks}, layer, 0, cut, rows.data());
    }
    // What was before the last ids is gone.
    const uint32_t back = std::min(cut, shape.ngram_context);
    std::fill(after.tokens.begin(), after.tokens.begin() + cut - back, 1u);
    after.done = cut;
    after.hidden = before.hidden;
    Pass pass;
    for (uint32_t step = 1; !after.finished(); step = 13) advance(*other, {&after}, {step}, pass);
    expect_equal(*other, whole, after);
  }
}

TEST_P(Ngram, RejectedDraftsLeaveNoTraceInTheContext) {
  const std::vector<TokenId> truth = tokens(50, 5);
  for (Engine* engine : {local_.get(), reference_.get()}) {
    const Sequence whole = run_alone(*engine, truth, 0);
    Sequence drafted(*engine, truth);
    Pass pass;
    advance(*engine, {&drafted}, {20}, pass);
    base::Rng rng(1);
    while (!drafted.finished()) {
      // A pass over the next token and three wrong ones; only the first row counts.
      const uint32_t done = drafted.done;
      const size_t hidden = drafted.hidden.size();
      for (uint32_t i = done + 1; i < std::min<size_t>(done + 4, truth.size()); ++i)
        drafted.tokens[i] = static_cast<TokenId>(rng.below(config().vocab));
      advance(*engine, {&drafted}, {4}, pass);
      drafted.tokens = truth;
      drafted.done = done + 1;
      drafted.hidden.resize(hidden + engine->shape().hidden);
    }
    expect_equal(*engine, whole, drafted);
  }
}

TEST_P(Ngram, SharesOwnEveryRowOnceAndTheirRowsMakeTheSameEmbedding) {
  constexpr uint32_t kShares = 3;
  std::vector<NgramTables> shares;
  for (uint32_t i = 0; i < kShares; ++i)
    shares.emplace_back(*checkpoint_, NgramShard{.index = i, .count = kShares});
  const std::vector<TokenId> all = tokens(90, 6);
  Pass pass = pass_of(all, 30, 60, config().ngram->order - 1);
  const std::vector<uint64_t> ids = shares[0].ids_of(pass);
  const size_t rows = pass.rows(), dim = shares[0].dim();
  std::vector<float> entries(ids.size() * dim, 0.0f);
  std::vector<size_t> found(kShares);
  for (uint32_t i = 0; i < kShares; ++i) {
    shares[i].prefetch(ids);
    for (uint32_t t = 0; t < shares[i].tables(); ++t)
      found[i] += shares[i].look_up(t, std::span(ids).subspan(t * rows, rows),
                                    std::span(entries).subspan(t * rows * dim, rows * dim));
  }
  EXPECT_EQ(found[0] + found[1] + found[2], ids.size());
  for (size_t n : found) EXPECT_GT(n, ids.size() / 6) << "spread evenly, more or less";

  for (Engine* engine : {local_.get(), reference_.get()}) {
    engine->prefetch(pass);
    engine->embed(pass);
    const std::vector<float> own = pass.h;
    pass.ngram = entries;
    pass.h.clear();
    engine->embed(pass);
    EXPECT_TRUE(pass.ngram.empty()) << "the next pass looks up for itself";
    ASSERT_EQ(own.size(), pass.h.size());
    EXPECT_EQ(std::memcmp(own.data(), pass.h.data(), own.size() * sizeof(float)), 0);
    pass.ngram = entries;
    pass.ngram[7 * dim] += 1;
    engine->embed(pass);
    EXPECT_NE(std::memcmp(own.data(), pass.h.data(), own.size() * sizeof(float)), 0)
        << "what was given is what is used";
  }
}

TEST_P(Ngram, ALookUpLeavesRowsOfOtherSharesAlone) {
  const NgramTables share(*checkpoint_, NgramShard{.index = 1, .count = 2});
  const std::vector<uint64_t> ids = {0, 63, 64, 127, 128, 70};
  std::vector<float> out(ids.size() * share.dim(), -7.0f), want(share.dim());
  EXPECT_EQ(share.look_up(0, ids, out), 3u);
  const NgramTables all(*checkpoint_);
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(all.look_up(0, std::span(ids).subspan(i, 1), want), 1u);
    if (!share.shard().owns(ids[i])) std::fill(want.begin(), want.end(), -7.0f);
    EXPECT_TRUE(std::equal(want.begin(), want.end(),
                           out.begin() + static_cast<ptrdiff_t>(i * share.dim())));
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Ngram,
                         ::testing::Values("tests/golden/tiny_lite", "tests/golden/tiny_longcat2",
                                           "models/serval-tiny"),
                         [](const auto& info) {
                           const std::string path = info.param;
                           std::string name = path.substr(path.rfind('/') + 1);
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace model
