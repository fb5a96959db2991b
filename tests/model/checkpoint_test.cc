#include "model/checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/tensor_list.h"
#include "tests/model/safetensors_writer.h"

namespace model {
namespace {

using base::Code;
using test::Entries;
using test::Entry;
using test::entry_json;
using test::golden;
using test::load_entries;
using test::read_text;
using test::TempFolder;
using test::write_checkpoint;
using test::write_raw;
using test::write_text;

const std::string kTiny = golden("tiny_flash");
const char* const kOProj = "model.layers.0.self_attn.0.o_proj.weight";

base::Error error_of(const std::string& folder) {
  const auto checkpoint = Checkpoint::open(folder);
  EXPECT_FALSE(checkpoint) << "opened " << folder;
  return checkpoint ? base::Error{} : checkpoint.error();
}

// The error of tiny_flash after `change` to its tensors.
template <class Change>
base::Error error_after(Change change, const std::string& from = kTiny) {
  const TempFolder folder;
  Entries entries = load_entries(from);
  change(&entries);
  write_checkpoint(folder.path(), read_text(from + "/config.json"), entries);
  return error_of(folder.path());
}

void expect_named(const base::Error& error, Code code, std::initializer_list<std::string> words) {
  EXPECT_EQ(error.code, code) << error.what;
  for (const std::string& word : words)
    EXPECT_NE(error.what.find(word), std::string::npos) << word << " not in: " << error.what;
}

TEST(Checkpoint, OpensEveryGoldenModelAndIgnoresNothing) {
  const struct {
    const char* name;
    uint32_t mtp_layers;
  } cases[] = {{"tiny_flash", 1},
               {"tiny_flash_fp8", 1},
               {"tiny_lite", 1},
               {"tiny_longcat2", 3},
               {"small_longcat2_realdims", 3}};
  for (const auto& c : cases) {
    const auto checkpoint = Checkpoint::open(golden(c.name));
    ASSERT_TRUE(checkpoint) << checkpoint.error().what;
    EXPECT_EQ(checkpoint->ignored_tensors(), 0u) << c.name;
    EXPECT_EQ(checkpoint->config().mtp_layers, c.mtp_layers) << c.name;
    EXPECT_EQ(checkpoint->config().layers, 2u) << c.name;
  }
}

TEST(Checkpoint, OpensTheBuiltInModelWhoseSizeIsAsComputed) {
  const auto checkpoint = Checkpoint::open(SERVAL_SOURCE_DIR "/models/serval-tiny");
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  EXPECT_EQ(checkpoint->ignored_tensors(), 0u);
  EXPECT_EQ(expected_size(checkpoint->config(), true, false).tensors, 352u);
  const Tensor* table = checkpoint->find("model.oe_embed_tokens7.weight");
  ASSERT_TRUE(table);
  EXPECT_EQ(table->shape, (std::vector<uint64_t>{38620, 16}));
  EXPECT_FALSE(checkpoint->find("model.oe_embed_tokens8.weight"));
}

TEST(Checkpoint, ExpectedSizeCountsTheTensorsOfTheFiles) {
  for (const char* name : {"tiny_flash", "tiny_lite", "small_longcat2_realdims"}) {
    const auto checkpoint = Checkpoint::open(golden(name));
    ASSERT_TRUE(checkpoint);
    EXPECT_EQ(expected_size(checkpoint->config(), true, false).tensors,
              load_entries(golden(name)).size())
        << name;
  }
}

TEST(Checkpoint, DigestDependsOnContentNotOnSharding) {
  const auto original = Checkpoint::open(kTiny);
  ASSERT_TRUE(original);
  const std::string config = read_text(kTiny + "/config.json");
  Entries entries = load_entries(kTiny);
  const auto digest_of = [&](const std::string& text) {
    const TempFolder folder;
    write_checkpoint(folder.path(), text, entries);
    const auto checkpoint = Checkpoint::open(folder.path());
    EXPECT_TRUE(checkpoint) << (checkpoint ? "" : checkpoint.error().what);
    return checkpoint ? checkpoint->digest() : base::Hash128{};
  };
  EXPECT_EQ(digest_of(config), original->digest());
  EXPECT_NE(digest_of(config + " "), original->digest());
  entries[kOProj].bytes[0] ^= 1;
  EXPECT_NE(digest_of(config), original->digest());
  entries[kOProj].bytes[0] ^= 1;
  entries[kOProj].bytes.back() ^= 1;
  EXPECT_NE(digest_of(config), original->digest());
}

TEST(Checkpoint, UnknownTensorsAreIgnoredAndCounted) {
  const TempFolder folder;
  Entries entries = load_entries(kTiny);
  entries["model.layers.0.self_attn.0.rotary_emb.inv_freq"] = {Dtype::kF32, {2}, "12345678"};
  entries["model.mtp.oe_embed_proj0.weight"] = {Dtype::kBf16, {1, 1}, "ab"};
  write_checkpoint(folder.path(), read_text(kTiny + "/config.json"), entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  EXPECT_EQ(checkpoint->ignored_tensors(), 2u);
}

TEST(Checkpoint, MtpTensorsAreAllThereOrNone) {
  const TempFolder folder;
  Entries entries = load_entries(kTiny);
  std::erase_if(entries, [](const auto& item) { return item.first.starts_with(kMtpPrefix); });
  write_checkpoint(folder.path(), read_text(kTiny + "/config.json"), entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  EXPECT_EQ(checkpoint->config().mtp_layers, 0u);
  expect_named(error_after([](Entries* e) { e->erase("model.mtp.norm.weight"); }), Code::kCorrupt,
               {"model.mtp.norm.weight", "missing"});
}

TEST(Checkpoint, TheWordTableMayStandUnderItsNgramName) {
  const TempFolder folder;
  const std::string lite = golden("tiny_lite");
  Entries entries = load_entries(lite);
  auto node = entries.extract(kWordTable);
  node.key() = kWordTableAlias;
  entries.insert(std::move(node));
  write_checkpoint(folder.path(), read_text(lite + "/config.json"), entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  EXPECT_TRUE(checkpoint->find(kWordTable));
  EXPECT_EQ(checkpoint->ignored_tensors(), 0u);
}

TEST(Checkpoint, NgramTablesAreFoundUnderEitherScheme) {
  const TempFolder folder;
  const std::string lite = golden("tiny_lite");
  Entries entries;
  for (auto& [name, entry] : load_entries(lite)) {
    std::string renamed = name;
    for (uint32_t i = 0; i < 12; ++i) {
      if (name == ngram_table_name(false, i)) renamed = ngram_table_name(true, i);
      if (name == ngram_projection_name(false, i)) renamed = ngram_projection_name(true, i);
    }
    entries[renamed] = entry;
  }
  write_checkpoint(folder.path(), read_text(lite + "/config.json"), entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  EXPECT_TRUE(checkpoint->config().ngram->oe_names);
}

TEST(Checkpoint, AMissingTensorIsNamed) {
  expect_named(error_after([](Entries* e) { e->erase(kOProj); }), Code::kCorrupt,
               {kOProj, "missing"});
}

TEST(Checkpoint, AWrongShapeIsNamedWithBothShapes) {
  const auto error =
      error_after([](Entries* e) { std::swap((*e)[kOProj].shape[0], (*e)[kOProj].shape[1]); });
  expect_named(error, Code::kCorrupt, {"model.safetensors", kOProj, "[48, 96]", "[96, 48]"});
}

TEST(Checkpoint, ATableMayHaveMoreRowsButNotFewer) {
  const std::string table = ngram_table_name(false, 3);
  const auto error = error_after(
      [&](Entries* e) {
        (*e)[table].shape[0] -= 1;
        (*e)[table].bytes.resize((*e)[table].bytes.size() - 16);
      },
      golden("tiny_lite"));
  expect_named(error, Code::kCorrupt, {table, "or more rows"});
}

TEST(Checkpoint, AWrongDtypeIsNamed) {
  const char* norm = "model.norm.weight";
  const auto error = error_after([&](Entries* e) {
    (*e)[norm].dtype = Dtype::kI8;
    (*e)[norm].bytes.resize(96);
  });
  expect_named(error, Code::kCorrupt, {"model.safetensors", norm, "I8"});
}

TEST(Checkpoint, QuantisedTensorsNeedTheirScales) {
  const std::string fp8 = golden("tiny_flash_fp8");
  const std::string scale = std::string(kOProj) + "_scale_inv";
  expect_named(error_after([&](Entries* e) { e->erase(scale); }, fp8), Code::kCorrupt, {scale});
  expect_named(error_after(
                   [&](Entries* e) {
                     (*e)[scale].shape = {1, 2};
                   },
                   fp8),
               Code::kCorrupt, {scale, "[1, 2]", "[2, 1]"});
  const TempFolder folder;
  write_checkpoint(folder.path(), read_text(kTiny + "/config.json"), load_entries(kTiny));
  const auto no_config = error_after([](Entries* e) {
    (*e)[kOProj].dtype = Dtype::kF8E4M3;
    (*e)[kOProj].bytes.resize((*e)[kOProj].bytes.size() / 2);
  });
  expect_named(no_config, Code::kCorrupt, {kOProj, "quantization_config"});
}

TEST(Checkpoint, FoldersAndFilesThatAreNotThereAreNotFound) {
  expect_named(error_of("/nowhere/at/all"), Code::kNotFound, {"/nowhere/at/all"});
  const TempFolder folder;
  expect_named(error_of(folder.path()), Code::kNotFound, {"config.json"});
  write_text(folder / "config.json", read_text(kTiny + "/config.json"));
  expect_named(error_of(folder.path()), Code::kNotFound, {"model.safetensors"});
}

TEST(Checkpoint, IndexEntriesCannotLeaveTheFolder) {
  const TempFolder folder;
  write_text(folder / "config.json", read_text(kTiny + "/config.json"));
  for (const char* shard :
       {"../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..safetensors",
        ".safetensors", "passwd", "a\\\\b.safetensors", "a\\u0000.safetensors"}) {
    write_text(folder / "model.safetensors.index.json",
               fmt::format(R"({{"weight_map": {{"lm_head.weight": "{}"}}}})", shard));
    expect_named(error_of(folder.path()), Code::kCorrupt,
                 {"model.safetensors.index.json", "lm_head.weight"});
  }
}

TEST(Checkpoint, TheIndexAndItsShardsMustAgree) {
  const TempFolder folder;
  std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
  const std::string index = folder / "model.safetensors.index.json";
  std::string text = read_text(index);
  const std::string here = "\"lm_head.weight\": \"model-00001-of-00002";
  ASSERT_NE(text.find(here), std::string::npos);
  text.replace(text.find(here), here.size(), "\"lm_head.weight\": \"model-00002-of-00002");
  write_text(index, text);
  expect_named(error_of(folder.path()), Code::kCorrupt,
               {"model-00002-of-00002.safetensors", "lm_head.weight"});
  std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::overwrite_existing);
  std::filesystem::remove(folder / "model-00002-of-00002.safetensors");
  expect_named(error_of(folder.path()), Code::kNotFound, {"model-00002-of-00002.safetensors"});
}

TEST(Checkpoint, ATruncatedShardIsNamedWithTheTensor) {
  const TempFolder folder;
  std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
  const std::string shard = folder / "model-00002-of-00002.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  expect_named(error_of(folder.path()), Code::kCorrupt,
               {"model-00002-of-00002.safetensors: tensor ", "cut off"});
}

TEST(Safetensors, EveryBrokenHeaderIsRefusedWithTheFilesName) {
  const TempFolder folder;
  const std::string path = folder / "x.safetensors";
  const auto one = [](const char* dtype, std::vector<uint64_t> shape, uint64_t b, uint64_t e) {
    return "{" + entry_json("t", dtype, shape, b, e) + "}";
  };
  const auto two = [](uint64_t b, uint64_t e) {
    return "{" + entry_json("s", "U8", {4}, 0, 4) + "," + entry_json("t", "U8", {e - b}, b, e) +
           "}";
  };
  const uint64_t huge = uint64_t{1} << 62;
  const struct {
    std::string header, word;
  } cases[] = {
      {"[]", "no object"},
      {"{", "JSON"},
      {std::string(70, '[') + std::string(70, ']'), "deeper"},
      {"{\"t\":{}}", "lacks"},
      {"{\"t\":3}", "lacks"},
      {one("F64", {1}, 0, 8), "dtype"},
      {one("U8", {9}, 0, 9), "ends at byte 9 of 8"},
      {one("U8", {7}, 0, 7), "1 bytes after"},
      {one("U8", {7}, 1, 8), "begins at byte 1"},
      {one("F32", {1}, 0, 8), "span"},
      {one("U8", {8}, 8, 0), "span"},
      {one("F32", {huge, 8}, 0, 0), "shape"},
      {one("U8", {huge, 4, 0}, 0, 0), "shape"},
      {"{\"t\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,8]}}", "shape"},
      {"{\"t\":{\"dtype\":\"U8\",\"shape\":[8.0],\"data_offsets\":[0,8]}}", "shape"},
      {"{\"t\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0]}}", "lacks"},
      {two(3, 8), "begins at byte 3"},
      {two(5, 8), "begins at byte 5"},
      {"{" + entry_json("t", "U8", {8}, 0, 8) + "," + entry_json("t", "U8", {8}, 0, 8) + "}",
       "twice"},
      {"{}", "8 bytes after"},
  };
  for (const auto& c : cases) {
    write_raw(path, c.header, "12345678");
    const auto file = Safetensors::open(path);
    ASSERT_FALSE(file) << c.header;
    EXPECT_NE(file.error().what.find(path), std::string::npos);
    EXPECT_NE(file.error().what.find(c.word), std::string::npos) << file.error().what;
  }
}

TEST(Safetensors, HeaderLengthsBeyondTheFileOrTheLimitAreRefused) {
  const TempFolder folder;
  const std::string path = folder / "x.safetensors";
  const struct {
    std::string bytes, word;
  } cases[] = {{"", "no header"},
               {"1234567", "no header"},
               {std::string("\x03\0\0\0\0\0\0\0{}", 10), "does not fit"},
               {std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10), "limit"},
               {std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10), "limit"}};
  for (const auto& c : cases) {
    write_text(path, c.bytes);
    const auto file = Safetensors::open(path);
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code, Code::kCorrupt);
    EXPECT_NE(file.error().what.find(c.word), std::string::npos) << file.error().what;
  }
}

TEST(Safetensors, GoldenOutputsWithIntegersAreReadToo) {
  const auto file = Safetensors::open(kTiny + "/golden.safetensors");
  ASSERT_TRUE(file) << file.error().what;
  EXPECT_EQ(file->tensors().at("input_ids").dtype, Dtype::kI64);
  EXPECT_EQ(file->header().size() % 8, 0u);
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::vector<float> rows_of(const Checkpoint& checkpoint, const std::string& name, uint64_t begin,
                           uint64_t rows, uint64_t columns) {
  std::vector<float> out(rows * columns, -1);
  const auto status = read_rows(checkpoint, name, begin, rows, out.data());
  EXPECT_TRUE(status) << (status ? "" : status.error().what);
  return out;
}

TEST(ReadRows, EveryFloatFormatIsWidenedExactly) {
  const TempFolder folder;
  Entries entries = load_entries(kTiny);
  // [96, 48] each; the first values are the interesting ones.
  std::vector<uint16_t> f16(96 * 48, 0), bf16(96 * 48, 0);
  const std::vector<uint16_t> half = {0x3C00, 0xC000, 0x0001, 0x83FF,
                                      0x7BFF, 0x7C00, 0x0400, 0x8000};
  const std::vector<float> half_values = {1,     -2,       0x1p-24f, -1023 * 0x1p-24f,
                                          65504, INFINITY, 0x1p-14f, -0.0f};
  std::copy(half.begin(), half.end(), f16.begin() + 48);
  bf16[0] = 0x3FC0, bf16[1] = 0x0001, bf16[2] = 0xFF7F;
  std::vector<float> f32(96 * 48, 0.1f);
  entries["model.layers.0.self_attn.0.o_proj.weight"] = {Dtype::kF16, {96, 48}, raw(f16)};
  entries["model.layers.0.self_attn.1.o_proj.weight"] = {Dtype::kBf16, {96, 48}, raw(bf16)};
  entries["model.layers.1.self_attn.0.o_proj.weight"] = {Dtype::kF32, {96, 48}, raw(f32)};
  write_checkpoint(folder.path(), read_text(kTiny + "/config.json"), entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  const auto halves = rows_of(*checkpoint, "model.layers.0.self_attn.0.o_proj.weight", 1, 2, 48);
  EXPECT_EQ(0, std::memcmp(halves.data(), half_values.data(), 4 * half_values.size()));
  const auto brains = rows_of(*checkpoint, "model.layers.0.self_attn.1.o_proj.weight", 0, 1, 48);
  EXPECT_EQ(brains[0], 1.5f);
  EXPECT_EQ(brains[1], 0x1p-133f);
  EXPECT_EQ(brains[2], -0x1.FEp127f);
  EXPECT_EQ(rows_of(*checkpoint, "model.layers.1.self_attn.0.o_proj.weight", 95, 1, 48),
            std::vector<float>(48, 0.1f));
}

TEST(ReadRows, Fp8IsItsValueTimesTheScaleOfItsBlock) {
  const TempFolder folder;
  const std::string from = golden("tiny_flash_fp8");
  Entries entries = load_entries(from);
  // gate_proj of the first MLP: [320, 192], blocks of 128: 3 x 2 with partial edges.
  const std::string name = "model.layers.0.mlps.0.gate_proj.weight";
  Entry& weight = entries.at(name);
  ASSERT_EQ(weight.shape, (std::vector<uint64_t>{320, 192}));
  for (size_t i = 0; i < weight.bytes.size(); ++i) weight.bytes[i] = static_cast<char>(i % 251);
  const std::vector<float> scales = {1.1f, 1.3f, 0.7f, 0.1f, 3.3f, 1e-3f};
  entries.at(name + "_scale_inv").bytes = raw(scales);
  write_checkpoint(folder.path(), read_text(from + "/config.json"), entries);
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().what;
  const auto e4m3 = [](unsigned bits) {
    const double sign = bits & 0x80 ? -1 : 1;
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    return sign *
           (exponent == 0 ? fraction / 512.0 : (1 + fraction / 8.0) * std::pow(2, exponent - 7));
  };
  const auto rows = rows_of(*checkpoint, name, 100, 200, 192);
  for (size_t r = 0; r < 200; ++r)
    for (size_t c = 0; c < 192; ++c) {
      const size_t at = (100 + r) * 192 + c;
      const auto bits = static_cast<unsigned>(at % 251);
      const float scale = scales[(100 + r) / 128 * 2 + c / 128];
      if ((bits & 0x7F) == 0x7F)
        EXPECT_TRUE(std::isnan(rows[r * 192 + c]));
      else  // the product in double is exact, so this rounds once
        ASSERT_EQ(rows[r * 192 + c], static_cast<float>(e4m3(bits) * scale)) << bits;
    }
}

TEST(ReadRows, Int8IsItsValueTimesTheScaleOfItsRow) {
  for (const bool column : {false, true}) {
    const TempFolder folder;
    Entries entries = load_entries(kTiny);
    std::vector<int8_t> values(96 * 48);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int8_t>(i);
    std::vector<float> scales(96);
    for (size_t i = 0; i < 96; ++i) scales[i] = 0.01f * static_cast<float>(i + 1);
    entries[kOProj] = {Dtype::kI8, {96, 48}, raw(values)};
    entries[std::string(kOProj) + "_scale"] = {
        Dtype::kF32, column ? std::vector<uint64_t>{96, 1} : std::vector<uint64_t>{96},
        raw(scales)};
    write_checkpoint(folder.path(), read_text(kTiny + "/config.json"), entries);
    const auto checkpoint = Checkpoint::open(folder.path());
    ASSERT_TRUE(checkpoint) << checkpoint.error().what;
    const auto rows = rows_of(*checkpoint, kOProj, 50, 3, 48);
    for (size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(rows[i], static_cast<float>(values[50 * 48 + i]) * scales[50 + i / 48]);
  }
}

TEST(ReadRows, AVectorIsOneRowAndRowsBeyondTheEndAreRefused) {
  const auto checkpoint = Checkpoint::open(kTiny);
  ASSERT_TRUE(checkpoint);
  EXPECT_EQ(rows_of(*checkpoint, "model.norm.weight", 0, 1, 96).size(), 96u);
  float none = 0;
  EXPECT_EQ(read_rows(*checkpoint, "model.norm.weight", 1, 1, &none).error().code,
            Code::kInvalidArgument);
  EXPECT_EQ(read_rows(*checkpoint, kOProj, 96, 1, &none).error().code, Code::kInvalidArgument);
  EXPECT_EQ(read_rows(*checkpoint, kOProj, 1, ~uint64_t{0}, &none).error().code,
            Code::kInvalidArgument);
  EXPECT_EQ(read_rows(*checkpoint, "no.such", 0, 1, &none).error().code, Code::kNotFound);
  EXPECT_TRUE(read_rows(*checkpoint, kOProj, 96, 0, &none));
}

}  // namespace
}  // namespace model
