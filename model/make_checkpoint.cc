#include "model/make_checkpoint.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/hash.h"
#include "model/json.h"
#include "model/tensor_list.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;

constexpr uint32_t kTableBits = 12;
constexpr uint32_t kTable = 1u << kTableBits;
constexpr uint64_t kPieceValues = 1 << 18;

// SplitMix64: a value for every counter.
uint64_t mixed(uint64_t counter) {
  uint64_t z = counter * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The middles of 4096 equally likely slices of the standard normal, found by bisection on its
// distribution function, then scaled to variance 1.
const std::vector<float>& normal_table() {
  static const std::vector<float> table = [] {
    std::vector<double> values(kTable);
    double squares = 0;
    for (uint32_t i = 0; i < kTable; ++i) {
      const double p = (i + 0.5) / kTable;
      double low = -6, high = 6;
      for (int step = 0; step < 60; ++step) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
      }
      values[i] = low;
      squares += low * low;
    }
    const double scale = std::sqrt(kTable / squares);
    std::vector<float> out(kTable);
    // Rounded to 12 bits behind the point: bisection ends the same whatever erfc's last bit.
    for (uint32_t i = 0; i < kTable; ++i)
      out[i] = static_cast<float>(std::nearbyint(values[i] * scale * 4096) / 4096);
    return out;
  }();
  return table;
}

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

// How the values of a tensor are spread: mean + deviation · N(0, 1).
struct Spread {
  float mean = 0, deviation = 1;
  auto operator<=>(const Spread&) const = default;
};
Spread spread_of(const TensorSpec& spec) {
  const std::string& name = spec.name;
  if (name.ends_with("e_score_correction_bias") || name.ends_with("classifier.bias"))
    return {0, 0.1f / static_cast<float>(spec.shape[0])};  // small beside the probabilities
  if (spec.shape.size() == 1) return {1, 0.05f};           // norms
  const bool table = name.ends_with("embed_tokens.weight") || spec.may_pad;
  if (table) return {0, 1};
  return {0, 1 / std::sqrt(static_cast<float>(spec.shape[1]))};
}

bool is_f32_always(const std::string& name) {
  return name.find(".mlp.router.") != name.npos || name.ends_with(".indexer.weights_proj.weight");
}

// The table's values for one spread, in the bits of one dtype.
template <class T>
class Palette {
 public:
  const T* of(Spread spread) {
    auto& values = palettes_[spread];
    if (!values.empty()) return values.data();
    for (const float normal : normal_table()) {
      const float value = spread.mean + spread.deviation * normal;
      if constexpr (sizeof(T) == 2) {
        values.push_back(to_bf16(value));
      } else {
        values.push_back(value);
      }
    }
    return values.data();
  }

 private:
  std::map<Spread, std::vector<T>> palettes_;
};

class Maker {
 public:
  Maker(const MakeOptions& options, CheckpointWriter* writer)
      : options_(options), writer_(writer), all_(writer->total_bytes()) {}

  Status write(const TensorSpec& spec, const PlannedTensor& planned) {
    uint64_t elements = 1;
    for (const uint64_t extent : spec.shape) elements *= extent;
    const base::Hash128 hash = base::hash128(spec.name);
    uint64_t key = 0;
    std::memcpy(&key, &hash, sizeof key);
    key = mixed(key ^ mixed(options_.seed));
    return planned.dtype == Dtype::kF32
               ? fill<float>(spec, elements, key, floats_.of(spread_of(spec)))
               : fill<uint16_t>(spec, elements, key, halves_.of(spread_of(spec)));
  }

 private:
  template <class T>
  Status fill(const TensorSpec& spec, uint64_t elements, uint64_t key, const T* values) {
    static_assert(kPieceValues % 4 == 0, "a counter makes four values");
    std::vector<T> piece(kPieceValues);
    for (uint64_t at = 0; at < elements; at += kPieceValues) {
      for (uint64_t i = 0; i < kPieceValues; i += 4) {
        const uint64_t four = mixed(key + (at + i) / 4);
        for (uint64_t j = 0; j < 4; ++j) piece[i + j] = values[(four >> (16 * j)) % kTable];
      }
      const auto count = static_cast<size_t>(std::min(kPieceValues, elements - at));
      TRY(writer_->write(spec.name, std::as_bytes(std::span<const T>(piece.data(), count))));
      if (options_.progress) options_.progress(writer_->written_bytes(), all_);
    }
    return {};
  }

  const MakeOptions& options_;
  CheckpointWriter* writer_;
  const uint64_t all_;
  Palette<float> floats_;
  Palette<uint16_t> halves_;
};

}  // namespace

Result<CheckpointSize> make_checkpoint(const std::string& config_file, const std::string& folder,
                                       const MakeOptions& options) {
  CHECK(options.dtype == Dtype::kBf16 || options.dtype == Dtype::kF32, "weights of {}",
        name_of(options.dtype));
  const std::string text = TRY(read_file(config_file, /*limit=*/16 << 20));
  const ModelConfig config = TRY(ModelConfig::parse(text, config_file));
  if (config.fp8_blocks || config.int4_group > 0)
    return fail(Code::kUnsupported,
                "{}: has a quantization_config; make the plain checkpoint, then convert it",
                config_file);
  std::vector<TensorSpec> specs;
  const SpecVisitor add = [&specs](const TensorSpec& spec) { specs.push_back(spec); };
  each_trunk_tensor(config, add);
  if (config.mtp_layers > 0) each_mtp_tensor(config, add);
  std::vector<PlannedTensor> plan;
  for (const TensorSpec& spec : specs)
    plan.push_back({spec.name, is_f32_always(spec.name) ? Dtype::kF32 : options.dtype, spec.shape});

  CheckpointWriter writer =
      TRY(CheckpointWriter::create(folder, plan, options.shard_bytes, /*sync=*/false));
  TRY(writer.add_file("config.json", text));
  Maker maker(options, &writer);
  for (size_t i = 0; i < specs.size(); ++i) TRY(maker.write(specs[i], plan[i]));
  TRY(writer.finish());
  return expected_size(config, config.mtp_layers > 0, /*mtp_ngram_copies=*/false);
}

uint64_t active_elements(const ModelConfig& config) {
  uint64_t total = 0, experts = 0;
  each_trunk_tensor(config, [&](const TensorSpec& spec) {
    if (spec.name == kWordTable || spec.may_pad) return;
    uint64_t elements = 1;
    for (const uint64_t extent : spec.shape) elements *= extent;
    (spec.name.find(".mlp.experts.") != spec.name.npos ? experts : total) += elements;
  });
  return total + experts / config.experts * config.topk;
}

}  // namespace model
