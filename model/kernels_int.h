// Products of quantised activations with packed integer codes, by instruction set. Sums of products
// of codes are exact and the scales enter in the order of docs/NUMERICS.md, "Integer weights"
// (numerics_int.h is the scalar form): every set gives the same bits, and so does every number of
// rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/matrix.h"

namespace model {

// Rows of quantised activations. Codes past `inputs` are 0 up to a whole group.
struct CodeRows {
  uint32_t rows = 0, inputs = 0;
  size_t stride = 0;        // of codes: bytes from row to row
  int8_t* codes = nullptr;  // [rows] rows
  float* scales = nullptr;  // [rows, groups]
  int32_t* sums = nullptr;  // [rows, groups · 4]: Σ of the codes of a unit of 32 inputs
  uint32_t groups() const { return (inputs + kActivationGroup - 1) / kActivationGroup; }
  uint32_t units() const { return groups() * (kActivationGroup / kCodeUnit); }
  CodeRows from(uint32_t row) const;  // without the first `row` rows
};

// CodeRows with their memory.
class CodeBuffer {
 public:
  const CodeRows& resize(uint32_t rows, uint32_t inputs);  // what they hold is lost
  const CodeRows& rows() const { return rows_; }

 private:
  CodeRows rows_;
  AlignedBuffer codes_, scales_, sums_;
};

// Some panels of a packed matrix.
struct CodePanels {
  const std::byte* data = nullptr;
  const float* scales = nullptr;  // as PackedMatrix::scales(), of these panels
  uint32_t outputs = 0, inputs = 0;
  uint32_t group = 0;  // int4; 0: int8
};
// The whole product of one row, for the arithmetic digest (ProbedOps::project_codes).
void project_codes(std::span<const float> x, const int8_t* codes, const float* scales,
                   uint32_t group, std::span<float> y);
CodePanels panels_of_codes(const PackedMatrix& w, uint32_t panel, uint32_t count);

// What multiply() adds up while it computes, modulo 2³².
struct IntChecks {
  uint32_t* rows = nullptr;    // [rows] Σ over outputs of the exact sums
  uint32_t* scales = nullptr;  // [1] Σ of the bits of the panels' scales
  uint32_t* bits = nullptr;    // [rows] Σ of the bits of y; may be null
  explicit operator bool() const { return rows != nullptr; }
};

struct IntKernels {
  const char* name;  // "AVX-512 VNNI"
  // x: out.rows rows of out.inputs floats, `x_stride` apart
  void (*quantise)(const float* x, size_t x_stride, const CodeRows& out);
  // y[r][j] = dot(x[r], w[j])
  void (*multiply)(const CodePanels& w, const CodeRows& x, float* y, size_t y_stride,
                   const IntChecks& checks);
  // checks[r] = Σ codes[r][k] · (Σ over outputs of w[k]): what multiply() of all panels adds up to
  void (*expect)(const CodeRows& x, const PackedMatrix& w, uint32_t* checks);
  // Σ of their bits modulo 2³²
  uint32_t (*bits)(std::span<const float> values);
  // True if the codes of every row still have the sums they were quantised with.
  bool (*intact)(const CodeRows& x);
};
// The best for this machine, as Highway sees it (hwy::SetSupportedTargetsForTest() limits it).
const IntKernels& int_kernels();
// All that this machine can run, for tests.
std::vector<const IntKernels*> all_int_kernels();

}  // namespace model
