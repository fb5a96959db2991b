// Quantised weights: which matrices become integers, by which rule, and how a checkpoint stores
// them. Converting a checkpoint and quantising at load go through the same functions and give the
// same codes.
//
//   int8   one scale an output row: W[o][i] = code · scale[o], codes −127…127. Stored as published:
//          `X.weight` I8 [out, in], `X.weight_scale` [out] or [out, 1] (f32, or bf16 read exactly).
//   int4   one scale for `group` inputs of a row: W[o][i] = code · scale[o][i / group], codes −8…7.
//          `X.weight` U8 [out, in / 2]: in a byte the low nibble is the even input, a nibble is
//          code + 8; `X.weight_scale` F32 [out, in / group].
//
// All arithmetic is IEEE f32 in a fixed order: the same codes on every machine.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/matrix.h"

namespace model {

inline constexpr uint32_t kInt4Group = 64;  // inputs that share a scale unless told otherwise
inline constexpr bool is_int4_group(uint32_t group) {
  return group == 32 || group == 64 || group == 128;
}

struct QuantisedRows {
  std::vector<int8_t> codes;  // [rows, columns]
  std::vector<float> scales;  // int8: [rows]; int4: [rows, columns / group]
};
// scale = f32(max |w| / 127), code = rint(f32(w / scale)) to even, within ±127; a scale of 0 gives
// codes of 0. A row with a value that is not finite gets codes of 0 and scale NaN, so that products
// with it fail the non-finite guard.  w: [rows, columns]
QuantisedRows quantise_int8(uint32_t rows, uint32_t columns, const float* w);
// With m the group's value of largest magnitude (the first among equals): of the scales m / −d, d
// in a fixed list around 8, the one whose codes fit best (least squares), refined to the best scale
// for those codes; code = rint(w / scale) within −8…7. The scale may be negative. REQUIRES:
// is_int4_group(group), columns % group == 0
QuantisedRows quantise_int4(uint32_t rows, uint32_t columns, uint32_t group, const float* w);

struct MatrixFormat {
  WeightFormat format = WeightFormat::kF32;
  uint32_t group = 0;  // int4 only
  bool operator==(const MatrixFormat&) const = default;
};
// Scales of one row.
inline uint32_t scales_in_row(MatrixFormat f, uint32_t columns) {
  return f.format == WeightFormat::kInt4 ? columns / f.group : 1;
}

// Which tensors a choice of kInt8 or kInt4 turns into integers, and into which; nothing: the tensor
// stays as it is stored. Projections of attention except kv_b_proj, dense MLPs, experts and
// lm_head, in the MTP block too; never eh_proj, router, norms, embeddings, n-gram tables and
// projections, the indexer. kInt4: experts and dense MLPs whose inputs `group` divides are int4,
// the others int8.
std::optional<MatrixFormat> quantised_format(std::string_view name, uint32_t columns,
                                             WeightChoice choice, uint32_t group = kInt4Group);
// How a tensor is stored; fp8, f16 and f32 count as f32.  REQUIRES: the tensor is there
MatrixFormat stored_format(const Checkpoint& checkpoint, const std::string& name);
// What a matrix is kept as in memory under `choice`: stored_format for kAsStored and for tensors
// that the choice does not touch (integers are widened to f32 there when the choice is a float).
// A matrix stored as integers of the wanted kind keeps its own group.
MatrixFormat loaded_format(const Checkpoint& checkpoint, const std::string& name,
                           WeightChoice choice);

// The stored codes and scales of rows [row_begin, row_begin + rows).  codes: [rows, columns],
// scales: [rows, scales_in_row].  kNotFound, kInvalidArgument (not stored as integers, no such
// rows)
base::Status read_codes(const Checkpoint& checkpoint, const std::string& name, uint64_t row_begin,
                        uint64_t rows, int8_t* codes, float* scales);
// Codes and scales in `format`: as stored when they are stored in it, else quantised from the rows'
// values.  format: integer
base::Status load_codes(const Checkpoint& checkpoint, const std::string& name, MatrixFormat format,
                        uint64_t row_begin, uint64_t rows, int8_t* codes, float* scales);
// Values in a row of a stored matrix, whatever its packing.  REQUIRES: one or two dimensions
inline uint64_t columns_of(const Tensor& tensor) {
  return tensor.shape.back() * (tensor.dtype == Dtype::kU8 ? 2 : 1);
}

}  // namespace model
