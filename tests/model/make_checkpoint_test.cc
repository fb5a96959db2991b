#include "model/make_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/forward.h"
#include "model/sampler.h"
#include "model/tensor_list.h"
#include "tests/model/safetensors_writer.h"

namespace model {
namespace {

using test::golden;
using test::load_entries;
using test::read_text;
using test::TempFolder;
using test::write_text;

std::vector<float> values_of(const Checkpoint& from, const std::string& name) {
  const Tensor* tensor = from.find(name);
  std::vector<float> out(tensor->elements());
  EXPECT_TRUE(
      read_rows(from, name, 0, tensor->shape.size() == 2 ? tensor->shape[0] : 1, out.data()));
  return out;
}

TEST(MakeCheckpoint, WritesEveryTensorOfEveryVariantInShards) {
  for (const char* name : {"tiny_flash", "tiny_lite", "tiny_longcat2"}) {
    const TempFolder folder;
    const std::string out = folder / "made";
    const auto size = make_checkpoint(golden(name) + "/config.json", out, {.shard_bytes = 200'000});
    ASSERT_TRUE(size) << size.error().what;
    EXPECT_TRUE(std::filesystem::exists(out + "/model.safetensors.index.json"));
    const auto checkpoint = Checkpoint::open(out);
    ASSERT_TRUE(checkpoint) << checkpoint.error().what;
    EXPECT_EQ(checkpoint->ignored_tensors(), 0u);
    const auto expected =
        expected_size(checkpoint->config(), checkpoint->config().mtp_layers > 0, false);
    EXPECT_EQ(size->tensors, expected.tensors);
    EXPECT_EQ(size->elements, expected.elements);
    const auto engine = make_local_engine(*checkpoint, {});
    ASSERT_TRUE(engine) << engine.error().what;
    const std::vector<TokenId> prompt = {1, 5, 9, 7};
    base::Sampling sampling;
    sampling.max_tokens = 4;
    EXPECT_NE(generate(**engine, prompt, sampling).finish, base::FinishReason::kError) << name;
  }
}

TEST(MakeCheckpoint, DependsOnTheSeedAndNothingElse) {
  const TempFolder folder;
  const std::string config = golden("tiny_longcat2") + "/config.json";
  ASSERT_TRUE(make_checkpoint(config, folder / "a", {.seed = 7, .shard_bytes = 100'000}));
  ASSERT_TRUE(make_checkpoint(config, folder / "b", {.seed = 7}));
  ASSERT_TRUE(make_checkpoint(config, folder / "c", {.seed = 8}));
  const auto a = load_entries(folder / "a"), b = load_entries(folder / "b"),
             c = load_entries(folder / "c");
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, entry] : a) {
    EXPECT_EQ(entry.bytes, b.at(name).bytes) << name;
    EXPECT_NE(entry.bytes, c.at(name).bytes) << name;
  }
}

TEST(MakeCheckpoint, ValuesAreSpreadAsSaid) {
  const TempFolder folder;
  ASSERT_TRUE(make_checkpoint(golden("tiny_longcat2") + "/config.json", folder / "made",
                              {.dtype = Dtype::kF32}));
  const auto made = Checkpoint::open(folder / "made");
  ASSERT_TRUE(made) << made.error().what;
  const auto moments = [&](const std::string& name) {
    double sum = 0, squares = 0;
    const auto values = values_of(*made, name);
    for (const double value : values) sum += value, squares += value * value;
    const double mean = sum / static_cast<double>(values.size());
    return std::pair(mean, std::sqrt(squares / static_cast<double>(values.size()) - mean * mean));
  };
  const ModelConfig& config = made->config();
  const auto [head_mean, head_deviation] = moments("lm_head.weight");
  const double wanted = 1 / std::sqrt(config.hidden);
  EXPECT_NEAR(head_mean, 0, 0.05 * wanted);
  EXPECT_NEAR(head_deviation, wanted, 0.05 * wanted);
  EXPECT_NEAR(moments(kWordTable).second, 1, 0.05);
  EXPECT_NEAR(moments("model.norm.weight").first, 1, 0.05);
  EXPECT_EQ(made->find("model.layers.0.mlp.router.classifier.weight")->dtype, Dtype::kF32);
  // Different tensors of one shape have different values.
  EXPECT_NE(values_of(*made, "model.layers.0.mlps.0.up_proj.weight"),
            values_of(*made, "model.layers.0.mlps.1.up_proj.weight"));
}

TEST(MakeCheckpoint, RefusesAQuantisedConfigAndAFolderThatIsThere) {
  const TempFolder folder;
  const auto fp8 = make_checkpoint(golden("tiny_flash_fp8") + "/config.json", folder / "x", {});
  ASSERT_FALSE(fp8);
  EXPECT_EQ(fp8.error().code, base::Code::kUnsupported);
  const auto there = make_checkpoint(golden("tiny_flash") + "/config.json", folder.path(), {});
  ASSERT_FALSE(there);
  EXPECT_EQ(there.error().code, base::Code::kInvalidArgument);
}

// The two shapes that bench/model compares with llama.cpp: elements of its model of the same size,
// and of ours.
TEST(MakeCheckpoint, TheBenchShapesAreAsLargeAsTheirCounterparts) {
  const struct {
    const char* file;
    uint64_t total, active;
    double peer_total, peer_active;
  } shapes[] = {{"shape_s", 48'433'507, 16'443'747, 48.10e6, 16.38e6},
                {"shape_m", 1'231'923'656, 235'776'456, 1237.68e6, 235.24e6}};
  for (const auto& shape : shapes) {
    const std::string file = std::string(SERVAL_SOURCE_DIR "/bench/model/") + shape.file + ".json";
    const auto config = ModelConfig::parse(read_text(file), file);
    ASSERT_TRUE(config) << config.error().what;
    const uint64_t total = expected_size(*config, false, false).elements;
    const uint64_t active = active_elements(*config);
    EXPECT_EQ(total, shape.total);
    EXPECT_EQ(active, shape.active);
    EXPECT_NEAR(static_cast<double>(total) / shape.peer_total, 1, 0.01);
    EXPECT_NEAR(static_cast<double>(active) / shape.peer_active, 1, 0.01);
  }
}

}  // namespace
}  // namespace model
