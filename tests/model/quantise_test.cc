#include "model/quantise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/convert.h"
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

// A little generator, so that the values are the same everywhere.
std::vector<float> noise(size_t n, uint32_t seed) {
  std::vector<float> out(n);
  uint32_t state = seed * 2654435761u + 1;
  for (float& value : out) {
    double sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525u + 1013904223u;
      sum += (state >> 8) * 0x1p-24;
    }
    value = static_cast<float>(sum - 2);
  }
  return out;
}

TEST(QuantiseInt8, ACodeIsTheNearestMultipleOfTheRowsScale) {
  std::vector<float> w = {127, -127, 0.5f, 1.5f, -0.5f, -2.5f, 63.49f, 0};
  const std::vector<float> small = {-2.54f, 0.01f, 0.03f, 1, 0, 0, -1e-9f, 2.54f};
  w.insert(w.end(), small.begin(), small.end());
  const QuantisedRows q = quantise_int8(2, 8, w.data());
  EXPECT_EQ(q.scales, (std::vector<float>{1, 2.54f / 127}));
  // Halves go to the even neighbour.
  EXPECT_EQ(q.codes, (std::vector<int8_t>{127, -127, 0, 2, 0, -2, 63, 0,  //
                                          -127, 0, 2, 50, 0, 0, 0, 127}));
}

TEST(QuantiseInt8, EveryCodeIsRintOfTheQuotientAndWithinTheRange) {
  constexpr uint32_t kColumns = 257;
  std::vector<float> w = noise(64 * kColumns, 1);
  for (size_t i = 0; i < w.size(); ++i)
    w[i] *= std::ldexp(1.0f, static_cast<int>(i / kColumns) - 32);
  const QuantisedRows q = quantise_int8(64, kColumns, w.data());
  for (uint32_t r = 0; r < 64; ++r) {
    float most = 0;
    for (uint32_t c = 0; c < kColumns; ++c) most = std::max(most, std::fabs(w[r * kColumns + c]));
    ASSERT_EQ(q.scales[r], most / 127);
    for (uint32_t c = 0; c < kColumns; ++c) {
      const size_t i = r * kColumns + c;
      ASSERT_EQ(q.codes[i], std::rint(w[i] / q.scales[r])) << i;
    }
  }
}

TEST(QuantiseInt8, ZerosTinyAndHugeRowsKeepWithinTheRange) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float huge = std::numeric_limits<float>::max();
  const std::vector<float> w = {0,          0, -0.0f, 0,  //
                                tiny,       0, -tiny, 0,  //
                                190 * tiny, 0, -tiny, 0,  //
                                huge,       0, -huge, 1};
  const QuantisedRows q = quantise_int8(4, 4, w.data());
  EXPECT_EQ(q.scales[0], 0);
  EXPECT_EQ(q.scales[1], 0);
  EXPECT_EQ(q.scales[2], tiny);
  EXPECT_EQ(q.codes, (std::vector<int8_t>{0, 0, 0, 0,  //
                                          0, 0, 0, 0,  //
                                          127, 0, -1, 0, 127, 0, -127, 0}));
}

TEST(Quantise, ValuesThatAreNotFiniteMakeTheScaleNan) {
  for (const float bad : {INFINITY, -INFINITY, NAN, -NAN}) {
    std::vector<float> w = noise(64, 2);
    w[40] = bad;
    const QuantisedRows eight = quantise_int8(2, 32, w.data());
    EXPECT_TRUE(std::isfinite(eight.scales[0]));
    EXPECT_TRUE(std::isnan(eight.scales[1]));
    const QuantisedRows four = quantise_int4(1, 64, 32, w.data());
    EXPECT_TRUE(std::isfinite(four.scales[0]));
    EXPECT_TRUE(std::isnan(four.scales[1]));
    EXPECT_EQ(std::vector<int8_t>(32, 0),
              std::vector<int8_t>(four.codes.begin() + 32, four.codes.end()));
  }
}

double error_of(const QuantisedRows& q, const std::vector<float>& w, uint32_t group) {
  double error = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double off = static_cast<double>(w[i]) - double{q.scales[i / group]} * q.codes[i];
    error += off * off;
  }
  return error;
}

TEST(QuantiseInt4, CodesStayInTheRangeAndAreNearestForTheirScale) {
  for (const uint32_t group : {32u, 64u, 128u}) {
    const std::vector<float> w = noise(16 * 256, group);
    const QuantisedRows q = quantise_int4(16, 256, group, w.data());
    ASSERT_EQ(q.scales.size(), w.size() / group);
    for (size_t i = 0; i < w.size(); ++i) {
      const float exact = std::rint(w[i] / q.scales[i / group]);
      ASSERT_EQ(q.codes[i], std::min(7.0f, std::max(-8.0f, exact)));
    }
  }
}

TEST(QuantiseInt4, IsBetterThanTheLargestValueOverSevenInEveryGroup) {
  constexpr uint32_t kGroup = 64;
  const std::vector<float> w = noise(4096, 7);
  double chosen = 0, simple = 0;
  for (size_t at = 0; at < w.size(); at += kGroup) {
    const std::vector<float> group(w.begin() + static_cast<long>(at),
                                   w.begin() + static_cast<long>(at) + kGroup);
    const QuantisedRows q = quantise_int4(1, kGroup, kGroup, group.data());
    float most = 0;
    for (const float value : group) most = std::max(most, std::fabs(value));
    QuantisedRows plain{std::vector<int8_t>(kGroup), {most / 7}};
    for (uint32_t i = 0; i < kGroup; ++i)
      plain.codes[i] = static_cast<int8_t>(std::rint(group[i] / plain.scales[0]));
    EXPECT_LE(error_of(q, group, kGroup), error_of(plain, group, kGroup) * (1 + 1e-6)) << at;
    chosen += error_of(q, group, kGroup);
    simple += error_of(plain, group, kGroup);
  }
  EXPECT_LT(chosen, 0.8 * simple);
}

TEST(QuantiseInt4, AGroupOnAGridIsExact) {
  std::vector<float> w(32);
  for (size_t i = 0; i < w.size(); ++i)
    w[i] = 0.25f * static_cast<float>(static_cast<int>(i % 16) - 8);
  for (const float sign : {1.0f, -1.0f}) {  // −8 is used on either side
    std::vector<float> signed_w = w;
    for (float& value : signed_w) value *= sign;
    const QuantisedRows q = quantise_int4(1, 32, 32, signed_w.data());
    EXPECT_EQ(q.scales[0], 0.25f * sign);
    EXPECT_EQ(error_of(q, signed_w, 32), 0);
  }
}

TEST(QuantiseInt4, ZeroAndTinyGroupsAreZero) {
  std::vector<float> w(96, 0.0f);
  w[33] = std::numeric_limits<float>::denorm_min();
  w[64] = std::numeric_limits<float>::max();
  const QuantisedRows q = quantise_int4(1, 96, 32, w.data());
  EXPECT_EQ(q.scales[0], 0);
  EXPECT_EQ(q.scales[1], 0);
  EXPECT_TRUE(std::isfinite(q.scales[2]));
  EXPECT_EQ(std::vector<int8_t>(64, 0), std::vector<int8_t>(q.codes.begin(), q.codes.begin() + 64));
}

TEST(QuantisedFormat, SaysWhatBecomesOfEveryTensor) {
  using enum WeightFormat;
  const MatrixFormat eight{kInt8, 0}, four{kInt4, 64};
  const struct {
    std::string name;
    std::optional<MatrixFormat> int8, int4;
  } cases[] = {
      {"lm_head.weight", eight, eight},
      {"model.layers.3.self_attn.0.q_a_proj.weight", eight, eight},
      {"model.layers.3.self_attn.1.q_b_proj.weight", eight, eight},
      {"model.layers.3.self_attn.1.kv_a_proj_with_mqa.weight", eight, eight},
      {"model.layers.3.self_attn.1.o_proj.weight", eight, eight},
      {"model.mtp.layers.0.self_attn.o_proj.weight", eight, eight},
      {"model.layers.3.mlps.1.down_proj.weight", eight, four},
      {"model.layers.3.mlp.experts.17.gate_proj.weight", eight, four},
      {"model.mtp.layers.0.transformer_layer.mlp.up_proj.weight", eight, four},
      {"model.layers.3.self_attn.0.kv_b_proj.weight", {}, {}},
      {"model.mtp.layers.0.self_attn.kv_b_proj.weight", {}, {}},
      {"model.mtp.layers.0.eh_proj.weight", {}, {}},
      {"model.layers.3.self_attn.0.indexer.wq_b.weight", {}, {}},
      {"model.layers.3.self_attn.0.indexer.wk.weight", {}, {}},
      {"model.layers.3.self_attn.0.indexer.weights_proj.weight", {}, {}},
      {"model.layers.3.mlp.router.classifier.weight", {}, {}},
      {"model.embed_tokens.weight", {}, {}},
      {"model.mtp.embed_tokens.weight", {}, {}},
      {"model.oe_embed_proj3.weight", {}, {}},
      {"model.oe_embed_tokens3.weight", {}, {}},
      {"model.ngram_embeddings.post_projs.3.weight", {}, {}},
      {"model.norm.weight", {}, {}},
      {"model.layers.3.self_attn.0.q_a_layernorm.weight", {}, {}},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(quantised_format(c.name, 128, WeightChoice::kInt8), c.int8) << c.name;
    EXPECT_EQ(quantised_format(c.name, 128, WeightChoice::kInt4), c.int4) << c.name;
    for (const WeightChoice other :
         {WeightChoice::kAsStored, WeightChoice::kF32, WeightChoice::kBf16})
      EXPECT_EQ(quantised_format(c.name, 128, other), std::nullopt) << c.name;
  }
  // 208 inputs cannot be cut in groups of 64.
  EXPECT_EQ(quantised_format("model.layers.0.mlps.0.down_proj.weight", 208, WeightChoice::kInt4),
            eight);
}

TEST(LoadedFormat, KeepsWhatIsStoredUnlessAChoiceSaysOtherwise) {
  const TempFolder folder;
  const std::string out = folder / "int4";
  ASSERT_TRUE(convert(SERVAL_SOURCE_DIR "/models/serval-tiny", out,
                      {.weights = WeightChoice::kInt4, .group = 32}));
  const auto plain = Checkpoint::open(SERVAL_SOURCE_DIR "/models/serval-tiny");
  const auto stored = Checkpoint::open(out);
  ASSERT_TRUE(plain && stored) << (stored ? "" : stored.error().what);
  const std::string expert = "model.layers.0.mlp.experts.1.up_proj.weight";
  const std::string o = "model.layers.0.self_attn.0.o_proj.weight";
  const std::string kv_b = "model.layers.0.self_attn.0.kv_b_proj.weight";
  using enum WeightFormat;
  const auto of = [](const Checkpoint& from, const std::string& name, WeightChoice choice) {
    return loaded_format(from, name, choice);
  };
  EXPECT_EQ(of(*plain, expert, WeightChoice::kAsStored), (MatrixFormat{kBf16, 0}));
  EXPECT_EQ(of(*plain, expert, WeightChoice::kInt4), (MatrixFormat{kInt4, kInt4Group}));
  EXPECT_EQ(of(*plain, o, WeightChoice::kInt4), (MatrixFormat{kInt8, 0}));
  EXPECT_EQ(of(*plain, kv_b, WeightChoice::kInt8), (MatrixFormat{kBf16, 0}));
  EXPECT_EQ(of(*plain, kv_b, WeightChoice::kF32), (MatrixFormat{kF32, 0}));
  EXPECT_EQ(of(*stored, expert, WeightChoice::kAsStored), (MatrixFormat{kInt4, 32}));
  EXPECT_EQ(of(*stored, expert, WeightChoice::kInt4), (MatrixFormat{kInt4, 32}));
  EXPECT_EQ(of(*stored, expert, WeightChoice::kInt8), (MatrixFormat{kInt8, 0}));
  EXPECT_EQ(of(*stored, expert, WeightChoice::kBf16), (MatrixFormat{kBf16, 0}));
  EXPECT_EQ(of(*stored, expert, WeightChoice::kF32), (MatrixFormat{kF32, 0}));
}

TEST(ReadCodes, RefusesWhatIsNotStoredAsIntegers) {
  const auto tiny = Checkpoint::open(golden("tiny_flash"));
  ASSERT_TRUE(tiny);
  int8_t code = 0;
  float scale = 0;
  EXPECT_EQ(read_codes(*tiny, "lm_head.weight", 0, 1, &code, &scale).error().code,
            Code::kInvalidArgument);
  EXPECT_EQ(read_codes(*tiny, "no.such", 0, 1, &code, &scale).error().code, Code::kNotFound);
}

TEST(ReadCodes, Bf16ScalesAreReadExactlyAndInt4NibblesInOrder) {
  const TempFolder folder;
  const std::string name = "model.layers.0.mlps.0.down_proj.weight";
  Entries entries = load_entries(golden("tiny_flash"));
  const std::vector<uint64_t> shape = entries.at(name).shape;
  ASSERT_EQ(shape[1] % 32, 0u);
  std::string packed(shape[0] * shape[1] / 2, '\0');
  for (size_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<char>(i % 256);
  std::string scales(shape[0] * shape[1] / 32 * 2, '\0');  // bf16
  for (size_t i = 0; i < scales.size(); i += 2) {
    scales[i] = static_cast<char>(i / 2 % 128);
    scales[i + 1] = 0x3F;
  }
  entries[name] = {Dtype::kU8, {shape[0], shape[1] / 2}, packed};
  entries[name + "_scale"] = {Dtype::kBf16, {shape[0], shape[1] / 32}, scales};
  std::string config = read_text(golden("tiny_flash") + "/config.json");
  config.insert(1, R"("quantization_config": {"quant_method": "int4", "group_size": 32},)");
  write_checkpoint(folder.path(), config, entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  const uint64_t before = checkpoint->bytes_read();
  std::vector<int8_t> codes(2 * shape[1]);
  std::vector<float> row_scales(2 * shape[1] / 32), values(2 * shape[1]);
  ASSERT_TRUE(read_codes(*checkpoint, name, 1, 2, codes.data(), row_scales.data()));
  EXPECT_EQ(checkpoint->bytes_read() - before, shape[1] + row_scales.size() * 2);
  ASSERT_TRUE(read_rows(*checkpoint, name, 1, 2, values.data()));
  for (size_t i = 0; i < codes.size(); ++i) {
    const size_t at = shape[1] + i;
    const size_t byte = at / 2 % 256;
    ASSERT_EQ(codes[i], static_cast<int>(at % 2 == 0 ? byte & 15 : byte >> 4) - 8);
    const auto bits = static_cast<uint32_t>(0x3F00u | (at / 32 % 128)) << 16;
    float scale = 0;
    std::memcpy(&scale, &bits, sizeof scale);
    ASSERT_EQ(row_scales[i / 32], scale);
    ASSERT_EQ(values[i], scale * codes[i]);
  }
}

}  // namespace
}  // namespace model
