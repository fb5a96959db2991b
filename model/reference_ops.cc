#include "model/reference_ops.h"

#include <utility>

#include "base/check.h"
#include "model/numerics.h"
#include "model/numerics_int.h"

namespace model {

namespace {

base::Result<const Tensor*> find_matrix(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor* tensor = checkpoint.find(name);
  if (tensor == nullptr || tensor->shape.size() != 2)
    return base::fail(base::Code::kNotFound, "{}: no matrix {}", checkpoint.folder(), name);
  return tensor;
}

}  // namespace

base::Status Matrix::read_values(const Checkpoint& checkpoint, const std::string& name,
                                 uint64_t begin, uint64_t rows) {
  by_input_.resize(in_ * out_);
  TRY(read_rows(checkpoint, name, begin, rows, by_input_.data()));
  if (kind_.format == WeightFormat::kBf16)
    for (float& w : by_input_) w = from_bf16(to_bf16(w));
  return {};
}

base::Result<Matrix> Matrix::load_transposed(const Checkpoint& checkpoint, WeightChoice choice,
                                             const std::string& name, uint64_t begin,
                                             uint64_t rows) {
  const Tensor* tensor = TRY(find_matrix(checkpoint, name));
  Matrix matrix;
  matrix.kind_ = loaded_format(checkpoint, name, choice);
  CHECK(!is_integer(matrix.kind_.format), "{} has integer columns", name);
  matrix.in_ = rows;
  matrix.out_ = columns_of(*tensor);
  TRY(matrix.read_values(checkpoint, name, begin, rows));
  return matrix;
}

base::Result<Matrix> Matrix::load(const Checkpoint& checkpoint, WeightChoice choice,
                                  const std::string& name, uint64_t begin, uint64_t rows) {
  const Tensor* tensor = TRY(find_matrix(checkpoint, name));
  Matrix matrix;
  matrix.kind_ = loaded_format(checkpoint, name, choice);
  matrix.in_ = columns_of(*tensor);
  matrix.out_ = rows;
  if (is_integer(matrix.kind_.format)) {
    matrix.codes_.resize(matrix.in_ * matrix.out_);
    matrix.scales_.resize(rows * scales_in_row(matrix.kind_, static_cast<uint32_t>(matrix.in_)));
    TRY(load_codes(checkpoint, name, matrix.kind_, begin, rows, matrix.codes_.data(),
                   matrix.scales_.data()));
    return matrix;
  }
  TRY(matrix.read_values(checkpoint, name, begin, rows));
  const std::vector<float> by_output = std::exchange(matrix.by_input_, {});
  matrix.by_input_.resize(by_output.size());
  for (size_t o = 0; o < matrix.out_; ++o)
    for (size_t i = 0; i < matrix.in_; ++i)
      matrix.by_input_[i * matrix.out_ + o] = by_output[o * matrix.in_ + i];
  return matrix;
}

base::Result<Matrix> Matrix::load(const Checkpoint& checkpoint, WeightChoice choice,
                                  const std::string& name) {
  const Tensor* tensor = TRY(find_matrix(checkpoint, name));
  return load(checkpoint, choice, name, 0, tensor->shape[0]);
}

void Matrix::apply(std::span<const float> x, std::span<float> y) const {
  CHECK(x.size() == in_ && y.size() == out_, "a [{}, {}] matrix on {} values into {}", out_, in_,
        x.size(), y.size());
  if (is_integer(kind_.format))
    int_dots(x, codes_.data(), scales_.data(), kind_.group, y);
  else
    dot_columns(x, by_input_.data(), y);
}

std::vector<float> Matrix::operator()(std::span<const float> x) const {
  std::vector<float> y(out_);
  apply(x, y);
  return y;
}

base::Result<std::vector<float>> load_vector(const Checkpoint& checkpoint,
                                             const std::string& name) {
  const Tensor* tensor = checkpoint.find(name);
  if (tensor == nullptr)
    return base::fail(base::Code::kNotFound, "{}: no tensor {}", checkpoint.folder(), name);
  std::vector<float> values(tensor->elements());
  TRY(read_rows(checkpoint, name, 0, tensor->shape.size() == 2 ? tensor->shape[0] : 1,
                values.data()));
  return values;
}

base::Result<Mlp> Mlp::load(const Checkpoint& checkpoint, WeightChoice choice,
                            const std::string& prefix) {
  Mlp mlp;
  mlp.gate = TRY(Matrix::load(checkpoint, choice, prefix + ".gate_proj.weight"));
  mlp.up = TRY(Matrix::load(checkpoint, choice, prefix + ".up_proj.weight"));
  mlp.down = TRY(Matrix::load(checkpoint, choice, prefix + ".down_proj.weight"));
  return mlp;
}

std::vector<float> Mlp::operator()(std::span<const float> x) const {
  std::vector<float> inner = gate(x);
  const std::vector<float> lifted = up(x);
  for (size_t i = 0; i < inner.size(); ++i) inner[i] = silu(inner[i]) * lifted[i];
  return down(inner);
}

std::vector<float> normed(std::span<const float> x, const std::vector<float>& weight, double eps) {
  std::vector<float> y(x.size());
  rms_norm(x, weight.data(), static_cast<float>(eps), y.data());
  return y;
}

void add_to(std::span<float> h, std::span<const float> a) {
  for (size_t i = 0; i < h.size(); ++i) h[i] += a[i];
}

}  // namespace model
