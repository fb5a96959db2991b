// PackedMatrix: a weight matrix W [outputs, inputs] as the kernels stream it, in one of four weight
// formats, with the checksums that let a product over it be verified (docs/NUMERICS.md,
// "Integrity").
//
// Layout: panels of 16 outputs. f32, bf16: in a panel, for ascending input k, the 16 weights w[k]
// side by side. int8, int4: in a panel, for ascending groups of 4 inputs, for each of the 16
// outputs its 4 codes (int4: two codes a byte). The last panel and the last group are filled up
// with zeros.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/kernels.h"

namespace model {

enum class WeightFormat : uint8_t { kF32, kBf16, kInt8, kInt4 };
const char* name_of(WeightFormat format);  // "int8"
inline bool is_integer(WeightFormat format) { return format >= WeightFormat::kInt8; }

// Inputs that share one scale of the quantised activations; int4 weight groups divide it.
inline constexpr uint32_t kActivationGroup = 128;

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // `group`: inputs that share a weight scale, int4 only (32, 64 or 128).
  PackedMatrix(uint32_t outputs, uint32_t inputs, WeightFormat format, uint32_t group = 0);

  // f32, bf16: rows [output, output + count) of W, w: [count, inputs], exact in the format.
  void set_rows(uint32_t output, uint32_t count, const float* w);
  // int8: codes in −127…127, one scale a row. int4: codes in −8…7, scales [count, inputs / group].
  void set_codes(uint32_t output, uint32_t count, const int8_t* codes, const float* scales);
  // Computes the checksums from the weights as they stand.  REQUIRED before the first product.
  void seal();

  WeightFormat format() const { return format_; }
  uint32_t outputs() const { return outputs_; }
  uint32_t inputs() const { return inputs_; }
  uint32_t group() const { return group_; }
  uint32_t panels() const { return (outputs_ + kPanel - 1) / kPanel; }
  bool empty() const { return outputs_ == 0; }
  size_t bytes() const { return buffer_.bytes(); }
  const std::byte* data() const { return buffer_.as<std::byte>(); }
  std::byte* mutable_data() { return buffer_.as<std::byte>(); }  // packing and fault injection
  // int8: [outputs rounded up to a panel]. int4: [panels, groups, 16].
  const float* scales() const { return scales_.as<float>(); }
  // Integer: Σ over outputs of the codes of input k, modulo 2³².  [inputs]
  std::span<const uint32_t> code_sums() const { return code_sums_; }
  // Float: Σ over outputs of w[k], and of |w[k]|.  [inputs] each
  std::span<const double> sums() const { return sums_; }
  std::span<const float> magnitudes() const { return magnitudes_; }

 private:
  AlignedBuffer buffer_, scales_;
  WeightFormat format_ = WeightFormat::kF32;
  uint32_t outputs_ = 0, inputs_ = 0, group_ = 0;
  std::vector<uint32_t> code_sums_;
  std::vector<double> sums_;
  std::vector<float> magnitudes_;
};

}  // namespace model
