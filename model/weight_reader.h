// Reads tensors of a checkpoint into packed form, in the formats of loaded_format() (quantise.h),
// on the compute threads.
#pragma once
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/matrix.h"
#include "model/thread_pool.h"

namespace model {

struct MlpWeights {
  PackedMatrix gate, up;  // [ffn, hidden]
  PackedMatrix down;      // [hidden, ffn]
};

class WeightReader {
 public:
  WeightReader(const Checkpoint& checkpoint, WeightChoice choice, ThreadPool& threads)
      : checkpoint_(checkpoint), choice_(choice), threads_(threads) {}
  PackedMatrix matrix(const std::string& name, uint32_t outputs, uint32_t inputs) const;
  // Rows [row_begin, row_begin + outputs) of the tensor.
  PackedMatrix matrix_rows(const std::string& name, uint32_t row_begin, uint32_t outputs,
                           uint32_t inputs) const;
  // The transpose of rows [row_begin, row_begin + rows): outputs = columns.
  PackedMatrix transposed_rows(const std::string& name, uint32_t row_begin, uint32_t rows,
                               uint32_t columns) const;
  std::vector<float> vector(const std::string& name, uint32_t n) const;
  MlpWeights mlp(const std::string& prefix, uint32_t hidden, uint32_t ffn) const;

 private:
  // Rows [begin, begin + count) of a matrix that starts at tensor row `row`.
  void pack_rows(PackedMatrix& packed, const std::string& name, uint32_t row, uint32_t begin,
                 uint32_t count) const;
  // The values of rows of a tensor, rounded to `format`.
  void read_values(const std::string& name, uint32_t row_begin, uint32_t rows, WeightFormat format,
                   float* out) const;
  const Checkpoint& checkpoint_;
  const WeightChoice choice_;
  ThreadPool& threads_;
};

}  // namespace model
