#include <array>
#include <cmath>
#include <cstring>

#include "model/checkpoint.h"
#include "model/quantise.h"

namespace model {
namespace {

using base::Code;
using base::fail;

template <class T>
T load(const std::byte* at) {  // mapped tensors are not aligned
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from_bf16(uint16_t bits) { return from_bits(uint32_t{bits} << 16); }

// Exact: every f16 value is an f32 value.
float from_f16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F;
  const uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0x1F) return from_bits(sign | 0x7F800000u | (fraction << 13));
  if (exponent != 0) return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float small = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -small : small;
}

// e4m3fn: bias 7, no infinities, 0x7F and 0xFF are NaN.
float from_e4m3(uint8_t bits) {
  const int exponent = (bits >> 3) & 0xF;
  const int fraction = bits & 7;
  if (exponent == 15 && fraction == 7) return from_bits(0x7FC00000u);
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -9)
                              : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

const std::array<float, 256>& e4m3_table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (unsigned i = 0; i < 256; ++i) values[i] = from_e4m3(static_cast<uint8_t>(i));
    return values;
  }();
  return table;
}

// Element i of a plain float tensor.
float plain(const Tensor& tensor, uint64_t i) {
  switch (tensor.dtype) {
    case Dtype::kF32:
      return load<float>(tensor.bytes.data() + 4 * i);
    case Dtype::kBf16:
      return from_bf16(load<uint16_t>(tensor.bytes.data() + 2 * i));
    case Dtype::kF16:
      return from_f16(load<uint16_t>(tensor.bytes.data() + 2 * i));
    default:
      CHECK(false, "{} is no plain float", name_of(tensor.dtype));
  }
  return 0;
}

void copy_plain(const Tensor& tensor, uint64_t begin, uint64_t count, float* out) {
  const std::byte* from = tensor.bytes.data() + begin * bytes_of(tensor.dtype);
  switch (tensor.dtype) {
    case Dtype::kF32:
      std::memcpy(out, from, count * sizeof(float));
      return;
    case Dtype::kBf16:
      for (uint64_t i = 0; i < count; ++i) out[i] = from_bf16(load<uint16_t>(from + 2 * i));
      return;
    default:
      for (uint64_t i = 0; i < count; ++i) out[i] = plain(tensor, begin + i);
  }
}

// W[r][c] = fp8[r][c] · scale[r / block][c / block], rounded once.
void copy_fp8(const Tensor& tensor, const Tensor& scales, uint32_t block, uint64_t row_begin,
              uint64_t rows, uint64_t columns, float* out) {
  const std::array<float, 256>& values = e4m3_table();
  const uint64_t across = (columns + block - 1) / block;
  for (uint64_t r = 0; r < rows; ++r) {
    const std::byte* from = tensor.bytes.data() + (row_begin + r) * columns;
    const uint64_t band = (row_begin + r) / block * across;
    for (uint64_t c = 0; c < columns;) {
      const float scale = plain(scales, band + c / block);
      const uint64_t end = std::min(columns, (c / block + 1) * block);
      for (; c < end; ++c) out[c] = values[std::to_integer<uint8_t>(from[c])] * scale;
    }
    out += columns;
  }
}

// One row of codes as they are stored: I8, or U8 with two codes a byte.
void unpack_codes(const Tensor& tensor, uint64_t row, uint64_t columns, int8_t* codes) {
  if (tensor.dtype == Dtype::kI8) {
    std::memcpy(codes, tensor.bytes.data() + row * columns, columns);
    return;
  }
  const std::byte* from = tensor.bytes.data() + row * (columns / 2);
  for (uint64_t c = 0; c < columns; c += 2) {
    const auto pair = std::to_integer<int>(from[c / 2]);
    codes[c] = static_cast<int8_t>((pair & 15) - 8);
    codes[c + 1] = static_cast<int8_t>((pair >> 4) - 8);
  }
}

// W[r][c] = code[r][c] · scale[r], or · scale[r][c / group]; rounded once.
base::Status copy_codes(const Checkpoint& checkpoint, const std::string& name, uint64_t row_begin,
                        uint64_t rows, uint64_t columns, float* out) {
  const MatrixFormat format = stored_format(checkpoint, name);
  const uint64_t in_row = scales_in_row(format, static_cast<uint32_t>(columns));
  const uint64_t group = columns / in_row;
  std::vector<int8_t> codes(columns);
  std::vector<float> scales(in_row);
  for (uint64_t r = 0; r < rows; ++r, out += columns) {
    TRY(read_codes(checkpoint, name, row_begin + r, /*rows=*/1, codes.data(), scales.data()));
    for (uint64_t g = 0; g < in_row; ++g)
      for (uint64_t c = g * group; c < (g + 1) * group; ++c)
        out[c] = static_cast<float>(codes[c]) * scales[g];
  }
  return {};
}

// The tensor, if it is a matrix or vector that has these rows.
base::Result<const Tensor*> find_rows(const Checkpoint& checkpoint, const std::string& name,
                                      uint64_t row_begin, uint64_t rows) {
  const Tensor* tensor = checkpoint.find(name);
  if (!tensor) return fail(Code::kNotFound, "{}: no tensor {}", checkpoint.folder(), name);
  const auto& shape = tensor->shape;
  if (shape.empty() || shape.size() > 2)
    return fail(Code::kInvalidArgument, "{}: tensor {} is no matrix", tensor->file, name);
  const uint64_t all = shape.size() == 2 ? shape[0] : 1;
  if (row_begin > all || rows > all - row_begin)
    return fail(Code::kInvalidArgument, "{}: tensor {} has {} rows, asked for {} from row {}",
                tensor->file, name, all, rows, row_begin);
  return tensor;
}

}  // namespace

base::Status read_codes(const Checkpoint& checkpoint, const std::string& name, uint64_t row_begin,
                        uint64_t rows, int8_t* codes, float* scales) {
  const Tensor* tensor = TRY(find_rows(checkpoint, name, row_begin, rows));
  const MatrixFormat format = stored_format(checkpoint, name);
  if (!is_integer(format.format))
    return fail(Code::kInvalidArgument, "{}: tensor {} is {}, no integer codes", tensor->file, name,
                name_of(tensor->dtype));
  const Tensor* stored = checkpoint.find(name + "_scale");
  if (!stored) return fail(Code::kCorrupt, "{}: tensor {} has no scales", tensor->file, name);
  const uint64_t columns = columns_of(*tensor);
  const uint64_t in_row = scales_in_row(format, static_cast<uint32_t>(columns));
  for (uint64_t r = 0; r < rows; ++r)
    unpack_codes(*tensor, row_begin + r, columns, codes + r * columns);
  copy_plain(*stored, row_begin * in_row, rows * in_row, scales);
  checkpoint.count_read(rows * tensor->shape.back() + rows * in_row * bytes_of(stored->dtype));
  return {};
}

base::Status read_rows(const Checkpoint& checkpoint, const std::string& name, uint64_t row_begin,
                       uint64_t rows, float* out) {
  const Tensor* tensor = TRY(find_rows(checkpoint, name, row_begin, rows));
  const uint64_t columns = columns_of(*tensor);
  switch (tensor->dtype) {
    case Dtype::kF32:
    case Dtype::kBf16:
    case Dtype::kF16:
      copy_plain(*tensor, row_begin * columns, rows * columns, out);
      break;
    case Dtype::kF8E4M3: {
      const Tensor* scales = checkpoint.find(name + "_scale_inv");
      if (!scales) return fail(Code::kCorrupt, "{}: tensor {} has no scales", tensor->file, name);
      copy_fp8(*tensor, *scales, checkpoint.config().fp8_block, row_begin, rows, columns, out);
      break;
    }
    case Dtype::kI8:
    case Dtype::kU8:
      return copy_codes(checkpoint, name, row_begin, rows, columns, out);  // counts for itself
    default:
      return fail(Code::kUnsupported, "{}: tensor {} is {}, no weights", tensor->file, name,
                  name_of(tensor->dtype));
  }
  checkpoint.count_read(rows * columns * bytes_of(tensor->dtype));
  return {};
}

}  // namespace model
