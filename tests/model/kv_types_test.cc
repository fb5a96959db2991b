// KV in int8: what a row holds, and that the kernel reads what the scalar form reads.
#include "model/kernel_targets.h"
// after kernel_targets
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/rng.h"
#include "model/aligned_buffer.h"
#include "model/kernels_attention.h"
#include "model/kernels_kv.h"
#include "model/kv_layout.h"
#include "model/numerics.h"

namespace model {
namespace {

ModelConfig sizes(uint32_t latent, uint32_t rope, uint32_t key) {
  ModelConfig config;
  config.kv_lora = latent;
  config.rope = rope;
  if (key > 0) config.indexer.emplace().head_dim = key;
  return config;
}

std::vector<float> random_part(const ModelConfig& config, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> values(config.latent());
  for (float& v : values) v = static_cast<float>((rng.uniform() - 0.5) * 8);
  return values;
}

std::vector<std::byte> stored(const KvLayout& layout, const std::vector<float>& values,
                              std::byte before) {
  std::vector<std::byte> part(layout.part_bytes(), before);
  layout.store_part(part.data(), values);
  return part;
}

float scale_of(const std::vector<std::byte>& part) {
  float scale;
  std::memcpy(&scale, part.data(), sizeof scale);
  return scale;
}

TEST(Int8Kv, ALongCatRowTakesThreeFifthsOfABf16One) {
  const ModelConfig config = sizes(512, 64, 128);
  EXPECT_EQ(KvLayout(config, KvType::kBf16).row_bytes(), 2560u);
  const KvLayout int8(config, KvType::kInt8);
  EXPECT_EQ(int8.part_bytes(), 4u + 512 + 128);
  EXPECT_EQ(int8.row_bytes(), 2u * 644 + 256);
  EXPECT_EQ(int8.index_key_at(), 1288u);
}

TEST(Int8Kv, TheLatentIsWithinHalfAStepAndTheRopeKeyIsBf16) {
  for (const uint32_t latent : {5u, 24u, 512u}) {
    const ModelConfig config = sizes(latent, 6, 3);
    const KvLayout layout(config, KvType::kInt8);
    const std::vector<float> values = random_part(config, latent);
    const auto part = stored(layout, values, std::byte{0xAA});
    std::vector<float> back(values.size());
    layout.load_part(part.data(), back);
    const float step = scale_of(part);
    for (uint32_t i = 0; i < latent; ++i)
      EXPECT_LE(std::fabs(back[i] - values[i]), step * 0.50001f) << i;
    for (size_t i = latent; i < values.size(); ++i)
      EXPECT_EQ(back[i], from_bf16(to_bf16(values[i])));
  }
}

// Rows travel and are hashed whole: bytes between the values may not be what was there before.
TEST(Int8Kv, EveryByteOfAPartFollowsFromTheValues) {
  for (const uint32_t latent : {5u, 6u, 7u, 8u}) {
    const ModelConfig config = sizes(latent, 2, 0);
    const KvLayout layout(config, KvType::kInt8);
    EXPECT_EQ(layout.part_bytes() % 4, 0u);
    EXPECT_EQ(layout.row_bytes(), 2 * layout.part_bytes());
    const std::vector<float> values = random_part(config, latent);
    EXPECT_EQ(stored(layout, values, std::byte{0x00}), stored(layout, values, std::byte{0xFF}));
  }
}

TEST(Int8Kv, ARowOfZerosStaysOneAndOneThatIsNotFiniteIsNotHidden) {
  const ModelConfig config = sizes(16, 2, 0);
  const KvLayout layout(config, KvType::kInt8);
  std::vector<float> values(config.latent(), 0.0f), back(values.size());
  layout.load_part(stored(layout, values, std::byte{1}).data(), back);
  EXPECT_EQ(back, values);
  values[3] = std::numeric_limits<float>::infinity();
  layout.load_part(stored(layout, values, std::byte{1}).data(), back);
  for (uint32_t i = 0; i < config.kv_lora; ++i) EXPECT_TRUE(std::isnan(back[i]));
}

class Int8KvKernel : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { use(GetParam()); }
  void TearDown() override { use(0); }
  static void use(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

TEST_P(Int8KvKernel, ReadsTheValuesOfTheScalarFormAcrossSegments) {
  for (const auto& [latent, rope] : {std::pair{512u, 64u}, {24u, 8u}, {250u, 14u}, {261u, 5u}}) {
    const ModelConfig config = sizes(latent, rope, 0);
    const KvLayout layout(config, KvType::kInt8);
    constexpr uint32_t kRows = 9;
    std::vector<std::vector<std::byte>> parts;
    std::vector<const std::byte*> rows;
    for (uint32_t s = 0; s < kRows; ++s) {
      parts.push_back(stored(layout, random_part(config, s), std::byte{0}));
      rows.push_back(parts.back().data());
    }
    AlignedBuffer tile(tile_floats(config.latent()) * sizeof(float));
    widen_codes({rows.data(), kRows, latent, rope, layout.rope_at()}, tile.as<float>());
    std::vector<float> want(config.latent());
    for (uint32_t s = 0; s < kRows; ++s) {
      layout.load_part(rows[s], want);
      for (size_t i = 0; i < want.size(); ++i) {
        const size_t at = i / kDotSegment * kTileRows * kTileStride + s * kTileStride;
        ASSERT_EQ(tile.as<float>()[at + i % kDotSegment], want[i]) << s << " " << i;
      }
    }
  }
}

std::vector<int64_t> targets() {
  std::vector<int64_t> out;
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1)
    out.push_back(rest & -rest);
  return out;
}
INSTANTIATE_TEST_SUITE_P(Targets, Int8KvKernel, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return hwy::TargetName(info.param); });

}  // namespace
}  // namespace model
