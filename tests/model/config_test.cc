#include "model/config.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "model/json.h"

namespace model {
namespace {

using base::Code;

std::string read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

ModelConfig published(const std::string& name) {
  const std::string file = std::string(SERVAL_SOURCE_DIR "/tests/data/configs/") + name + ".json";
  auto config = ModelConfig::parse(read(file), file);
  EXPECT_TRUE(config) << (config ? "" : config.error().what);
  return config ? *config : ModelConfig();
}

std::string longcat_2() { return read(SERVAL_SOURCE_DIR "/tests/data/configs/longcat_2.json"); }

// The config with one field's value replaced by other JSON text; "" takes the field out. Fields
// stand one a line.
std::string with(std::string json, const std::string& field, const std::string& value) {
  const std::string key = fmt::format("\n \"{}\": ", field);
  const size_t begin = json.find(key);
  EXPECT_NE(begin, std::string::npos) << field;
  const size_t from = begin + key.size();
  size_t end = json.find_first_of(",\n", from);
  if (json[from] == '{') end = json.find('}', from) + 1;
  if (json[from] == '[') end = json.find(']', from) + 1;
  if (value.empty()) return json.erase(begin, end + 1 - begin);
  return json.replace(from, end - from, value);
}
// The config with a field added.
std::string plus(const std::string& json, const std::string& field, const std::string& value) {
  return fmt::format("{{\n \"{}\": {},{}", field, value, json.substr(json.find('{') + 1));
}

base::Error error_of(const std::string& json) {
  const auto config = ModelConfig::parse(json, "dir/config.json");
  EXPECT_FALSE(config);
  return config ? base::Error{} : config.error();
}

TEST(Config, SizesOfPublishedCheckpointsAreExactToTheLastElement) {
  const CheckpointSize two = expected_size(published("longcat_2"), true, true);
  EXPECT_EQ(two.tensors, 88'780u);
  EXPECT_EQ(two.elements, 1'775'560'491'136u);
  const CheckpointSize trunk = expected_size(published("longcat_2"), false, false);
  EXPECT_EQ(trunk.elements, 1'638'616'807'424u);
  const CheckpointSize live = expected_size(published("longcat_2"), true, false);
  EXPECT_EQ(live.elements - trunk.elements, 1'897'703'552u);
  EXPECT_EQ(live.tensors - trunk.tensors, 21u);
  const CheckpointSize sparse = expected_size(published("longcat_flash_lite_sparse"), true, false);
  EXPECT_EQ(sparse.tensors, 11'220u);
  EXPECT_EQ(sparse.elements, 69'127'158'912u);
  const CheckpointSize lite = expected_size(published("longcat_flash_lite"), true, false);
  EXPECT_EQ(lite.tensors, 11'160u);
  EXPECT_EQ(lite.elements, 69'073'335'552u);
}

TEST(Config, NgramTableRowsTruncateTheRatioAfterMultiplying) {
  const ModelConfig two = published("longcat_2");
  EXPECT_EQ(two.ngram->tables(), 16u);
  EXPECT_EQ(two.ngram_rows(0), 16'476'898u);
  EXPECT_EQ(two.ngram_rows(15), 16'476'928u);
  EXPECT_EQ(two.ngram_dim(), 512u);
  EXPECT_TRUE(two.ngram->oe_names);
  const ModelConfig lite = published("longcat_flash_lite");
  EXPECT_EQ(lite.ngram_rows(0), 10'223'617u);
  EXPECT_EQ(lite.ngram_rows(11), 10'223'639u);
  EXPECT_FALSE(lite.ngram->oe_names);
}

TEST(Config, NumHiddenLayersCountsAttentionsNotLayers) {
  EXPECT_EQ(published("longcat_flash_lite").layers, 14u);
  const std::string lite = read(SERVAL_SOURCE_DIR "/tests/data/configs/longcat_flash_lite.json");
  const auto without = ModelConfig::parse(with(lite, "num_layers", ""), "c");
  ASSERT_TRUE(without);
  EXPECT_EQ(without->layers, 14u);
  const std::string odd = with(with(lite, "num_layers", ""), "num_hidden_layers", "27");
  EXPECT_EQ(error_of(odd).what,
            "dir/config.json: field \"num_hidden_layers\" must be even where num_layers is absent");
}

TEST(Config, SoftmaxScaleIncludesTheSquareOfMscale) {
  EXPECT_NEAR(published("longcat_flash_chat").softmax_scale(), 0.0721688, 1e-7);
  EXPECT_NEAR(published("longcat_flash_lite").softmax_scale(), 0.109230, 1e-6);
  EXPECT_NEAR(published("longcat_2").softmax_scale(), 0.157811, 1e-6);
}

TEST(Config, ArchitectureDecidesBeforeModelType) {
  EXPECT_EQ(published("longcat_2").variant, Variant::kLongcat);
  EXPECT_EQ(published("longcat_flash_lite").variant, Variant::kFlashNgram);
  const std::string flash = read(SERVAL_SOURCE_DIR "/tests/data/configs/longcat_flash_chat.json");
  auto config = ModelConfig::parse(with(flash, "model_type", "\"something_else\""), "c");
  ASSERT_TRUE(config);
  EXPECT_EQ(config->variant, Variant::kFlash);
  config = ModelConfig::parse(with(flash, "architectures", ""), "c");
  ASSERT_TRUE(config);
  EXPECT_EQ(config->variant, Variant::kFlash);
  const base::Error other = error_of(with(flash, "architectures", "[\"LlamaForCausalLM\"]"));
  EXPECT_EQ(other.code, Code::kUnsupported);
  EXPECT_NE(other.what.find("LlamaForCausalLM"), std::string::npos);
}

TEST(Config, EosIsAnIdOrAListOfIds) {
  EXPECT_EQ(published("longcat_2").eos, std::vector<uint32_t>{2});
  const auto list = ModelConfig::parse(with(longcat_2(), "eos_token_id", "[2, 15]"), "c");
  ASSERT_TRUE(list);
  EXPECT_EQ(list->eos, (std::vector<uint32_t>{2, 15}));
  for (const char* bad : {"[]", "-1", "163840", "\"2\"", "[2, null]"})
    EXPECT_NE(error_of(with(longcat_2(), "eos_token_id", bad)).what.find("eos_token_id"),
              std::string::npos)
        << bad;
}

TEST(Config, RopeScalingMayBeNullOrNamedEitherWay) {
  auto config = ModelConfig::parse(with(longcat_2(), "rope_scaling", "null"), "c");
  ASSERT_TRUE(config);
  EXPECT_FALSE(config->yarn);
  for (const char* key : {"type", "rope_type"})
    for (const char* type : {"yarn", "deepseek_yarn"}) {
      config = ModelConfig::parse(
          with(longcat_2(), "rope_scaling",
               fmt::format("{{\"{}\": \"{}\", \"factor\": 4.5, \"mscale_all_dim\": 1, "
                           "\"original_max_position_embeddings\": 1024}}",
                           key, type)),
          "c");
      ASSERT_TRUE(config) << config.error().what;
      EXPECT_EQ(config->yarn->factor, 4.5);
      EXPECT_EQ(config->yarn->original_max_position, 1024u);
    }
  EXPECT_EQ(
      error_of(with(longcat_2(), "rope_scaling", "{\"type\": \"linear\", \"factor\": 2}")).code,
      Code::kUnsupported);
  EXPECT_NE(error_of(with(longcat_2(), "rope_scaling", "{\"type\": \"yarn\", \"factor\": 2}"))
                .what.find("original_max_position_embeddings"),
            std::string::npos);
}

TEST(Config, IndexTopkTurnsSparseAttentionOn) {
  const ModelConfig two = published("longcat_2");
  ASSERT_TRUE(two.indexer);
  EXPECT_EQ(two.indexer->heads, 32u);
  EXPECT_EQ(two.indexer->topk, 2048u);
  EXPECT_TRUE(two.indexer->rope_interleave);
  EXPECT_FALSE(published("longcat_flash_lite").indexer);
}

TEST(Config, Fp8BlocksAreReadAndOtherQuantisationIsRefused) {
  const auto quantised = [](const std::string& object) {
    return plus(longcat_2(), "quantization_config", object);
  };
  const auto config = ModelConfig::parse(
      quantised(
          "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"weight_block_size\": [128, 128]}"),
      "c");
  ASSERT_TRUE(config);
  EXPECT_TRUE(config->fp8_blocks);
  EXPECT_EQ(config->fp8_block, 128u);
  for (const char* bad : {"{\"quant_method\": \"gptq\"}", "{\"quant_method\": \"fp8\"}",
                          "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 64]}",
                          "{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\", "
                          "\"weight_block_size\": [128, 128]}"})
    EXPECT_EQ(error_of(quantised(bad)).code, Code::kUnsupported) << bad;
}

TEST(Config, EveryBadFieldIsRefusedByName) {
  const struct {
    const char* field;
    const char* value;
    Code code;
  } cases[] = {
      {"vocab_size", "", Code::kCorrupt},
      {"vocab_size", "0", Code::kCorrupt},
      {"vocab_size", "1e5", Code::kCorrupt},
      {"hidden_size", "-8192", Code::kCorrupt},
      {"hidden_size", "8191", Code::kCorrupt},
      {"hidden_size", "99999999999999999999", Code::kCorrupt},
      {"num_layers", "0", Code::kCorrupt},
      {"num_layers", "\"38\"", Code::kCorrupt},
      {"moe_topk", "897", Code::kCorrupt},
      {"moe_topk", "0", Code::kCorrupt},
      {"qk_rope_head_dim", "63", Code::kCorrupt},
      {"v_head_dim", "null", Code::kCorrupt},
      {"mla_scale_q_lora", "", Code::kCorrupt},
      {"mla_scale_kv_lora", "1", Code::kCorrupt},
      {"rope_theta", "", Code::kCorrupt},
      {"rope_theta", "0", Code::kCorrupt},
      {"oe_split_num", "", Code::kCorrupt},
      {"oe_neighbor_num", "1", Code::kCorrupt},
      {"oe_vocab_size_ratio", "0.0000001", Code::kCorrupt},
      {"index_topk", "1039", Code::kCorrupt},
      {"index_head_dim", "32", Code::kCorrupt},
      {"index_n_heads", "", Code::kCorrupt},
      {"max_position_embeddings", "0", Code::kCorrupt},
      {"index_k_norm_type", "\"layer\"", Code::kUnsupported},
      {"cli_factor", "4", Code::kUnsupported},
      {"mtp_replicate_modules", "false", Code::kUnsupported},
      {"zero_expert_type", "\"drop\"", Code::kUnsupported},
      {"hidden_act", "\"gelu\"", Code::kUnsupported},
      {"tie_word_embeddings", "true", Code::kUnsupported},
      {"attention_bias", "true", Code::kUnsupported},
  };
  for (const auto& c : cases) {
    const base::Error error = error_of(with(longcat_2(), c.field, c.value));
    EXPECT_EQ(error.code, c.code) << c.field << " " << c.value << ": " << error.what;
    EXPECT_NE(error.what.find(std::string("dir/config.json: field \"") + c.field + "\""),
              std::string::npos)
        << error.what;
  }
}

TEST(Config, AFolderWithoutConfigIsNotFound) {
  const auto config = ModelConfig::load(SERVAL_SOURCE_DIR "/tests/data");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, Code::kNotFound);
}

TEST(Json, RefusesWhatIsNoDocument) {
  const std::string deep(100, '[');
  for (const std::string& bad :
       {std::string("{"), std::string("{\"a\": 1, \"a\": 2}"), std::string("[1,]"),
        std::string("NaN"), std::string("\"\xff\""), std::string("{} x"), std::string(),
        deep + std::string(100, ']')}) {
    const auto json = parse_json(bad, "f");
    ASSERT_FALSE(json) << bad;
    EXPECT_EQ(json.error().code, Code::kCorrupt);
  }
}

TEST(Json, DumpsAsPythonDoes) {
  const struct {
    const char* in;
    const char* out;
  } cases[] = {
      {R"({"b":1,"a":[true,false,null]})", R"({"b": 1, "a": [true, false, null]})"},
      {R"("a\"\\\n\t\u0001\u007f<é\u00e9😀/")", "\"a\\\"\\\\\\n\\t\\u0001\x7f<éé😀/\""},
      {"[1.0,1e3,1e16,123456789012345678901234567890,0.1,-0.0,1e-5,0.0001,1.5e300,-7]",
       "[1.0, 1000.0, 1e+16, 123456789012345678901234567890, 0.1, -0.0, 1e-05, 0.0001, 1.5e+300, "
       "-7]"},
      {"[18446744073709551615,9007199254740993,{},[]]",
       "[18446744073709551615, 9007199254740993, {}, []]"},
  };
  for (const auto& c : cases) {
    const auto json = parse_json(c.in, "f");
    ASSERT_TRUE(json) << c.in;
    EXPECT_EQ(dump_python(*json), c.out);
  }
}

}  // namespace
}  // namespace model
