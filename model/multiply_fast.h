// NumericsMode::kFast: products of many rows by float weights through OpenBLAS. Not row-invariant:
// a row's bits change with the rows beside it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "model/kernels.h"

namespace model {

inline constexpr uint32_t kFastRows = 16;  // fewer are faster on our own kernels

// Whether this build has OpenBLAS.
bool fast_available();
// multiply_panels() with other roundings.  REQUIRES: fast_available()
void multiply_fast(const Panels& w, const float* x, size_t x_stride, uint32_t rows, float* y,
                   size_t y_stride);

}  // namespace model
