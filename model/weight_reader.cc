#include "model/weight_reader.h"

#include <algorithm>

#include "base/check.h"
#include "model/numerics.h"
#include "model/quantise.h"

namespace model {
namespace {

constexpr uint32_t kBandRows = 4 * kPanel;  // that a thread packs at a time

bool stored_in(const Tensor& tensor, WeightFormat format) {
  return (tensor.dtype == Dtype::kBf16 && format == WeightFormat::kBf16) ||
         (tensor.dtype == Dtype::kF32 && format == WeightFormat::kF32);
}

}  // namespace

void WeightReader::read_values(const std::string& name, uint32_t row_begin, uint32_t rows,
                               WeightFormat format, float* out) const {
  const base::Status read = read_rows(checkpoint_, name, row_begin, rows, out);
  CHECK(read.has_value(), "{}: {}", name, read.error().what);
  if (format != WeightFormat::kBf16) return;
  const size_t n = rows * columns_of(*checkpoint_.find(name));
  for (size_t i = 0; i < n; ++i) out[i] = from_bf16(to_bf16(out[i]));
}

void WeightReader::pack_rows(PackedMatrix& packed, const std::string& name, uint32_t row,
                             uint32_t begin, uint32_t count) const {
  const Tensor& tensor = *checkpoint_.find(name);
  const uint32_t inputs = packed.inputs();
  if (stored_in(tensor, packed.format())) {
    const size_t row_bytes = size_t{inputs} * bytes_of(tensor.dtype);
    CHECK(tensor.bytes.size() >= (size_t{row} + begin + count) * row_bytes, "{} is too small",
          name);
    packed.set_stored_rows(begin, count, tensor.bytes.data() + (size_t{row} + begin) * row_bytes);
    return;
  }
  std::vector<float> rows(size_t{count} * inputs);  // values, or scales
  if (is_integer(packed.format())) {
    std::vector<int8_t> codes(rows.size());
    const MatrixFormat kind = loaded_format(checkpoint_, name, choice_);
    const base::Status read =
        load_codes(checkpoint_, name, kind, row + begin, count, codes.data(), rows.data());
    CHECK(read.has_value(), "{}: {}", name, read.error().what);
    packed.set_codes(begin, count, codes.data(), rows.data());
  } else {
    read_values(name, row + begin, count, packed.format(), rows.data());
    packed.set_rows(begin, count, rows.data());
  }
}

PackedMatrix WeightReader::matrix_rows(const std::string& name, uint32_t row_begin,
                                       uint32_t outputs, uint32_t inputs) const {
  CHECK(checkpoint_.find(name) != nullptr, "{} was promised by Checkpoint::open", name);
  const MatrixFormat kind = loaded_format(checkpoint_, name, choice_);
  PackedMatrix packed(outputs, inputs, kind.format, kind.group);
  packed.set_name(name);
  threads_.run((outputs + kBandRows - 1) / kBandRows, [&](uint32_t band) {
    const uint32_t begin = band * kBandRows;
    pack_rows(packed, name, row_begin, begin, std::min(kBandRows, outputs - begin));
  });
  packed.seal(&threads_);
  return packed;
}

PackedMatrix WeightReader::matrix(const std::string& name, uint32_t outputs,
                                  uint32_t inputs) const {
  return matrix_rows(name, 0, outputs, inputs);
}

PackedMatrix WeightReader::transposed_rows(const std::string& name, uint32_t row_begin,
                                           uint32_t rows, uint32_t columns) const {
  const MatrixFormat kind = loaded_format(checkpoint_, name, choice_);
  CHECK(!is_integer(kind.format), "{} has integer columns", name);
  std::vector<float> w(static_cast<size_t>(rows) * columns);
  read_values(name, row_begin, rows, kind.format, w.data());
  PackedMatrix packed(columns, rows, kind.format);
  packed.set_name(name);
  std::vector<float> turned(static_cast<size_t>(kPanel) * rows);
  for (uint32_t j = 0; j < columns; j += kPanel) {
    const uint32_t count = std::min(kPanel, columns - j);
    for (uint32_t k = 0; k < rows; ++k)
      for (uint32_t i = 0; i < count; ++i)
        turned[size_t{i} * rows + k] = w[static_cast<size_t>(k) * columns + j + i];
    packed.set_rows(j, count, turned.data());
  }
  packed.seal(&threads_);
  return packed;
}

std::vector<float> WeightReader::vector(const std::string& name, uint32_t n) const {
  const Tensor* tensor = checkpoint_.find(name);
  CHECK(tensor != nullptr && tensor->elements() == n, "{} was promised with {} values", name, n);
  std::vector<float> values(n);
  const base::Status read = read_rows(checkpoint_, name, 0, /*rows=*/1, values.data());
  CHECK(read.has_value(), "{}: {}", name, read.error().what);
  return values;
}

MlpWeights WeightReader::mlp(const std::string& prefix, uint32_t hidden, uint32_t ffn) const {
  MlpWeights weights;
  weights.gate = matrix(prefix + "gate_proj.weight", ffn, hidden);
  weights.up = matrix(prefix + "up_proj.weight", ffn, hidden);
  weights.down = matrix(prefix + "down_proj.weight", hidden, ffn);
  return weights;
}

}  // namespace model
