// R48: the logits of a row have the same bits whatever is around it: the batch and the row's place
// in it, the chunks of its prompt, a cached prefix, compute threads, vector width. Logits are
// compared as bytes.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cstring>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/kernels.h"
#include "tests/model/pass_runner.h"

namespace model {
namespace {

using testing::advance;
using testing::Sequence;

constexpr uint32_t kPrompt = 150, kSteps = 4;

struct Case {
  const char* folder;
  WeightChoice weights;
  const char* name;
  KvType kv = KvType::kBf16;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<TokenId> random_tokens(const Engine& engine, uint32_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<TokenId> out(n);
  for (TokenId& t : out) t = static_cast<TokenId>(rng.below(engine.shape().vocab));
  return out;
}

// Around the row: how its prompt is cut, who shares its decode steps, and where it stands there.
struct Setting {
  uint32_t chunk = 0;  // 0: at once
  uint32_t batch = 1, place = 0;
  bool cached = false;  // the first 128 tokens' KV comes from elsewhere
};

class InvarianceTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto opened = Checkpoint::open(std::string(SERVAL_SOURCE_DIR) + "/" + GetParam().folder);
    ASSERT_TRUE(opened.has_value()) << opened.error().what;
    checkpoint_ = std::make_unique<Checkpoint>(std::move(*opened));
  }
  void TearDown() override { use_targets(0); }

  // 0: all that the machine has.
  static void use_targets(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  std::unique_ptr<Engine> engine(uint32_t threads) const {
    EngineOptions options;
    options.weights = GetParam().weights;
    options.kv = GetParam().kv;
    options.threads = threads;
    auto made = make_local_engine(*checkpoint_, options);
    EXPECT_TRUE(made.has_value()) << made.error().what;
    return made ? std::move(*made) : nullptr;
  }
  // The logits of the decode steps of one fixed sequence, one step after another.
  static std::vector<float> logits(Engine& engine, const Setting& setting) {
    const Shape& shape = engine.shape();
    Sequence row(engine, random_tokens(engine, kPrompt + kSteps, 1));
    if (setting.cached) take_prefix(engine, row, 128);
    Pass pass;
    while (row.done < kPrompt) {
      const uint32_t left = kPrompt - row.done;
      const uint32_t chunk = setting.chunk == 0 ? left : std::min(setting.chunk, left);
      advance(engine, {&row}, {chunk}, pass);
    }
    std::vector<Sequence> others;
    for (uint32_t i = 0; i + 1 < setting.batch; ++i) {
      others.emplace_back(engine, random_tokens(engine, 3 + 7 * i + kSteps, 100 + i));
      advance(engine, {&others.back()}, {3 + 7 * i}, pass);
    }
    std::vector<Sequence*> batch;
    for (Sequence& other : others) batch.push_back(&other);
    batch.insert(batch.begin() + setting.place, &row);
    std::vector<float> all(size_t{kSteps} * shape.vocab);
    for (uint32_t step = 0; step < kSteps; ++step) {
      advance(engine, batch, std::vector<uint32_t>(batch.size(), 1), pass);
      const std::span<float> out = std::span(all).subspan(size_t{step} * shape.vocab, shape.vocab);
      engine.head(pass, std::span(&setting.place, 1), out);
    }
    return all;
  }
  static void take_prefix(Engine& engine, Sequence& row, uint32_t tokens) {
    Sequence donor(engine, {row.tokens.begin(), row.tokens.begin() + tokens});
    Pass pass;
    while (!donor.finished()) advance(engine, {&donor}, {32}, pass);
    const uint32_t bytes = engine.shape().kv_row_bytes;
    std::vector<std::byte> rows(size_t{tokens} * bytes);
    for (uint32_t layer = 0; layer < engine.shape().layers; ++layer) {
      copy_rows_out({donor.pool.get(), donor.blocks}, layer, 0, tokens, rows.data());
      copy_rows_in({row.pool.get(), row.blocks}, layer, 0, tokens, rows.data());
    }
    row.done = tokens;
    row.hidden.assign(size_t{tokens} * engine.shape().hidden, 0.0f);
  }
  static void expect_same(const std::vector<float>& want, const std::vector<float>& got,
                          const std::string& what) {
    ASSERT_EQ(want.size(), got.size());
    EXPECT_EQ(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)), 0) << what;
  }
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(InvarianceTest, BatchAndPlaceChunksPrefixAndThreadsChangeNoBit) {
  const std::vector<float> want = logits(*engine(1), {});
  for (const uint32_t threads : {1u, 2u}) {
    const std::unique_ptr<Engine> made = engine(threads);
    for (const uint32_t chunk : {1u, 7u, 64u, 256u, 0u}) {
      expect_same(want, logits(*made, {.chunk = chunk}), "chunks of " + std::to_string(chunk));
    }
    for (uint32_t batch = 1; batch <= 32; batch = batch < 8 ? batch + 1 : batch + 8) {
      for (const uint32_t place : {0u, batch / 2, batch - 1}) {
        expect_same(want, logits(*made, {.batch = batch, .place = place}),
                    "row " + std::to_string(place) + " of " + std::to_string(batch));
      }
    }
    expect_same(want, logits(*made, {.chunk = 7, .batch = 5, .place = 2, .cached = true}),
                "a cached prefix");
  }
}

TEST_P(InvarianceTest, VectorWidthChangesNoBit) {
  const std::vector<float> want = logits(*engine(1), {});
  const int64_t all = hwy::SupportedTargets();
  uint32_t ran = 0;
  for (int64_t rest = all; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    use_targets(target);
    ++ran;
    const Setting setting{.chunk = 64, .batch = 3, .place = 1};
    expect_same(want, logits(*engine(1), setting), kernel_target());
  }
  EXPECT_GT(ran, 1u) << "only one target: nothing was compared";
}

constexpr const char* kFlash = "tests/golden/tiny_flash";
constexpr const char* kSparse = "tests/golden/tiny_longcat2";
constexpr const char* kBuiltIn = "models/serval-tiny";
INSTANTIATE_TEST_SUITE_P(
    Models, InvarianceTest,
    ::testing::Values(Case{kFlash, WeightChoice::kAsStored, "flash"},
                      Case{kSparse, WeightChoice::kAsStored, "sparse"},
                      Case{kBuiltIn, WeightChoice::kAsStored, "built_in"},
                      Case{kBuiltIn, WeightChoice::kF32, "built_in_f32"},
                      Case{kBuiltIn, WeightChoice::kInt8, "built_in_int8"},
                      Case{kBuiltIn, WeightChoice::kInt4, "built_in_int4"},
                      Case{kSparse, WeightChoice::kAsStored, "sparse_int8_kv", KvType::kInt8},
                      Case{kBuiltIn, WeightChoice::kAsStored, "built_in_int8_kv", KvType::kInt8}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace model
