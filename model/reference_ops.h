// Weights as the reference engine keeps them, f32 or integer codes, and its dense operations.
#pragma once
#include <string>
#include <vector>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/quantise.h"

namespace model {

// y = W x, in the format that loaded_format() gives. f32 is kept by columns, so that the chains of
// dot() run side by side over the outputs; codes by rows.
class Matrix {
 public:
  // Rows [begin, begin + rows) of the stored [out, in] matrix.
  static base::Result<Matrix> load(const Checkpoint& checkpoint, WeightChoice choice,
                                   const std::string& name, uint64_t begin, uint64_t rows);
  static base::Result<Matrix> load(const Checkpoint& checkpoint, WeightChoice choice,
                                   const std::string& name);
  // The transpose of those rows: y = Wᵀ x.  REQUIRES: not integers
  static base::Result<Matrix> load_transposed(const Checkpoint& checkpoint, WeightChoice choice,
                                              const std::string& name, uint64_t begin,
                                              uint64_t rows);

  size_t in() const { return in_; }
  size_t out() const { return out_; }
  void apply(std::span<const float> x, std::span<float> y) const;
  std::vector<float> operator()(std::span<const float> x) const;

 private:
  // The values of those rows, [rows, in], in by_input_.
  base::Status read_values(const Checkpoint& checkpoint, const std::string& name, uint64_t begin,
                           uint64_t rows);

  MatrixFormat kind_;
  size_t in_ = 0, out_ = 0;
  std::vector<float> by_input_;  // [in, out]; of integers none
  std::vector<int8_t> codes_;    // [out, in]
  std::vector<float> scales_;    // [out, scales of a row]
};

base::Result<std::vector<float>> load_vector(const Checkpoint& checkpoint, const std::string& name);

// down · (silu(gate x) · (up x)): a dense MLP and an expert alike.
struct Mlp {
  Matrix gate, up, down;
  static base::Result<Mlp> load(const Checkpoint& checkpoint, WeightChoice choice,
                                const std::string& prefix);
  std::vector<float> operator()(std::span<const float> x) const;
};

// RMS(x; weight)
std::vector<float> normed(std::span<const float> x, const std::vector<float>& weight, double eps);
// h += a
void add_to(std::span<float> h, std::span<const float> a);
inline std::span<float> row_of(std::vector<float>& rows, size_t row, size_t width) {
  return std::span<float>(rows).subspan(row * width, width);
}

}  // namespace model
