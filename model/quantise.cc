#include "model/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace model {
namespace {

// The loops below are compiled for wider vectors too, chosen at run time. They use plain IEEE
// operations in a fixed order, so every version gives the same bits.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define SERVAL_WIDE __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define SERVAL_WIDE
#endif

constexpr uint32_t kLanes = 16;

// Adding and taking away 1.5 · 2²³ leaves the nearest integer, ties to even, for |v| < 2²²; the low
// bits of the sum are the integer itself. Plain additions vectorise; calls of rint() do not.
constexpr float kRound = 12582912.0f;

int8_t to_code(float v) {
  return static_cast<int8_t>(std::bit_cast<int32_t>(v + kRound) - std::bit_cast<int32_t>(kRound));
}
float clamped(float v, float least, float most) {
  const float low = v < least ? least : v;
  return low > most ? most : low;
}

// max |w|, or NaN when a value is not finite. As integers, magnitudes order like their values and
// whatever is not finite is above the rest.
float magnitude(const float* w, uint32_t n) {
  int32_t most = 0;
  for (uint32_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<int32_t>(w[i]) & 0x7FFFFFFF);
  return most >= 0x7F800000 ? std::numeric_limits<float>::quiet_NaN() : std::bit_cast<float>(most);
}

SERVAL_WIDE void encode(const float* w, uint32_t n, float scale, float least, float most,
                        int8_t* codes) {
  for (uint32_t i = 0; i < n; ++i) codes[i] = to_code(clamped(w[i] / scale, least, most));
}

using Lanes = float __attribute__((vector_size(sizeof(float) * kLanes)));

// Lane l += lane l + 8, then 4, 2, 1.
float fold(const Lanes& values) {
  float lanes[kLanes];
  std::memcpy(lanes, &values, sizeof lanes);
  for (uint32_t step = kLanes / 2; step > 0; step /= 2)
    for (uint32_t l = 0; l < step; ++l) lanes[l] += lanes[l + step];
  return lanes[0];
}

// With v = w · inverse and q its codes: Σ v · q and Σ q².
struct Fit {
  float cross = 0, square = 0;
};
SERVAL_WIDE Fit fit(const float* w, uint32_t n, float inverse) {
  const Lanes least = Lanes{} - 8, most = Lanes{} + 7;
  Lanes cross = {}, square = {};
  for (uint32_t i = 0; i < n; i += kLanes) {
    Lanes v;
    std::memcpy(&v, w + i, sizeof v);
    v *= inverse;
    Lanes q = v < least ? least : v;
    q = q > most ? most : q;
    q = (q + kRound) - kRound;
    cross += v * q;
    square += q * q;
  }
  return {fold(cross), fold(square)};
}

// Fitted on weights drawn from a normal: ten more lower the error by 0.3 %.
constexpr float kDivisors[] = {8, 7.5f, 7, 6.5f, 8.5f, 9, 9.5f};

float int4_scale(const float* w, uint32_t group) {
  const float most = magnitude(w, group);
  if (most == 0 || std::isnan(most)) return most;
  const float* extreme = w;
  while (std::fabs(*extreme) != most) ++extreme;
  float best = 0, scale = 0;
  for (const float divisor : kDivisors) {
    const float candidate = *extreme / -divisor;
    if (!std::isnormal(candidate)) return 0;  // as good as zero, and 1 / scale would overflow
    const Fit found = fit(w, group, 1 / candidate);
    // The squared error at the best scale for these codes is Σ w² − gain · m².
    const float gain = found.cross * found.cross / (found.square * divisor * divisor);
    if (gain <= best) continue;
    best = gain;
    scale = candidate * (found.cross / found.square);
  }
  return scale;
}

bool ends_with_any(std::string_view text, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](auto end) { return text.ends_with(end); });
}
bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

enum class Kind : uint8_t { kNeither, kProjection, kMlp };
Kind kind_of(std::string_view name) {
  if (name == "lm_head.weight") return Kind::kProjection;
  if (contains(name, ".self_attn") && !contains(name, ".indexer."))
    return ends_with_any(name, {".q_a_proj.weight", ".q_b_proj.weight",
                                ".kv_a_proj_with_mqa.weight", ".o_proj.weight"})
               ? Kind::kProjection
               : Kind::kNeither;
  const bool block =
      contains(name, ".mlps.") || contains(name, ".mlp.experts.") || contains(name, "_layer.mlp.");
  return block && ends_with_any(name, {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"})
             ? Kind::kMlp
             : Kind::kNeither;
}

}  // namespace

QuantisedRows quantise_int8(uint32_t rows, uint32_t columns, const float* w) {
  QuantisedRows out;
  out.codes.resize(size_t{rows} * columns);
  out.scales.resize(rows);
  for (uint32_t r = 0; r < rows; ++r) {
    const float* row = w + size_t{r} * columns;
    const float scale = magnitude(row, columns) / 127;
    out.scales[r] = scale;
    if (scale > 0) encode(row, columns, scale, -127, 127, out.codes.data() + size_t{r} * columns);
  }
  return out;
}

QuantisedRows quantise_int4(uint32_t rows, uint32_t columns, uint32_t group, const float* w) {
  CHECK(is_int4_group(group) && columns % group == 0, "{} columns in groups of {}", columns, group);
  QuantisedRows out;
  out.codes.resize(size_t{rows} * columns);
  out.scales.resize(out.codes.size() / group);
  for (size_t g = 0; g < out.scales.size(); ++g) {
    const float* values = w + g * group;
    const float scale = int4_scale(values, group);
    out.scales[g] = scale;
    if (scale != 0 && !std::isnan(scale))
      encode(values, group, scale, -8, 7, out.codes.data() + g * group);
  }
  return out;
}

std::optional<MatrixFormat> quantised_format(std::string_view name, uint32_t columns,
                                             WeightChoice choice, uint32_t group) {
  const Kind kind = kind_of(name);
  if (kind == Kind::kNeither) return std::nullopt;
  if (choice != WeightChoice::kInt8 && choice != WeightChoice::kInt4) return std::nullopt;
  if (choice == WeightChoice::kInt4 && kind == Kind::kMlp && columns % group == 0)
    return MatrixFormat{WeightFormat::kInt4, group};
  return MatrixFormat{WeightFormat::kInt8, 0};
}

MatrixFormat stored_format(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor* tensor = checkpoint.find(name);
  CHECK(tensor != nullptr, "{} was promised by Checkpoint::open", name);
  switch (tensor->dtype) {
    case Dtype::kBf16:
      return {WeightFormat::kBf16, 0};
    case Dtype::kI8:
      return {WeightFormat::kInt8, 0};
    case Dtype::kU8:
      return {WeightFormat::kInt4, checkpoint.config().int4_group};
    default:
      return {WeightFormat::kF32, 0};
  }
}

MatrixFormat loaded_format(const Checkpoint& checkpoint, const std::string& name,
                           WeightChoice choice) {
  const MatrixFormat stored = stored_format(checkpoint, name);
  const MatrixFormat widened = is_integer(stored.format) ? MatrixFormat{} : stored;
  if (choice == WeightChoice::kF32) return {};
  if (kind_of(name) == Kind::kNeither) return widened;
  if (choice == WeightChoice::kAsStored) return stored;
  if (choice == WeightChoice::kBf16) return {WeightFormat::kBf16, 0};
  const auto columns = static_cast<uint32_t>(columns_of(*checkpoint.find(name)));
  const auto wanted = quantised_format(name, columns, choice);
  CHECK(wanted.has_value(), "{} is of a kind that is quantised", name);
  return stored.format == wanted->format ? stored : *wanted;
}

base::Status load_codes(const Checkpoint& checkpoint, const std::string& name, MatrixFormat format,
                        uint64_t row_begin, uint64_t rows, int8_t* codes, float* scales) {
  CHECK(is_integer(format.format), "{} has no codes", name_of(format.format));
  const Tensor* tensor = checkpoint.find(name);
  if (!tensor)
    return base::fail(base::Code::kNotFound, "{}: no tensor {}", checkpoint.folder(), name);
  if (stored_format(checkpoint, name) == format)
    return read_codes(checkpoint, name, row_begin, rows, codes, scales);
  const auto columns = static_cast<uint32_t>(columns_of(*tensor));
  std::vector<float> values(rows * columns);
  TRY(read_rows(checkpoint, name, row_begin, rows, values.data()));
  const auto count = static_cast<uint32_t>(rows);
  const QuantisedRows made = format.format == WeightFormat::kInt8
                                 ? quantise_int8(count, columns, values.data())
                                 : quantise_int4(count, columns, format.group, values.data());
  std::copy(made.codes.begin(), made.codes.end(), codes);
  std::copy(made.scales.begin(), made.scales.end(), scales);
  return {};
}

}  // namespace model
