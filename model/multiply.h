// Products of rows with packed weights: the one way in which the local engine multiplies. Splits
// the outputs over the compute threads, quantises activations where the weights are integers,
// verifies every row against the weights' checksums, recomputes what does not verify.
#pragma once
#include <span>

#include "model/engine.h"
#include "model/integrity.h"
#include "model/matrix.h"
#include "model/thread_pool.h"

namespace model {

// What every product needs; one an engine.
struct Compute {
  ThreadPool& threads;
  Integrity& integrity;
  NumericsMode mode = NumericsMode::kInvariant;
};

// y[r][j] = dot(x[r], w[j]).  x: rows of `x_stride` floats; y: rows of `y_stride`
struct Product {
  const PackedMatrix* w = nullptr;
  const float* x = nullptr;
  size_t x_stride = 0;
  uint32_t rows = 0;
  float* y = nullptr;
  size_t y_stride = 0;
};
// Independent products in one region: their panels are dealt over the threads together, so that a
// few narrow matrices (q_a, kv_a and the indexer's) keep all threads busy.
void multiply(const Compute& compute, std::span<const Product> products);
void multiply(const Compute& compute, const Product& product);

// y[r] = silu(gate x[r]) · (up x[r]), for several groups of rows with their own weights (experts),
// as one region. gate and up have one shape and format.
struct GatedProduct {
  const PackedMatrix* gate = nullptr;
  const PackedMatrix* up = nullptr;
  const float* x = nullptr;  // [rows, inputs]
  uint32_t rows = 0;
  float* y = nullptr;  // [rows, outputs]
};
void multiply_gated(const Compute& compute, std::span<const GatedProduct> products);

}  // namespace model
