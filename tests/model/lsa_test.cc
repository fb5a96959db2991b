// LongCat Sparse Attention in both engines: the budget, the choice by score, its reuse, blocks
// before tokens, rollback, and rows that are not finite. Every comparison is of bytes.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/kernels_attention.h"
#include "model/make_checkpoint.h"
#include "model/numerics.h"
#include "tests/model/pass_runner.h"
#include "tests/model/safetensors_writer.h"

namespace model {
namespace {

using testing::advance;
using testing::run_alone;
using testing::Sequence;

// A small LongCat-2.0 without n-grams and drafts. topk 0: without the indexer.
struct Sizes {
  const char* name;
  uint32_t heads = 4, kv_lora = 24, rope = 8, index_heads = 8, index_dim = 16;
  uint32_t topk = 24, sink = 2, local = 8;
};
std::string config_of(const Sizes& z) {
  const std::string index =
      z.topk == 0 ? ""
                  : fmt::format(R"("index_n_heads": {}, "index_head_dim": {}, "index_topk": {},
 "index_k_norm_type": "rms", "cli_factor": 2, "index_local_tokens": {}, "index_init_tokens": {},)",
                                z.index_heads, z.index_dim, z.topk, z.local, z.sink);
  return fmt::format(R"({{{} "architectures": ["LongcatCausalLM"], "hidden_size": 32,
 "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "num_layers": 2, "num_attention_heads": {},
 "q_lora_rank": 24, "kv_lora_rank": {}, "qk_nope_head_dim": 12, "qk_rope_head_dim": {},
 "v_head_dim": 10, "vocab_size": 96, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2,
 "routed_scaling_factor": 2, "rope_theta": 10000.0, "max_position_embeddings": 4096,
 "mla_scale_q_lora": true, "mla_scale_kv_lora": true, "rms_norm_eps": 1e-05, "attention_method": "MLA",
 "zero_expert_type": "identity", "bos_token_id": 1, "eos_token_id": 2, "attention_bias": false,
 "tie_word_embeddings": false, "torch_dtype": "float32"}})",
                     index, z.heads, z.kv_lora, z.rope);
}

class LsaModel {
 public:
  explicit LsaModel(const Sizes& sizes) {
    test::write_text(folder_ / "config.json", config_of(sizes));
    const auto made =
        make_checkpoint(folder_ / "config.json", folder_ / "made", {.dtype = Dtype::kF32});
    EXPECT_TRUE(made) << made.error().what;
    reopen();
  }
  // The same weights under another config.
  void configure(const Sizes& sizes) {
    checkpoint_.reset();
    test::write_text(folder_ / "made/config.json", config_of(sizes));
    reopen();
  }
  std::unique_ptr<Engine> local(const EngineOptions& options = {}) const {
    return made(make_local_engine(*checkpoint_, options));
  }
  std::unique_ptr<Engine> reference(const EngineOptions& options = {}) const {
    return made(make_reference_engine(*checkpoint_, options));
  }

 private:
  static std::unique_ptr<Engine> made(base::Result<std::unique_ptr<Engine>> engine) {
    EXPECT_TRUE(engine.has_value()) << engine.error().what;
    return engine ? std::move(*engine) : nullptr;
  }
  void reopen() {
    auto opened = Checkpoint::open(folder_ / "made");
    ASSERT_TRUE(opened.has_value()) << opened.error().what;
    checkpoint_ = std::make_unique<Checkpoint>(std::move(*opened));
  }
  test::TempFolder folder_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

std::vector<TokenId> ids(uint32_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<TokenId> out(n);
  for (TokenId& t : out) t = static_cast<TokenId>(rng.below(96));
  return out;
}
bool same(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}
void expect_equal(const Engine& engine, const Sequence& a, const Sequence& b) {
  EXPECT_TRUE(same(a.hidden, b.hidden));
  EXPECT_TRUE(a.kv_bytes(engine.shape()) == b.kv_bytes(engine.shape()));
}

// Hears which positions each row of each layer attends and their scores.
struct Heard final : Probe {
  using Key = std::pair<uint32_t, uint32_t>;  // layer, row
  std::map<Key, std::vector<float>> scores;
  std::map<Key, std::vector<uint32_t>> sets;
  void index_scores(uint32_t layer, uint32_t row, std::span<const float> of_row) override {
    scores[{layer, row}].assign(of_row.begin(), of_row.end());
  }
  void selected(uint32_t layer, uint32_t row, std::span<const uint32_t> positions) override {
    EXPECT_TRUE(
        sets.emplace(Key{layer, row}, std::vector(positions.begin(), positions.end())).second)
        << "layer " << layer << " chose twice for row " << row;
  }
};
Heard heard(Engine& engine, const std::vector<TokenId>& tokens) {
  Heard probe;
  engine.set_probe(&probe);
  run_alone(engine, tokens, 0);
  engine.set_probe(nullptr);
  return probe;
}
void expect_same_choices(const Heard& a, const Heard& b) {
  EXPECT_EQ(a.sets, b.sets);
  ASSERT_EQ(a.scores.size(), b.scores.size());
  for (const auto& [at, scores] : a.scores)
    EXPECT_TRUE(same(scores, b.scores.at(at))) << "layer " << at.first << " row " << at.second;
}

class LsaShapes : public ::testing::TestWithParam<Sizes> {};

TEST_P(LsaShapes, BothEnginesAgreeAcrossTheBudgetInEveryChunking) {
  const LsaModel model(GetParam());
  const std::vector<TokenId> tokens = ids(210, 1);
  for (const uint32_t span : {64u, 4096u}) {
    for (const KvType kv : {KvType::kBf16, KvType::kF32, KvType::kInt8}) {
      EngineOptions options;
      options.kv = kv;
      options.span = span;
      const auto reference = model.reference(options);
      const Sequence want = run_alone(*reference, tokens, 0);
      for (const uint32_t threads : {1u, 2u}) {
        options.threads = threads;
        const auto local = model.local(options);
        for (const uint32_t chunk : {1u, 7u, 64u, 0u}) {
          SCOPED_TRACE(fmt::format("span {} threads {} chunk {}", span, threads, chunk));
          expect_equal(*local, want, run_alone(*local, tokens, chunk));
        }
      }
    }
  }
}

TEST_P(LsaShapes, BothEnginesHearTheSameScoresAndSets) {
  const LsaModel model(GetParam());
  const std::vector<TokenId> tokens = ids(150, 2);
  const Heard local = heard(*model.local(), tokens);
  expect_same_choices(heard(*model.reference(), tokens), local);
  for (const auto& [at, set] : local.sets)
    EXPECT_EQ(set.size(), std::min(at.second + 1, GetParam().topk));
  EXPECT_EQ(local.sets.size(), 2u * tokens.size());  // one choice a layer: attention 1 reuses it
}

TEST_P(LsaShapes, BlocksBeforeTokensGiveTheSameBitsInBothEngines) {
  const LsaModel model(GetParam());
  const std::vector<TokenId> tokens = ids(330, 3);
  for (const uint32_t keep : {0u, 2u}) {
    for (const uint32_t from : {0u, 200u}) {
      EngineOptions options;
      options.span = 128;
      options.hierarchical = {.on = true, .keep = keep, .from = from};
      if (keep == 2 && from == 200) options.kv = KvType::kInt8;
      const Sequence want = run_alone(*model.reference(options), tokens, 0);
      const auto local = model.local(options);
      for (const uint32_t chunk : {1u, 7u, 64u, 0u}) {
        SCOPED_TRACE(fmt::format("keep {} from {} chunk {}", keep, from, chunk));
        expect_equal(*local, want, run_alone(*local, tokens, chunk));
      }
    }
    EngineOptions options;
    options.hierarchical = {.on = true, .keep = keep, .from = 100};
    const std::vector<TokenId> shorter = ids(200, 4);
    expect_same_choices(heard(*model.reference(options), shorter),
                        heard(*model.local(options), shorter));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LsaShapes,
    ::testing::Values(Sizes{.name = "LikeTheGoldenOne"},
                      Sizes{.name = "HeadsAcrossGroups",
                            .heads = 12,
                            .kv_lora = 40,
                            .index_heads = 3,
                            .index_dim = 24,
                            .topk = 40,
                            .sink = 0,
                            .local = 1},
                      Sizes{.name = "TwoSegments",
                            .heads = 1,
                            .kv_lora = 270,
                            .rope = 4,
                            .index_heads = 1,
                            .index_dim = 260,
                            .topk = 70,
                            .sink = 66,
                            .local = 0},
                      Sizes{.name = "MoreHeadsThanLanes",
                            .heads = 21,
                            .kv_lora = 16,
                            .index_heads = 5,
                            .index_dim = 8,
                            .topk = 100,
                            .sink = 3,
                            .local = 90},
                      Sizes{.name = "ForcedAlone", .topk = 25, .sink = 5, .local = 20}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Lsa, RowsBelowAndAboveTheBudgetShareABatch) {
  const LsaModel model(Sizes{.name = ""});
  for (const bool blocks : {false, true}) {
    EngineOptions options;
    options.hierarchical = {.on = blocks, .keep = 1, .from = 70};
    const auto local = model.local(options);
    std::vector<Sequence> together;
    std::vector<Sequence*> all;
    for (uint32_t i = 0; i < 5; ++i) together.emplace_back(*local, ids(10 + 67 * i, 40 + i));
    for (Sequence& s : together) all.push_back(&s);
    Pass pass;
    for (uint32_t turn = 0; turn < 300; ++turn) advance(*local, all, {1, 3, 2, 17, 5}, pass);
    for (const Sequence& s : together) {
      ASSERT_TRUE(s.finished());
      expect_equal(*local, s, run_alone(*local, s.tokens, 64));
    }
  }
}

TEST(Lsa, ABudgetThatIsNeverReachedIsDenseAttention) {
  LsaModel model(Sizes{.name = ""});
  const std::vector<TokenId> tokens = ids(120, 5);
  const Sequence sparse = run_alone(*model.local(), tokens, 16);
  model.configure(Sizes{.name = "", .topk = 120});
  const Sequence roomy = run_alone(*model.local(), tokens, 16);
  model.configure(Sizes{.name = "", .topk = 0});
  const Sequence dense = run_alone(*model.local(), tokens, 16);
  EXPECT_TRUE(same(roomy.hidden, dense.hidden));
  EXPECT_FALSE(same(sparse.hidden, dense.hidden));
}

TEST(Lsa, KeepingAllBlocksIsTheFlatChoiceAndFewerIsNot) {
  const LsaModel model(Sizes{.name = ""});
  const std::vector<TokenId> tokens = ids(500, 6);
  const Sequence flat = run_alone(*model.local(), tokens, 32);
  const auto with = [&](uint32_t keep, uint32_t from) {
    EngineOptions options;
    options.hierarchical = {.on = true, .keep = keep, .from = from};
    return run_alone(*model.local(options), tokens, 32);
  };
  EXPECT_TRUE(same(flat.hidden, with(8, 0).hidden));
  EXPECT_TRUE(same(flat.hidden, with(1, 500).hidden));
  const Sequence late = with(1, 300);
  const size_t before = 300 * flat.hidden.size() / 500;
  EXPECT_TRUE(same(std::span(flat.hidden).first(before), std::span(late.hidden).first(before)));
  EXPECT_FALSE(same(flat.hidden, late.hidden));
}

TEST(Lsa, SettingsOfTheBlocksSeparateNodes) {
  const LsaModel model(Sizes{.name = ""});
  EngineOptions options;
  const base::Hash128 flat = model.local(options)->shape().layout_digest;
  options.hierarchical.on = true;
  const base::Hash128 blocks = model.local(options)->shape().layout_digest;
  options.hierarchical.keep = 7;
  EXPECT_NE(flat, blocks);
  EXPECT_NE(blocks, model.local(options)->shape().layout_digest);
}

// What is derived from the keys of a block (panels, means) must follow its rows through rollback,
// arrival from elsewhere and reuse of the block.
class LsaDerived : public ::testing::TestWithParam<bool> {
 protected:
  LsaDerived() : model_(Sizes{.name = ""}) {
    EngineOptions options;
    options.hierarchical = {.on = GetParam(), .keep = 1, .from = 0};
    engine_ = model_.local(options);
  }
  const LsaModel model_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(LsaDerived, FollowsARollback) {
  const std::vector<TokenId> first = ids(400, 7);
  std::vector<TokenId> second = ids(400, 8);
  std::copy_n(first.begin(), 150, second.begin());
  Sequence sequence = run_alone(*engine_, first, 50);
  sequence.tokens = second;
  sequence.done = 150;
  sequence.hidden.resize(150 * engine_->shape().hidden);
  Pass pass;
  while (!sequence.finished()) advance(*engine_, {&sequence}, {25}, pass);
  expect_equal(*engine_, run_alone(*engine_, second, 0), sequence);
}

TEST_P(LsaDerived, FollowsRowsThatArriveFromElsewhere) {
  const std::vector<TokenId> other = ids(400, 9), tokens = ids(400, 10);
  Sequence sequence = run_alone(*engine_, other, 50);  // leaves derived values of its own
  Sequence source(*engine_, tokens);
  Pass pass;
  advance(*engine_, {&source}, {300}, pass);
  const uint32_t row_bytes = engine_->shape().kv_row_bytes;
  std::vector<std::byte> rows(size_t{300} * row_bytes);
  const KvView from{source.pool.get(), source.blocks}, to{sequence.pool.get(), sequence.blocks};
  for (uint32_t layer = 0; layer < 2; ++layer) {
    copy_rows_out(from, layer, 0, 300, rows.data());
    copy_rows_in(to, layer, 0, 300, rows.data());
  }
  sequence.tokens = tokens;
  sequence.done = 300;
  sequence.hidden = source.hidden;
  while (!sequence.finished()) advance(*engine_, {&sequence}, {25}, pass);
  expect_equal(*engine_, run_alone(*engine_, tokens, 0), sequence);
}

TEST_P(LsaDerived, OfABlockThatSequencesShareIsOneThreads) {
  EngineOptions options;
  options.hierarchical = {.on = GetParam(), .keep = 1, .from = 0};
  options.threads = 3;
  const std::unique_ptr<Engine> engine = model_.local(options);
  const std::vector<TokenId> first = ids(300, 13);
  std::vector<TokenId> second = ids(300, 14);
  std::copy_n(first.begin(), 256, second.begin());
  Sequence a(*engine, ids(900, 15)), b(*engine, second);  // the pool has room for both
  a.tokens = first;
  Pass pass;
  advance(*engine, {&a}, {256}, pass);
  b.pool.reset(a.pool.get());
  b.blocks = a.blocks;
  std::copy_n(a.blocks.begin() + 8, 4, b.blocks.begin() + 4);
  b.done = a.done;
  b.hidden = a.hidden;
  for (uint32_t turn = 0; turn < 3; ++turn) {
    for (const BlockId block : a.blocks)
      for (uint32_t layer = 0; layer < 2; ++layer) a.pool->changed(block, layer);
    advance(*engine, {&a, &b}, {20, 20}, pass);
  }
  expect_equal(*engine, run_alone(*engine, first, 0), a);
  expect_equal(*engine, run_alone(*engine, second, 0), b);
  (void)b.pool.release();  // it is the other's
}

TEST_P(LsaDerived, EndsWithTheBlocksOwner) {
  Sequence sequence = run_alone(*engine_, ids(300, 11), 0);
  KvPool& pool = *sequence.pool;
  for (const BlockId block : std::vector(sequence.blocks.begin(), sequence.blocks.begin() + 4))
    EXPECT_NE(pool.derived(block, 0).ready, 0);
  pool.release(sequence.blocks);
  for (const BlockId block : sequence.blocks) EXPECT_EQ(pool.derived(block, 0).ready, 0);
}
INSTANTIATE_TEST_SUITE_P(FlatAndBlocks, LsaDerived, ::testing::Bool());

TEST(Lsa, EveryInstructionSetGivesTheSameBits) {
  const LsaModel model(Sizes{.name = "", .heads = 12, .kv_lora = 40});
  const std::vector<TokenId> tokens = ids(180, 12);
  EngineOptions options;
  options.hierarchical = {.on = true, .keep = 1, .from = 100};
  const Sequence want = run_alone(*model.local(options), tokens, 0);
  const int64_t all = hwy::SupportedTargets();
  uint32_t ran = 0;
  for (int64_t rest = all; rest != 0; rest &= rest - 1, ++ran) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    const auto engine = model.local(options);
    expect_equal(*engine, want, run_alone(*engine, tokens, 50));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GT(ran, 1u) << "only one target: nothing was compared";
}

// R38: what is not finite in one row stays in that row and its sequence.
TEST(Lsa, ANonFiniteRowLeavesTheOthersOfItsBatchAlone) {
  const LsaModel model(Sizes{.name = ""});
  constexpr uint32_t kSequences = 16, kBad = 5;
  for (const bool blocks : {false, true}) {
    for (const float poison : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      EngineOptions options;
      options.threads = 2;
      options.hierarchical = {.on = blocks, .keep = 1, .from = 64};
      const auto engine = model.local(options);
      const auto run = [&](bool poisoned) {
        std::vector<Sequence> all;
        std::vector<Sequence*> each;
        for (uint32_t i = 0; i < kSequences; ++i) all.emplace_back(*engine, ids(20 + 12 * i, i));
        for (Sequence& s : all) each.push_back(&s);
        Pass pass;
        std::vector<uint32_t> prompts;  // all but two tokens
        for (const Sequence& s : all) prompts.push_back(static_cast<uint32_t>(s.tokens.size()) - 2);
        advance(*engine, each, prompts, pass);
        for (int step = 0; step < 2; ++step) {  // the second reads the poisoned rows of the cache
          pass.tokens.clear();
          pass.segments.clear();
          for (Sequence& s : all) {
            pass.segments.push_back({pass.rows(), 1, s.done, KvView{s.pool.get(), s.blocks}, {}});
            pass.tokens.push_back(s.tokens[s.done]);
          }
          InlineSite site(*engine);
          EXPECT_TRUE(base::run_inline(forward(*engine, {0, 1}, pass, site)));
          const size_t hidden = engine->shape().hidden;
          if (poisoned) pass.h[kBad * hidden + 3] = poison;
          EXPECT_TRUE(base::run_inline(forward(*engine, {1, 2}, pass, site)));
          for (uint32_t i = 0; i < kSequences; ++i) {
            all[i].hidden.insert(all[i].hidden.end(),
                                 pass.h.begin() + static_cast<ptrdiff_t>(i * hidden),
                                 pass.h.begin() + static_cast<ptrdiff_t>((i + 1) * hidden));
            ++all[i].done;
          }
        }
        return all;
      };
      const std::vector<Sequence> clean = run(false), dirty = run(true);
      for (uint32_t i = 0; i < kSequences; ++i) {
        if (i != kBad) expect_equal(*engine, clean[i], dirty[i]);
      }
      EXPECT_FALSE(same(clean[kBad].hidden, dirty[kBad].hidden));
    }
  }
}

TEST(SelectHighest, AgreesWithSortingWhateverTheValues) {
  base::Rng rng(13);
  const float odd[] = {std::nanf(""), INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, -1e-40f, 1.0f};
  for (uint32_t round = 0; round < 400; ++round) {
    const auto n = static_cast<uint32_t>(1 + rng.below(3000));
    const uint64_t kinds = 1 + rng.below(9);  // few kinds: many equals
    std::vector<float> values(n);
    for (float& v : values) {
      const uint64_t pick = rng.below(16);
      v = pick < 3    ? odd[rng.below(8)]
          : kinds < 8 ? static_cast<float>(rng.below(kinds)) - 2.0f
                      : static_cast<float>(rng.uniform() - 0.5);
    }
    const auto need = static_cast<uint32_t>(rng.below(n + 2));
    std::vector<uint32_t> order(n);
    for (uint32_t i = 0; i < n; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      if (std::isnan(values[a]) || std::isnan(values[b]))
        return std::isnan(values[a]) && !std::isnan(values[b]);
      return values[a] > values[b];
    });
    order.resize(std::min(n, need));
    std::sort(order.begin(), order.end());
    std::vector<uint32_t> got = {7};  // it appends
    select_highest(values, need, got);
    got.erase(got.begin());
    ASSERT_EQ(got, order) << n << " values, " << need << " asked for";
    got = {7};
    select_highest_fast(values, need, got);
    got.erase(got.begin());
    ASSERT_EQ(got, order) << n << " values, " << need << " asked for, by vectors";
  }
}

}  // namespace
}  // namespace model
