// Random matrices and rows for tests of the kernels.
#pragma once
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "model/matrix.h"
#include "model/numerics.h"

namespace model::testing {

inline std::vector<float> random_values(size_t n, uint64_t seed, bool bf16 = false) {
  base::Rng rng(seed);
  std::vector<float> out(n);
  for (float& v : out) {
    v = static_cast<float>(rng.uniform()) - 0.5f;
    if (bf16) v = from_bf16(to_bf16(v));
  }
  return out;
}

inline PackedMatrix pack(uint32_t outputs, uint32_t inputs, WeightFormat format,
                         const std::vector<float>& w) {
  PackedMatrix packed(outputs, inputs, format);
  packed.set_rows(0, outputs, w.data());
  packed.set_name("a test's matrix");
  packed.seal();
  return packed;
}

// The row of W that output j multiplies with.
inline std::span<const float> row_of(const std::vector<float>& w, uint32_t inputs, size_t j) {
  return std::span(w).subspan(j * inputs, inputs);
}

}  // namespace model::testing
