// The reference engine against outputs of independent implementations, and its bits against itself
// under every way of cutting the work.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>

#include "model/checkpoint.h"
#include "model/verify.h"
#include "tests/model/pass_runner.h"

namespace {

using base::Code;
using model::Checkpoint;
using model::Engine;
using model::EngineKind;
using model::EngineOptions;
using model::KvType;
using model::Pass;
using model::TokenId;
using model::VerifyRow;
using model::testing::Sequence;

const std::string kSource = SERVAL_SOURCE_DIR;
const std::string kBuiltIn = kSource + "/models/serval-tiny";

std::string folder_of(const std::string& name) {
  return name == "serval-tiny" ? kBuiltIn : kSource + "/tests/golden/" + name;
}

class Verified : public ::testing::TestWithParam<std::tuple<const char*, EngineKind>> {};

TEST_P(Verified, EveryTensorOfTheReferencesIsReproduced) {
  const auto [name, kind] = GetParam();
  const auto report = model::verify(folder_of(name), kind);
  ASSERT_TRUE(report.has_value()) << report.error().what;
  size_t checked = 0;
  for (const VerifyRow& row : report->rows) {
    EXPECT_EQ(row.verdict, VerifyRow::Verdict::kPassed)
        << row.tensor << ": " << row.largest_difference << " over " << row.tolerance << "; "
        << row.note;
    ++checked;
    std::printf("%-32s %.2e of %.2e\n", row.tensor.c_str(), row.largest_difference, row.tolerance);
  }
  EXPECT_TRUE(report->passed());
  EXPECT_GE(checked, 10u);
}
INSTANTIATE_TEST_SUITE_P(
    Folders, Verified,
    ::testing::Combine(::testing::Values("tiny_flash", "tiny_flash_fp8", "tiny_lite",
                                         "tiny_longcat2", "small_longcat2_realdims", "serval-tiny"),
                       ::testing::Values(EngineKind::kReference, EngineKind::kLocal)));

TEST(Verify, AFolderWithoutReferencesIsNotFound) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "verify_without_references";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  for (const auto& file : std::filesystem::directory_iterator(folder_of("tiny_flash")))
    if (file.path().filename() != "golden.safetensors")
      std::filesystem::copy(file.path(), folder / file.path().filename());
  const auto report = model::verify(folder.string(), EngineKind::kReference);
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Code::kNotFound);
}

EngineOptions options_of(KvType kv, uint32_t span) {
  EngineOptions options;
  options.kv = kv;
  options.span = span;
  return options;
}
EngineOptions stage_of(model::LayerRange layers, bool embedding, bool head) {
  EngineOptions options;
  options.layers = layers;
  options.embedding = embedding;
  options.head = head;
  return options;
}

template <class T>
T loaded(base::Result<T> result) {
  CHECK(result.has_value(), "{}", result.error().what);
  return std::move(*result);
}

struct Loaded {
  Loaded(const std::string& name, const EngineOptions& options)
      : checkpoint(loaded(Checkpoint::open(folder_of(name)))),
        engine(loaded(model::make_reference_engine(checkpoint, options))) {}
  Checkpoint checkpoint;
  std::unique_ptr<Engine> engine;
};

std::vector<TokenId> some_tokens(const Engine& engine, size_t n, uint64_t seed) {
  std::vector<TokenId> out(n);
  uint64_t state = seed * 2654435761u + 17;
  for (TokenId& t : out) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    t = static_cast<TokenId>((state >> 33) % engine.shape().vocab);
    if ((state >> 60) == 0) t = engine.shape().eos[0];  // n-gram contexts are cut now and then
  }
  return out;
}

class SameBits : public ::testing::TestWithParam<const char*> {};

// A small span, so that partials of several spans merge.
constexpr uint32_t kSpan = 32;

TEST_P(SameBits, ForEveryChunkSizeDecodeIncluded) {
  const auto expect_same = [](KvType kv, const std::vector<uint32_t>& chunks) {
    Loaded model(GetParam(), options_of(kv, kSpan));
    const auto tokens = some_tokens(*model.engine, 140, 1);  // past every index budget
    const Sequence whole = model::testing::run_alone(*model.engine, tokens, 0);
    EXPECT_TRUE(model::all_finite(whole.hidden));
    for (const uint32_t chunk : chunks) {
      const Sequence cut = model::testing::run_alone(*model.engine, tokens, chunk);
      EXPECT_EQ(cut.hidden, whole.hidden) << chunk;
      EXPECT_EQ(cut.kv_bytes(model.engine->shape()), whole.kv_bytes(model.engine->shape()))
          << chunk;
    }
  };
  expect_same(KvType::kBf16, {1, 7, 64});
  expect_same(KvType::kF32, {7});
  expect_same(KvType::kInt8, {1, 64});
}

TEST_P(SameBits, WhateverElseIsInTheBatch) {
  Loaded model(GetParam(), options_of(KvType::kBf16, kSpan));
  std::vector<Sequence> batch;
  for (const size_t length : {70u, 101u, 64u})
    batch.emplace_back(*model.engine, some_tokens(*model.engine, length, length));
  const std::vector<std::vector<uint32_t>> plans{{30, 1, 5}, {1, 64, 0}, {3, 2, 20}};
  Pass pass;
  const auto all_finished = [&] {
    return std::all_of(batch.begin(), batch.end(), [](const Sequence& s) { return s.finished(); });
  };
  for (size_t step = 0; !all_finished(); ++step)
    model::testing::advance(*model.engine, {&batch[0], &batch[1], &batch[2]}, plans[step % 3],
                            pass);
  for (const Sequence& s : batch) {
    const Sequence alone = model::testing::run_alone(*model.engine, s.tokens, 0);
    EXPECT_EQ(s.hidden, alone.hidden);
    EXPECT_EQ(s.kv_bytes(model.engine->shape()), alone.kv_bytes(model.engine->shape()));
  }
}
INSTANTIATE_TEST_SUITE_P(Folders, SameBits,
                         ::testing::Values("tiny_flash", "tiny_lite", "tiny_longcat2",
                                           "serval-tiny"));

TEST(ReferenceEngine, StagesWithPartOfTheLayersGiveTheWholeModelsBits) {
  Loaded whole("tiny_lite", {});
  Loaded first("tiny_lite", stage_of({0, 1}, true, false));
  Loaded second("tiny_lite", stage_of({1, 2}, false, true));
  const auto tokens = some_tokens(*whole.engine, 40, 3);
  const Sequence want = model::testing::run_alone(*whole.engine, tokens, 0);

  Sequence staged(*whole.engine, tokens);
  Pass pass;
  pass.tokens = tokens;
  pass.segments.resize(1);
  pass.segments[0].count = 40;
  pass.segments[0].kv = model::KvView{staged.pool.get(), staged.blocks};
  model::InlineSite first_site(*first.engine), second_site(*second.engine);
  ASSERT_TRUE(base::run_inline(model::forward(*first.engine, {0, 1}, pass, first_site)));
  Pass next;
  next.tokens = pass.tokens;
  next.segments = pass.segments;
  next.h = pass.h;
  ASSERT_TRUE(base::run_inline(model::forward(*second.engine, {1, 2}, next, second_site)));
  EXPECT_EQ(next.h, want.hidden);
}

TEST(ReferenceEngine, DigestsTellModelsLayoutsAndSpansApart) {
  Loaded a("tiny_flash", {}), b("tiny_lite", {}), f32("tiny_flash", options_of(KvType::kF32, 4096)),
      int8("tiny_flash", options_of(KvType::kInt8, 4096)),
      span("tiny_flash", options_of(KvType::kBf16, 64));
  const model::Shape& shape = a.engine->shape();
  EXPECT_NE(shape.model_digest, b.engine->shape().model_digest);
  EXPECT_EQ(shape.model_digest, f32.engine->shape().model_digest);
  EXPECT_NE(shape.layout_digest, f32.engine->shape().layout_digest);
  EXPECT_NE(shape.layout_digest, int8.engine->shape().layout_digest);
  EXPECT_NE(shape.layout_digest, span.engine->shape().layout_digest);
  EXPECT_NE(shape.arithmetic_digest, b.engine->shape().arithmetic_digest) << "YaRN differs";
  EXPECT_EQ(f32.engine->shape().kv_row_bytes, 2 * shape.kv_row_bytes);
}

TEST(ReferenceEngine, GenerateGivesTheSameTokensForEveryChunk) {
  Loaded model("serval-tiny", {});
  const auto prompt = some_tokens(*model.engine, 140, 9);
  base::Sampling sampling;
  sampling.seed = 5;
  sampling.max_tokens = 12;
  const auto whole = model::generate(*model.engine, prompt, sampling, {.chunk = 0});
  ASSERT_FALSE(whole.tokens.empty());
  for (const uint32_t chunk : {7u, 64u})
    EXPECT_EQ(model::generate(*model.engine, prompt, sampling, {.chunk = chunk}).tokens,
              whole.tokens);
}

}  // namespace
