// The local engine against the reference: not close, equal. Every comparison is of bytes.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/integrity.h"
#include "model/multiply_fast.h"
#include "tests/model/pass_runner.h"

namespace model {
namespace {

using testing::advance;
using testing::run_alone;
using testing::Sequence;

// Opens a checkpoint and both engines over it.
class LocalEngineTest : public ::testing::TestWithParam<const char*> {
 protected:
  void open(KvType kv, uint32_t span = 4096) {
    auto opened = Checkpoint::open(std::string(SERVAL_SOURCE_DIR) + "/" + GetParam());
    ASSERT_TRUE(opened.has_value()) << opened.error().what;
    checkpoint_ = std::make_unique<Checkpoint>(std::move(*opened));
    EngineOptions options;
    options.kv = kv;
    options.span = span;
    auto reference = make_reference_engine(*checkpoint_, options);
    auto local = make_local_engine(*checkpoint_, options);
    ASSERT_TRUE(reference.has_value()) << reference.error().what;
    ASSERT_TRUE(local.has_value()) << local.error().what;
    reference_ = std::move(*reference);
    local_ = std::move(*local);
  }
  std::vector<TokenId> tokens(uint32_t n, uint64_t seed) const {
    base::Rng rng(seed);
    std::vector<TokenId> out(n);
    for (TokenId& t : out) t = static_cast<TokenId>(rng.below(local_->shape().vocab));
    return out;
  }
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Engine> reference_, local_;
};

void expect_equal(Engine& engine, const Sequence& a, const Sequence& b) {
  ASSERT_EQ(a.hidden.size(), b.hidden.size());
  EXPECT_EQ(std::memcmp(a.hidden.data(), b.hidden.data(), a.hidden.size() * sizeof(float)), 0);
  EXPECT_EQ(a.kv_bytes(engine.shape()), b.kv_bytes(engine.shape()));
}

TEST_P(LocalEngineTest, EqualsTheReferenceInHiddenRowsAndKv) {
  for (KvType kv : {KvType::kBf16, KvType::kF32, KvType::kInt8}) {
    open(kv);
    const std::vector<TokenId> ids = tokens(180, 7);
    expect_equal(*local_, run_alone(*reference_, ids, 0), run_alone(*local_, ids, 0));
  }
}

TEST_P(LocalEngineTest, EqualsTheReferenceAcrossSpans) {
  open(KvType::kBf16, /*span=*/64);
  const std::vector<TokenId> ids = tokens(300, 8);
  expect_equal(*local_, run_alone(*reference_, ids, 0), run_alone(*local_, ids, 0));
}

TEST_P(LocalEngineTest, DoesNotDependOnChunks) {
  for (KvType kv : {KvType::kBf16, KvType::kInt8}) {
    open(kv);
    const std::vector<TokenId> ids = tokens(200, 9);
    const Sequence whole = run_alone(*local_, ids, 0);
    for (uint32_t chunk : {1u, 7u, 64u})
      expect_equal(*local_, whole, run_alone(*local_, ids, chunk));
  }
}

TEST_P(LocalEngineTest, DoesNotDependOnTheBatch) {
  open(KvType::kBf16);
  std::vector<Sequence> together;
  std::vector<Sequence*> all;
  for (uint32_t i = 0; i < 5; ++i) together.emplace_back(*local_, tokens(40 + 37 * i, 100 + i));
  for (Sequence& s : together) all.push_back(&s);
  Pass pass;
  for (uint32_t turn = 0; turn < 400; ++turn) advance(*local_, all, {1, 3, 2, 17, 5}, pass);
  for (const Sequence& s : together) {
    ASSERT_TRUE(s.finished());
    expect_equal(*local_, s, run_alone(*local_, s.tokens, 64));
  }
}

TEST_P(LocalEngineTest, LogitsEqualTheReference) {
  open(KvType::kBf16);
  Pass pass;
  Sequence sequence(*local_, tokens(50, 11));
  advance(*local_, {&sequence}, {50}, pass);
  const std::vector<uint32_t> rows = {0, 7, 49};
  const size_t vocab = local_->shape().vocab;
  std::vector<float> ours(rows.size() * vocab), theirs(ours.size());
  local_->head(pass, rows, ours);
  reference_->head(pass, rows, theirs);
  EXPECT_EQ(std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(float)), 0);
}

TEST_P(LocalEngineTest, FastModeIsCloseAndNamesItselfDifferent) {
  open(KvType::kBf16);
  EngineOptions options;
  options.mode = NumericsMode::kFast;
  auto fast = make_local_engine(*checkpoint_, options);
  if (!fast_available()) {
    ASSERT_FALSE(fast.has_value());
    return;
  }
  ASSERT_TRUE(fast.has_value()) << fast.error().what;
  EXPECT_NE((*fast)->shape().arithmetic_digest, local_->shape().arithmetic_digest);
  EXPECT_NE((*fast)->shape().layout_digest, local_->shape().layout_digest);
  const std::vector<TokenId> ids = tokens(64, 12);
  const size_t vocab = local_->shape().vocab;
  std::vector<float> logits[2] = {std::vector<float>(vocab), std::vector<float>(vocab)};
  Engine* const engines[] = {local_.get(), fast->get()};
  for (int i = 0; i < 2; ++i) {
    Pass pass;
    Sequence sequence(*engines[i], ids);
    advance(*engines[i], {&sequence}, {64}, pass);
    engines[i]->head(pass, std::vector<uint32_t>{63}, logits[i]);
  }
  double apart = 0, size = 0;
  for (size_t i = 0; i < vocab; ++i) {
    apart = std::max(apart, std::fabs(double{logits[0][i]} - logits[1][i]));
    size = std::max(size, std::fabs(double{logits[0][i]}));
  }
  EXPECT_LE(apart, 1e-2 * size);
  EXPECT_FALSE((*fast)->integrity()->broken());
  EXPECT_EQ((*fast)->integrity()->transient_faults(), 0u);
}

// Row R36: what no checksum sees is found within a round, and nothing sound is called changed.
TEST_P(LocalEngineTest, AScrubFindsTheLowestBitOfAWeight) {
  open(KvType::kBf16);
  const uint64_t bytes = local_->weight_bytes();
  local_->prepare_experts({0, local_->shape().layers}, std::vector<uint16_t>{0, 1});
  EXPECT_GT(local_->weight_bytes(), bytes);  // experts are watched from when they are packed
  for (int part = 0; part < 10; ++part) local_->scrub(local_->weight_bytes() / 5);
  ASSERT_FALSE(local_->integrity()->broken()) << local_->integrity()->reason();
  local_->inject(base::FaultPoint::kWeightLowBit);
  for (int part = 0; part < 10; ++part) local_->scrub(local_->weight_bytes() / 5);
  EXPECT_TRUE(local_->integrity()->broken());
}

TEST_P(LocalEngineTest, ExpertsThatWereLetGoComeBackTheSame) {
  open(KvType::kBf16);
  const Shape& shape = local_->shape();
  const std::vector<TokenId> ids = tokens(60, 3);
  const uint64_t bare = local_->weight_bytes();
  const Sequence before = run_alone(*local_, ids, 0);
  const uint64_t loaded = local_->weight_bytes();
  ASSERT_GT(local_->resident_experts(), shape.layers);
  for (uint32_t layer = 0; layer < shape.layers; ++layer)
    local_->keep_experts(layer, std::vector<uint16_t>{1});
  EXPECT_LE(local_->resident_experts(), shape.layers);
  EXPECT_LT(local_->weight_bytes(), loaded);
  for (int part = 0; part < 10; ++part) local_->scrub(local_->weight_bytes() / 5);
  EXPECT_FALSE(local_->integrity()->broken());
  expect_equal(*local_, before, run_alone(*local_, ids, 0));
  EXPECT_EQ(local_->weight_bytes(), loaded);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) local_->keep_experts(layer, {});
  EXPECT_EQ(local_->weight_bytes(), bare);
}

// Weights in use stay: a pass and who lets go all the time do not disturb each other.
TEST_P(LocalEngineTest, LettingGoBesideAPassChangesNothing) {
  open(KvType::kBf16);
  const Shape& shape = local_->shape();
  const std::vector<TokenId> ids = tokens(40, 5);
  const Sequence want = run_alone(*local_, ids, 0);
  std::atomic<bool> over{false};
  std::thread rival([&] {
    while (!over) {
      for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        local_->keep_experts(layer, std::vector<uint16_t>{0, 2});
        local_->scrub(1);
      }
    }
  });
  for (int round = 0; round < 3; ++round) expect_equal(*local_, want, run_alone(*local_, ids, 0));
  over = true;
  rival.join();
  EXPECT_FALSE(local_->integrity()->broken());
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, LocalEngineTest,
                         ::testing::Values("tests/golden/tiny_flash", "tests/golden/tiny_lite",
                                           "tests/golden/tiny_longcat2",
                                           "tests/golden/tiny_flash_fp8",
                                           "tests/golden/small_longcat2_realdims",
                                           "models/serval-tiny"),
                         [](const auto& info) {
                           const std::string path = info.param;
                           std::string name = path.substr(path.rfind('/') + 1);
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace model
