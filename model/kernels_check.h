// Row checksums of float products (Huang and Abraham's): the sum of a row's outputs must be the
// product of the row with the sums of the weights, within what rounding can do. docs/NUMERICS.md,
// "Integrity", derives the bound.
#pragma once
#include <cstddef>
#include <cstdint>

#include "model/kernels.h"

namespace model {

// Panels whose outputs one checksum covers: the fewer, the finer the check and the dearer.
inline constexpr uint32_t kCheckPanels = 32;
// Products that a chain of f32 adds, of either sum, before it goes on in f64.
inline constexpr uint32_t kCheckChain = 32;
// Floats of one row of checksums: inputs, padded with zeros.
inline constexpr size_t check_stride(uint32_t inputs) {
  return (inputs + kPanel - 1) / kPanel * kPanel;
}
// What underflow can add to a row, many times over: a result below the normal range is off by at
// most 2⁻¹⁵⁰, and a checksum covers fewer than 2⁴⁰ of them.
inline constexpr double kUnderflow = 1e-30;

// Roundings that the product of input k with a weight goes through, from the product to the
// difference of the two sums, at most.
uint32_t roundings(uint32_t k, uint32_t inputs, uint32_t panels);

// Of at most kCheckPanels panels: sums[k] = Σ_j w[j][k], bounds[k] ≥ u · roundings · Σ_j |w[j][k]|
// with u = 2⁻²⁴.  sums, bounds: [check_stride(inputs)]
void sum_weights(const Panels& w, float* sums, float* bounds);

// expected[r] = Σ_k x[r][k] · sums[k], tolerance[r] = Σ_k |x[r][k]| · bounds[k] + kUnderflow, of
// rows r · check_step apart.
struct RowCheck {
  double expected, tolerance;
};
void expect_rows(const float* sums, const float* bounds, uint32_t inputs, const float* x,
                 size_t x_stride, uint32_t rows, RowCheck* checks, size_t check_step);

// sums[r · sum_step] = Σ_j y[r][j], of at most kCheckPanels panels of outputs.
void sum_rows(const float* y, size_t y_stride, uint32_t rows, uint32_t outputs, double* sums,
              size_t sum_step);

}  // namespace model
