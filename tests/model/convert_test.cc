#include "model/convert.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/quality.h"
#include "model/tensor_list.h"
#include "tests/model/safetensors_writer.h"

namespace model {
namespace {

using base::Code;
using test::Entries;
using test::golden;
using test::load_entries;
using test::read_text;
using test::TempFolder;
using test::write_checkpoint;
using test::write_text;

const std::string kBuiltIn = SERVAL_SOURCE_DIR "/models/serval-tiny";

Checkpoint opened(const std::string& folder) {
  auto checkpoint = Checkpoint::open(folder);
  EXPECT_TRUE(checkpoint) << (checkpoint ? "" : checkpoint.error().what);
  return std::move(*checkpoint);
}

std::vector<float> all_rows(const Checkpoint& from, const std::string& name) {
  const Tensor* tensor = from.find(name);
  const uint64_t rows = tensor->shape.size() == 2 ? tensor->shape[0] : 1;
  std::vector<float> out(rows * columns_of(*tensor));
  EXPECT_TRUE(read_rows(from, name, 0, rows, out.data()));
  return out;
}

void each_tensor(const Checkpoint& of, const SpecVisitor& visit) {
  each_trunk_tensor(of.config(), visit);
  if (of.config().mtp_layers > 0) each_mtp_tensor(of.config(), visit);
}

void expect_refused(const std::string& source, const std::string& out,
                    const ConvertOptions& options, Code code, const std::string& word) {
  const auto done = convert(source, out, options);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, code) << done.error().what;
  EXPECT_NE(done.error().what.find(word), std::string::npos) << done.error().what;
  EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
}

class ConvertEach : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Golden, ConvertEach,
                         ::testing::Values("tiny_flash", "tiny_flash_fp8", "tiny_lite",
                                           "tiny_longcat2", "small_longcat2_realdims"));

// The promise that a node which quantises at load has the weights of the converted checkpoint.
TEST_P(ConvertEach, StoredCodesAreThoseOfQuantisingAtLoad) {
  const std::string source_folder = golden(GetParam());
  const Checkpoint source = opened(source_folder);
  for (const WeightChoice choice : {WeightChoice::kInt8, WeightChoice::kInt4}) {
    const TempFolder folder;
    const std::string out = folder / "out";
    const auto done = convert(source_folder, out, {.weights = choice, .shard_bytes = 300'000});
    ASSERT_TRUE(done) << done.error().what;
    EXPECT_TRUE(std::filesystem::exists(out + "/model.safetensors.index.json"));
    const Checkpoint made = opened(out);
    EXPECT_EQ(made.ignored_tensors(), 0u);
    EXPECT_EQ(made.total_bytes(), done->bytes_after);
    uint64_t integers = 0;
    each_tensor(source, [&](const TensorSpec& spec) {
      const MatrixFormat format = loaded_format(source, spec.name, choice);
      if (!is_integer(format.format)) {
        ASSERT_FALSE(is_integer(stored_format(made, spec.name).format)) << spec.name;
        ASSERT_EQ(all_rows(made, spec.name), all_rows(source, spec.name)) << spec.name;
        return;
      }
      ++integers;
      ASSERT_EQ(stored_format(made, spec.name), format) << spec.name;
      const uint64_t rows = spec.shape[0], columns = spec.shape[1];
      const uint64_t in_row = scales_in_row(format, static_cast<uint32_t>(columns));
      std::vector<int8_t> stored(rows * columns), quantised(rows * columns);
      std::vector<float> stored_scales(rows * in_row), scales(rows * in_row);
      ASSERT_TRUE(read_codes(made, spec.name, 0, rows, stored.data(), stored_scales.data()));
      ASSERT_TRUE(load_codes(source, spec.name, format, 0, rows, quantised.data(), scales.data()));
      ASSERT_EQ(stored, quantised) << spec.name;
      ASSERT_EQ(stored_scales, scales) << spec.name;
    });
    EXPECT_EQ(integers, done->int8 + done->int4);
    EXPECT_EQ(done->int4 > 0,
              choice == WeightChoice::kInt4 && source.config().hidden % kInt4Group == 0);
    EXPECT_GT(done->int8, 0u);
  }
}

// And the same again as results: the bits of the logits.
TEST_P(ConvertEach, ServesTheBitsOfQuantisingAtLoad) {
  const std::string source_folder = golden(GetParam());
  const Checkpoint source = opened(source_folder);
  const auto tokens = quality_tokens(source, {});
  ASSERT_TRUE(tokens) << tokens.error().what;
  const QualityOptions options{.positions = 40};
  for (const WeightChoice choice : {WeightChoice::kInt8, WeightChoice::kInt4}) {
    const TempFolder folder;
    ASSERT_TRUE(convert(source_folder, folder / "out", {.weights = choice}));
    const Checkpoint made = opened(folder / "out");
    const auto at_load = text_logits(source, choice, *tokens, options);
    const auto stored = text_logits(made, WeightChoice::kAsStored, *tokens, options);
    ASSERT_TRUE(at_load && stored);
    ASSERT_EQ(at_load->values.size(), stored->values.size());
    EXPECT_EQ(std::memcmp(at_load->values.data(), stored->values.data(),
                          stored->values.size() * sizeof(float)),
              0);
  }
}

TEST(Convert, KeepsTheFieldsOfTheConfigAndTakesTheTokenizerAlong) {
  const TempFolder folder;
  const std::string out = folder / "out";
  ASSERT_TRUE(convert(kBuiltIn, out + "/", {.weights = WeightChoice::kInt4, .group = 32}));
  EXPECT_EQ(read_text(out + "/tokenizer.json"), read_text(kBuiltIn + "/tokenizer.json"));
  EXPECT_FALSE(std::filesystem::exists(out + "/reference.safetensors"));
  const auto config = ModelConfig::load(out);
  ASSERT_TRUE(config) << config.error().what;
  EXPECT_EQ(config->int4_group, 32u);
  EXPECT_NE(read_text(out + "/config.json").find("\"oe_vocab_size_ratio\": 12.567"),
            std::string::npos);
}

TEST(Convert, AConvertedFp8ModelSaysNothingOfFp8) {
  const TempFolder folder;
  const std::string out = folder / "out";
  ASSERT_TRUE(convert(golden("tiny_flash_fp8"), out, {}));
  const Checkpoint made = opened(out);
  EXPECT_FALSE(made.config().fp8_blocks);
  EXPECT_EQ(made.find("model.layers.0.self_attn.0.kv_b_proj.weight")->dtype, Dtype::kF32);
}

TEST(Convert, Int8BecomesInt4ButNothingComesFromInt4) {
  const TempFolder folder;
  const std::string eight = folder / "int8", four = folder / "int4";
  ASSERT_TRUE(convert(kBuiltIn, eight, {}));
  ASSERT_TRUE(convert(eight, four, {.weights = WeightChoice::kInt4}));
  const Checkpoint before = opened(eight), after = opened(four);
  const std::string o = "model.layers.0.self_attn.0.o_proj.weight";
  EXPECT_EQ(all_rows(before, o), all_rows(after, o));  // int8 codes go along
  expect_refused(eight, folder / "again", {}, Code::kInvalidArgument, "int8 already");
  expect_refused(four, folder / "back", {}, Code::kInvalidArgument, "int4 already");
}

TEST(Convert, NonsenseIsRefusedAndLeavesNothingBehind) {
  const TempFolder folder;
  const std::string out = folder / "out";
  expect_refused(kBuiltIn, out, {.weights = WeightChoice::kInt4, .group = 48},
                 Code::kInvalidArgument, "48");
  expect_refused(kBuiltIn, out, {.weights = WeightChoice::kBf16}, Code::kInvalidArgument, "int8");
  expect_refused("/nowhere/at/all", out, {}, Code::kNotFound, "/nowhere");
  expect_refused(kBuiltIn, kBuiltIn, {}, Code::kInvalidArgument, "itself");
  std::filesystem::create_directory(out);
  expect_refused(kBuiltIn, out, {}, Code::kInvalidArgument, "there already");
  std::filesystem::create_directory(folder / "other.partial");
  const auto left = convert(kBuiltIn, folder / "other", {});
  ASSERT_FALSE(left);
  EXPECT_NE(left.error().what.find("left from another run"), std::string::npos);
}

TEST(Convert, WeightsThatAreNotFiniteAreRefusedByName) {
  const TempFolder folder;
  const std::string source = folder / "source";
  std::filesystem::create_directory(source);
  Entries entries = load_entries(golden("tiny_flash"));
  const std::string name = "model.layers.1.mlps.0.up_proj.weight";
  ASSERT_EQ(entries.at(name).dtype, Dtype::kBf16);
  entries.at(name).bytes.replace(400, 2, "\x80\x7F");  // infinity
  write_checkpoint(source, read_text(golden("tiny_flash") + "/config.json"), entries);
  expect_refused(source, folder / "out", {}, Code::kCorrupt, name);
}

TEST(Checkpoint, Int4TensorsNeedTheirGroupTheirShapeAndTheirScales) {
  const TempFolder folder;
  const std::string made = folder / "made";
  ASSERT_TRUE(convert(kBuiltIn, made, {.weights = WeightChoice::kInt4}));
  const Entries good = load_entries(made);
  const std::string config = read_text(made + "/config.json");
  const std::string name = "model.layers.0.mlps.0.gate_proj.weight";
  const auto error_of = [&](auto change) {
    const TempFolder at;
    Entries entries = good;
    std::string text = config;
    change(entries, text);
    write_checkpoint(at.path(), text, entries);
    const auto checkpoint = Checkpoint::open(at.path());
    EXPECT_FALSE(checkpoint);
    return checkpoint ? std::string() : checkpoint.error().what;
  };
  const auto has = [](const std::string& text, const std::string& word) {
    EXPECT_NE(text.find(word), std::string::npos) << word << " not in: " << text;
  };
  has(error_of([&](Entries& e, std::string&) { e.erase(name + "_scale"); }), name + "_scale");
  has(error_of([&](Entries& e, std::string&) { std::swap(e[name].shape[0], e[name].shape[1]); }),
      "[64, 192]");
  has(error_of([&](Entries& e, std::string&) {
        std::swap(e[name + "_scale"].shape[0], e[name + "_scale"].shape[1]);
      }),
      "[2, 192]");
  has(error_of([&](Entries&, std::string& c) {
        c.replace(c.find("\"group_size\": 64"), 16, "\"group_size\": 32");
      }),
      "must be [");
  has(error_of([&](Entries&, std::string& c) {
        c.replace(c.find("\"group_size\": 64"), 16, "\"group_size\": 48");
      }),
      "group_size");
  has(error_of([&](Entries&, std::string& c) {
        c.replace(c.find("\"symmetric\": true"), 17, "\"symmetric\": false");
      }),
      "symmetric");
  has(error_of([&](Entries&, std::string& c) {
        const size_t at = c.find(",\n  \"quantization_config\"");
        c.erase(at, c.rfind('}') - at);
      }),
      "no int4 quantization_config");
}

TEST(Checkpoint, Int8WithZeroOffsetsIsReadAndWithOthersOrSmoothingRefused) {
  const TempFolder folder;
  const std::string made = folder / "made";
  ASSERT_TRUE(convert(golden("tiny_flash"), made, {}));
  const std::string o = "model.layers.0.self_attn.0.o_proj.weight";
  const std::string config = read_text(made + "/config.json");
  Entries entries = load_entries(made);
  const uint64_t rows = entries.at(o).shape[0];
  entries[o + "_offset"] = {Dtype::kF32, {rows, 1}, std::string(rows * 4, '\0')};
  const TempFolder at;
  write_checkpoint(at.path(), config, entries);
  EXPECT_EQ(opened(at.path()).ignored_tensors(), 0u);
  entries[o + "_offset"].bytes[6] = 1;
  write_checkpoint(at.path(), config, entries);
  auto refused = Checkpoint::open(at.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kUnsupported);
  EXPECT_NE(refused.error().what.find(o + "_offset"), std::string::npos);
  entries.erase(o + "_offset");
  entries["model.layers.0.mlp.experts.w13_smooth_scale"] = {Dtype::kF32, {1}, "abcd"};
  write_checkpoint(at.path(), config, entries);
  refused = Checkpoint::open(at.path());
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().what.find("smooth_scale"), std::string::npos);
}

TEST(Quality, AModelAgreesWithItselfAndQuantisingCostsLittle) {
  const Checkpoint source = opened(kBuiltIn);
  const auto tokens = quality_tokens(source, {});
  ASSERT_TRUE(tokens) << tokens.error().what;
  const QualityOptions options{.window = 64, .positions = 200};
  const auto before = text_logits(source, WeightChoice::kAsStored, *tokens, options);
  ASSERT_TRUE(before) << before.error().what;
  ASSERT_EQ(before->positions(), 200u);
  const QualityReport same = compare_quality(*before, *before, *tokens);
  EXPECT_EQ(same.mean_kl, 0);
  EXPECT_EQ(same.top1_agreement, 1);
  EXPECT_EQ(same.source_loss, same.converted_loss);

  double kl[2];
  for (const WeightChoice choice : {WeightChoice::kInt8, WeightChoice::kInt4}) {
    const TempFolder folder;
    ASSERT_TRUE(convert(kBuiltIn, folder / "out", {.weights = choice}));
    const Checkpoint made = opened(folder / "out");
    // As served last, with integer activations: the figure that is kept.
    for (const WeightChoice run : {WeightChoice::kF32, WeightChoice::kAsStored}) {
      const auto after = text_logits(made, run, *tokens, options);
      ASSERT_TRUE(after) << after.error().what;
      const QualityReport report = compare_quality(*before, *after, *tokens);
      kl[choice == WeightChoice::kInt4] = report.mean_kl;
      EXPECT_GT(report.mean_kl, 0);
      EXPECT_LE(report.mean_kl, report.largest_kl);
      EXPECT_GT(report.top1_agreement, choice == WeightChoice::kInt8 ? 0.95 : 0.8);
    }
  }
  EXPECT_LT(5 * kl[0], kl[1]);  // int8 is far nearer than int4
  EXPECT_LT(kl[1], 0.1);
}

TEST(Quality, KvInInt8CostsLittleAgainstKvInF32) {
  const Checkpoint source = opened(kBuiltIn);
  const auto tokens = quality_tokens(source, {});
  ASSERT_TRUE(tokens) << tokens.error().what;
  QualityOptions options{.window = 200, .positions = 400};
  options.kv = KvType::kF32;
  const auto exact = text_logits(source, WeightChoice::kAsStored, *tokens, options);
  ASSERT_TRUE(exact) << exact.error().what;
  for (const KvType kv : {KvType::kBf16, KvType::kInt8}) {
    options.kv = kv;
    const auto rounded = text_logits(source, WeightChoice::kAsStored, *tokens, options);
    ASSERT_TRUE(rounded) << rounded.error().what;
    const QualityReport report = compare_quality(*exact, *rounded, *tokens);
    EXPECT_GT(report.mean_kl, 0);
    EXPECT_LT(report.mean_kl, 1e-3);
    EXPECT_GT(report.top1_agreement, 0.98);
  }
}

TEST(Quality, DivergenceAndLossAreThoseOfTheirDefinitions) {
  // Two positions of three tokens, p = softmax(0, 0, 0) then (1, 0, 0); q the other way round.
  const TextLogits p{3, 256, {0, 0, 0, 1, 0, 0}};
  const TextLogits q{3, 256, {1, 0, 0, 0, 0, 0}};
  const std::vector<TokenId> tokens = {0, 1};
  const QualityReport report = compare_quality(p, q, tokens);
  const double e = std::exp(1.0), total = std::log(e + 2);
  const double first = -std::log(3.0) + total - 1.0 / 3;
  const double second = e / (e + 2) - total + std::log(3.0);
  EXPECT_NEAR(report.mean_kl, (first + second) / 2, 1e-12);
  EXPECT_NEAR(report.largest_kl, std::max(first, second), 1e-12);
  EXPECT_NEAR(report.source_loss, std::log(3.0), 1e-12);  // of token 1 after the first
  EXPECT_NEAR(report.converted_loss, total, 1e-12);
  EXPECT_EQ(report.top1_agreement, 1);
}

TEST(Quality, ATextIsTokenisedAndAMissingOneIsSaid) {
  const Checkpoint source = opened(kBuiltIn);
  const TempFolder folder;
  write_text(folder / "a.txt", "def f(x):\n    return x\n");
  const auto once = quality_tokens(source, {folder / "a.txt"});
  const auto twice = quality_tokens(source, {folder / "a.txt", folder / "a.txt"});
  ASSERT_TRUE(once && twice);
  EXPECT_EQ(twice->size(), 2 * once->size());
  EXPECT_FALSE(quality_tokens(source, {folder / "b.txt"}));
  const Checkpoint tiny = opened(golden("tiny_flash"));
  ASSERT_TRUE(quality_tokens(tiny, {}));
  EXPECT_FALSE(quality_tokens(tiny, {folder / "a.txt"}));
}

}  // namespace
}  // namespace model
