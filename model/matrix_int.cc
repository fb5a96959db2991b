// PackedMatrix of integer codes: packing and checksums.
#include <algorithm>
#include <array>
#include <bit>

#include "base/check.h"
#include "model/matrix.h"

namespace model {
namespace {

constexpr uint32_t kUnitBytes = kCodeUnit * kPanel;  // int8 codes of a panel in one unit

uint32_t units_of(uint32_t inputs) { return (inputs + kCodeUnit - 1) / kCodeUnit; }

// Where code k of output o (of its panel) stands: int8.
size_t place8(size_t o, size_t k) { return k / 4 * (4 * kPanel) + o * 4 + k % 4; }
// int4: the byte; the code is its high nibble when k % 8 ≥ 4.
size_t place4(size_t o, size_t k) { return k / 8 * (4 * kPanel) + o * 4 + k % 4; }

// sums[k] += Σ over the panel's outputs of its codes.  sums: one unit
void add_codes(WeightFormat format, const std::byte* unit, uint32_t* sums) {
  std::array<int32_t, kCodeUnit> sum{};
  if (format == WeightFormat::kInt8) {
    const auto* codes = reinterpret_cast<const int8_t*>(unit);
    for (size_t four = 0; four < kCodeUnit / 4; ++four)
      for (size_t o = 0; o < kPanel; ++o)
        for (size_t i = 0; i < 4; ++i) sum[four * 4 + i] += codes[(four * kPanel + o) * 4 + i];
  } else {
    const auto* codes = reinterpret_cast<const uint8_t*>(unit);
    for (size_t eight = 0; eight < kCodeUnit / 8; ++eight)
      for (size_t o = 0; o < kPanel; ++o)
        for (size_t i = 0; i < 4; ++i) {
          const uint8_t both = codes[(eight * kPanel + o) * 4 + i];
          sum[eight * 8 + i] += (both & 0xF) - 8;
          sum[eight * 8 + 4 + i] += (both >> 4) - 8;
        }
  }
  for (size_t k = 0; k < kCodeUnit; ++k) sums[k] += static_cast<uint32_t>(sum[k]);
}

}  // namespace

void PackedMatrix::reserve_codes() {
  const bool int4 = format_ == WeightFormat::kInt4;
  CHECK(!int4 || (group_ % kCodeUnit == 0 && group_ <= kActivationGroup && group_ > 0 &&
                  kActivationGroup % group_ == 0 && inputs_ % group_ == 0),
        "{} inputs in groups of {}", inputs_, group_);
  const size_t bytes = size_t{panels()} * units_of(inputs_) * kUnitBytes / (int4 ? 2 : 1);
  buffer_ = AlignedBuffer(bytes);
  if (int4) std::fill_n(buffer_.as<uint8_t>(), bytes, uint8_t{0x88});
  const size_t scales = size_t{panels()} * kPanel * (int4 ? inputs_ / group_ : 1);
  scales_ = AlignedBuffer(scales * sizeof(float));
}

void PackedMatrix::set_codes(uint32_t output, uint32_t count, const int8_t* codes,
                             const float* scales) {
  CHECK(is_integer(format_), "no codes in {} weights", name_of(format_));
  CHECK(output + count <= outputs_, "row {} of {}", output + count - 1, outputs_);
  const bool int4 = format_ == WeightFormat::kInt4;
  const size_t panel_bytes = size_t{units_of(inputs_)} * kUnitBytes / (int4 ? 2 : 1);
  const uint32_t groups = int4 ? inputs_ / group_ : 1;
  for (uint32_t end = output + count; output < end; ++output, codes += inputs_, scales += groups) {
    const size_t panel = output / kPanel, o = output % kPanel;
    if (int4) {
      auto* to = buffer_.as<uint8_t>() + panel * panel_bytes;
      for (size_t k = 0; k < inputs_; ++k) {
        uint8_t& both = to[place4(o, k)];
        const auto nibble = static_cast<unsigned>(codes[k] + 8);
        both = static_cast<uint8_t>(k % 8 < 4 ? (both & 0xF0u) | nibble
                                              : (both & 0x0Fu) | (nibble << 4));
      }
    } else {
      auto* to = buffer_.as<int8_t>() + panel * panel_bytes;
      for (size_t k = 0; k < inputs_; ++k) to[place8(o, k)] = codes[k];
    }
    for (size_t g = 0; g < groups; ++g)
      scales_.as<float>()[(panel * groups + g) * kPanel + o] = scales[g];
  }
}

std::vector<uint32_t> PackedMatrix::sum_codes() const {
  const uint32_t units = units_of(inputs_);
  const size_t unit_bytes = kUnitBytes / (format_ == WeightFormat::kInt4 ? 2 : 1);
  std::vector<uint32_t> sums(size_t{units} * kCodeUnit);
  const std::byte* at = data();
  for (uint32_t panel = 0; panel < panels(); ++panel)
    for (uint32_t unit = 0; unit < units; ++unit, at += unit_bytes)
      add_codes(format_, at, sums.data() + size_t{unit} * kCodeUnit);
  sums.resize(inputs_);
  return sums;
}

uint32_t PackedMatrix::sum_scales() const {
  uint32_t sum = 0;
  for (size_t i = 0; i < scales_.bytes() / sizeof(float); ++i)
    sum += std::bit_cast<uint32_t>(scales()[i]);
  return sum;
}

std::vector<int16_t> PackedMatrix::narrowed(const std::vector<uint32_t>& sums) {
  std::vector<int16_t> narrow(sums.size());
  for (size_t k = 0; k < sums.size(); ++k) {
    narrow[k] = static_cast<int16_t>(sums[k]);
    if (static_cast<uint32_t>(int32_t{narrow[k]}) != sums[k]) return {};
  }
  return narrow;
}

void PackedMatrix::seal_codes() {
  code_sums_ = sum_codes();
  narrow_code_sums_ = narrowed(code_sums_);
  scale_sum_ = sum_scales();
}

bool PackedMatrix::codes_intact() const {
  return sum_codes() == code_sums_ && narrowed(code_sums_) == narrow_code_sums_ &&
         sum_scales() == scale_sum_;
}

}  // namespace model
