#include "model/reference_ops.h"

#include "base/check.h"
#include "model/numerics.h"

namespace model {

base::Result<Matrix> Matrix::load_transposed(const Checkpoint& checkpoint, const std::string& name,
                                             uint64_t begin, uint64_t rows) {
  const Tensor* tensor = checkpoint.find(name);
  if (tensor == nullptr || tensor->shape.size() != 2)
    return base::fail(base::Code::kNotFound, "{}: no matrix {}", checkpoint.folder(), name);
  Matrix matrix;
  matrix.in_ = rows;
  matrix.out_ = tensor->shape[1];
  matrix.by_input_.resize(matrix.in_ * matrix.out_);
  TRY(read_rows(checkpoint, name, begin, rows, matrix.by_input_.data()));
  return matrix;
}

base::Result<Matrix> Matrix::load(const Checkpoint& checkpoint, const std::string& name,
                                  uint64_t begin, uint64_t rows) {
  const Matrix stored = TRY(load_transposed(checkpoint, name, begin, rows));
  Matrix matrix;
  matrix.in_ = stored.out_;
  matrix.out_ = stored.in_;
  matrix.by_input_.resize(stored.by_input_.size());
  for (size_t o = 0; o < matrix.out_; ++o)
    for (size_t i = 0; i < matrix.in_; ++i)
      matrix.by_input_[i * matrix.out_ + o] = stored.by_input_[o * matrix.in_ + i];
  return matrix;
}

base::Result<Matrix> Matrix::load(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor* tensor = checkpoint.find(name);
  if (tensor == nullptr || tensor->shape.empty())
    return base::fail(base::Code::kNotFound, "{}: no matrix {}", checkpoint.folder(), name);
  return load(checkpoint, name, 0, tensor->shape[0]);
}

void Matrix::apply(std::span<const float> x, std::span<float> y) const {
  CHECK(x.size() == in_ && y.size() == out_, "a [{}, {}] matrix on {} values into {}", out_, in_,
        x.size(), y.size());
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

base::Result<Mlp> Mlp::load(const Checkpoint& checkpoint, const std::string& prefix) {
  Mlp mlp;
  mlp.gate = TRY(Matrix::load(checkpoint, prefix + ".gate_proj.weight"));
  mlp.up = TRY(Matrix::load(checkpoint, prefix + ".up_proj.weight"));
  mlp.down = TRY(Matrix::load(checkpoint, prefix + ".down_proj.weight"));
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
