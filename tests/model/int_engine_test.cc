// Engines on integer weights: the local engine against the reference, byte for byte, whatever the
// checkpoint stores and whatever is asked for, and whatever chunks, batches and threads.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/convert.h"
#include "model/integrity.h"
#include "tests/model/pass_runner.h"

namespace model {
namespace {

using testing::advance;
using testing::run_alone;
using testing::Sequence;

struct Case {
  const char* folder;
  WeightChoice weights;
};
const char* name_of(WeightChoice choice) {
  constexpr const char* kNames[] = {"as_stored", "f32", "bf16", "int8", "int4"};
  return kNames[static_cast<size_t>(choice)];
}

Checkpoint opened(const std::string& folder) {
  auto checkpoint = Checkpoint::open(folder);
  CHECK(checkpoint.has_value(), "{}", checkpoint.error().what);
  return std::move(*checkpoint);
}

EngineOptions options_of(WeightChoice weights, uint32_t threads = 1) {
  EngineOptions options;
  options.weights = weights;
  options.threads = threads;
  return options;
}
std::unique_ptr<Engine> local(const Checkpoint& checkpoint, const EngineOptions& options) {
  auto engine = make_local_engine(checkpoint, options);
  CHECK(engine.has_value(), "{}", engine.error().what);
  return std::move(*engine);
}
std::unique_ptr<Engine> reference(const Checkpoint& checkpoint, const EngineOptions& options) {
  auto engine = make_reference_engine(checkpoint, options);
  CHECK(engine.has_value(), "{}", engine.error().what);
  return std::move(*engine);
}

std::vector<TokenId> tokens(const Engine& engine, uint32_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<TokenId> out(n);
  for (TokenId& t : out) t = static_cast<TokenId>(rng.below(engine.shape().vocab));
  return out;
}

void expect_equal(const Engine& engine, const Sequence& a, const Sequence& b) {
  ASSERT_EQ(a.hidden.size(), b.hidden.size());
  EXPECT_EQ(std::memcmp(a.hidden.data(), b.hidden.data(), a.hidden.size() * sizeof(float)), 0);
  EXPECT_EQ(a.kv_bytes(engine.shape()), b.kv_bytes(engine.shape()));
}

// Logits of the last rows of a fresh sequence.
std::vector<float> logits(Engine& engine, const std::vector<TokenId>& ids) {
  Pass pass;
  Sequence sequence(engine, ids);
  advance(engine, {&sequence}, {static_cast<uint32_t>(ids.size())}, pass);
  const std::vector<uint32_t> rows = {0, pass.rows() / 2, pass.rows() - 1};
  std::vector<float> out(rows.size() * engine.shape().vocab);
  engine.head(pass, rows, out);
  return out;
}

class IntEngine : public ::testing::TestWithParam<Case> {
 protected:
  const Checkpoint checkpoint_ = opened(std::string(SERVAL_SOURCE_DIR) + "/" + GetParam().folder);
};

TEST_P(IntEngine, EqualsTheReference) {
  const EngineOptions options = options_of(GetParam().weights);
  const auto ours = local(checkpoint_, options), theirs = reference(checkpoint_, options);
  const std::vector<TokenId> ids = tokens(*ours, 150, 7);
  expect_equal(*ours, run_alone(*theirs, ids, 0), run_alone(*ours, ids, 0));
  const std::vector<float> a = logits(*ours, ids), b = logits(*theirs, ids);
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
  ASSERT_NE(ours->integrity(), nullptr);
  EXPECT_FALSE(ours->integrity()->broken()) << ours->integrity()->reason();
  EXPECT_EQ(ours->integrity()->transient_faults(), 0u);
}

TEST_P(IntEngine, DoesNotDependOnChunksBatchesOrThreads) {
  const auto one = local(checkpoint_, options_of(GetParam().weights));
  const auto two = local(checkpoint_, options_of(GetParam().weights, /*threads=*/2));
  const std::vector<TokenId> ids = tokens(*one, 130, 8);
  const Sequence whole = run_alone(*one, ids, 0);
  for (const uint32_t chunk : {1u, 7u, 64u})
    expect_equal(*one, whole, run_alone(chunk == 7 ? *two : *one, ids, chunk));
  std::vector<Sequence> together;
  std::vector<Sequence*> all;
  for (uint32_t i = 0; i < 4; ++i) together.emplace_back(*two, tokens(*one, 30 + 25 * i, 100 + i));
  for (Sequence& s : together) all.push_back(&s);
  Pass pass;
  for (uint32_t turn = 0; turn < 120; ++turn) advance(*two, all, {1, 3, 2, 17}, pass);
  for (const Sequence& s : together) {
    ASSERT_TRUE(s.finished());
    expect_equal(*one, s, run_alone(*one, s.tokens, 64));
  }
}

constexpr Case kCases[] = {{"tests/golden/tiny_flash", WeightChoice::kInt8},
                           {"tests/golden/tiny_flash", WeightChoice::kInt4},
                           {"tests/golden/tiny_flash", WeightChoice::kBf16},
                           {"tests/golden/tiny_flash", WeightChoice::kF32},
                           {"tests/golden/tiny_flash_fp8", WeightChoice::kInt8},
                           {"tests/golden/tiny_flash_fp8", WeightChoice::kBf16},
                           {"tests/golden/tiny_lite", WeightChoice::kInt8},
                           {"tests/golden/tiny_lite", WeightChoice::kInt4},
                           {"tests/golden/tiny_longcat2", WeightChoice::kInt8},
                           {"tests/golden/tiny_longcat2", WeightChoice::kInt4},
                           {"tests/golden/small_longcat2_realdims", WeightChoice::kInt8},
                           {"tests/golden/small_longcat2_realdims", WeightChoice::kInt4},
                           {"models/serval-tiny", WeightChoice::kF32},
                           {"models/serval-tiny", WeightChoice::kInt8},
                           {"models/serval-tiny", WeightChoice::kInt4}};
INSTANTIATE_TEST_SUITE_P(Checkpoints, IntEngine, ::testing::ValuesIn(kCases), [](const auto& info) {
  const std::string path = info.param.folder;
  std::string name = path.substr(path.rfind('/') + 1) + "_" + name_of(info.param.weights);
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
});

// A folder that goes with the test.
struct TempFolder {
  TempFolder()
      : path(std::filesystem::temp_directory_path() /
             ("serval_int_" + std::to_string(::getpid()) + "_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(path);
  }
  ~TempFolder() { std::filesystem::remove_all(path); }
  const std::filesystem::path path;
};

// The node that quantises a bf16 checkpoint at load and the one that loads the converted one.
void expect_converted_equal(const std::string& folder, WeightChoice weights, uint32_t group) {
  const TempFolder out;
  ConvertOptions how;
  how.weights = weights;
  how.group = group;
  const auto done = convert(folder, out.path, how);
  ASSERT_TRUE(done.has_value()) << done.error().what;
  const Checkpoint source = opened(folder), made = opened(out.path);
  const auto stored = local(made, options_of(WeightChoice::kAsStored));
  const auto judge = reference(made, options_of(WeightChoice::kAsStored));
  const std::vector<TokenId> ids = tokens(*stored, 100, 9);
  const Sequence want = run_alone(*judge, ids, 0);
  expect_equal(*stored, want, run_alone(*stored, ids, 13));
  EXPECT_EQ(logits(*stored, ids), logits(*judge, ids));
  if (group != kInt4Group) return;  // at load the group is the default one
  const auto at_load = local(source, options_of(weights));
  expect_equal(*stored, want, run_alone(*at_load, ids, 0));
  EXPECT_EQ(logits(*stored, ids), logits(*at_load, ids));
}

TEST(ConvertedEngine, HasTheBitsOfQuantisingAtLoad) {
  const std::string root = std::string(SERVAL_SOURCE_DIR) + "/";
  for (const WeightChoice weights : {WeightChoice::kInt8, WeightChoice::kInt4}) {
    expect_converted_equal(root + "models/serval-tiny", weights, kInt4Group);
    expect_converted_equal(root + "tests/golden/tiny_longcat2", weights, kInt4Group);
  }
}

TEST(ConvertedEngine, RunsInt4OfEveryGroup) {
  for (const uint32_t group : {32u, 128u})
    expect_converted_equal(std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny",
                           WeightChoice::kInt4, group);
}

TEST(ConvertedEngine, WidensIntegersWhenFloatsAreAskedFor) {
  const TempFolder out;
  const auto done =
      convert(std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny", out.path, ConvertOptions());
  ASSERT_TRUE(done.has_value()) << done.error().what;
  const Checkpoint made = opened(out.path);
  for (const WeightChoice weights : {WeightChoice::kF32, WeightChoice::kBf16}) {
    const auto ours = local(made, options_of(weights)),
               theirs = reference(made, options_of(weights));
    const std::vector<TokenId> ids = tokens(*ours, 60, 10);
    expect_equal(*ours, run_alone(*theirs, ids, 0), run_alone(*ours, ids, 0));
  }
}

TEST(IntShape, NodesOfDifferentWeightChoicesNeverShareKv) {
  const Checkpoint checkpoint = opened(std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny");
  std::vector<base::Hash128> seen;
  for (const WeightChoice weights :
       {WeightChoice::kAsStored, WeightChoice::kF32, WeightChoice::kBf16, WeightChoice::kInt8,
        WeightChoice::kInt4}) {
    const auto shape = shape_of(checkpoint, options_of(weights));
    ASSERT_TRUE(shape.has_value());
    for (const base::Hash128& other : seen) EXPECT_FALSE(shape->layout_digest == other);
    seen.push_back(shape->layout_digest);
  }
}

}  // namespace
}  // namespace model
