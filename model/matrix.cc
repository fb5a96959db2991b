#include "model/matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace model {

const char* name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
  }
  return "?";
}

PackedMatrix::PackedMatrix(uint32_t outputs, uint32_t inputs, WeightFormat format, uint32_t group)
    : format_(format), outputs_(outputs), inputs_(inputs), group_(group) {
  CHECK(!is_integer(format), "integer weights are packed elsewhere");
  const size_t bytes = format == WeightFormat::kBf16 ? 2 : 4;
  buffer_ = AlignedBuffer(static_cast<size_t>(round_up_panel(outputs)) * inputs * bytes);
}

void PackedMatrix::set_rows(uint32_t output, uint32_t count, const float* w) {
  CHECK(output + count <= outputs_, "row {} of {}", output + count - 1, outputs_);
  for (uint32_t i = 0; i < count; ++i, ++output, w += inputs_) {
    const size_t base = static_cast<size_t>(output / kPanel) * inputs_ * kPanel + output % kPanel;
    if (format_ == WeightFormat::kBf16) {
      for (size_t k = 0; k < inputs_; ++k)
        buffer_.as<uint16_t>()[base + k * kPanel] =
            static_cast<uint16_t>(std::bit_cast<uint32_t>(w[k]) >> 16);
    } else {
      for (size_t k = 0; k < inputs_; ++k) buffer_.as<float>()[base + k * kPanel] = w[k];
    }
  }
}

void PackedMatrix::set_codes(uint32_t output, uint32_t count, const int8_t* codes,
                             const float* scales) {
  (void)output, (void)count, (void)codes, (void)scales;
  CHECK(false, "no codes in {} weights", name_of(format_));
}

void PackedMatrix::seal() {}

}  // namespace model
