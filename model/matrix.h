// PackedMatrix: a weight matrix W [outputs, inputs] as the kernels stream it, in one of four weight
// formats, with the checksums that let a product over it be verified (docs/NUMERICS.md,
// "Integrity").
//
// Layout: panels of 16 outputs. f32, bf16: see Panels. int8: in a panel, for ascending groups of 4
// inputs, for each of the 16 outputs its 4 codes. int4: the same for groups of 8 inputs, byte i of
// an output's 4 holding code i + 8 in the low and code 4 + i, + 8, in the high nibble. The last
// panel is filled up with zeros, inputs of integers are filled up to a multiple of 32 (kCodeUnit).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/kernels.h"
#include "model/kernels_check.h"

namespace model {

class ThreadPool;

enum class WeightFormat : uint8_t { kF32, kBf16, kInt8, kInt4 };
const char* name_of(WeightFormat format);  // "int8"
inline bool is_integer(WeightFormat format) { return format >= WeightFormat::kInt8; }

// Inputs that share one scale of the quantised activations; int4 weight groups divide it.
inline constexpr uint32_t kActivationGroup = 128;
// Packed codes come in whole units of this many inputs.
inline constexpr uint32_t kCodeUnit = 32;

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // `group`: inputs that share a weight scale, int4 only (32, 64 or 128).
  PackedMatrix(uint32_t outputs, uint32_t inputs, WeightFormat format, uint32_t group = 0);

  // f32, bf16: rows [output, output + count) of W, w: [count, inputs], exact in the format.
  void set_rows(uint32_t output, uint32_t count, const float* w);
  // The same from a tensor's bytes, stored in the format and aligned anyhow.
  void set_stored_rows(uint32_t output, uint32_t count, const std::byte* w);
  // int8: codes in −127…127, one scale a row. int4: codes in −8…7, scales [count, inputs / group].
  void set_codes(uint32_t output, uint32_t count, const int8_t* codes, const float* scales);
  // Computes the checksums from the weights as they stand, on `threads` where given.  REQUIRED
  // before the first product.
  void seal(ThreadPool* threads = nullptr);

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
  // The same in 16 bits, empty where one does not fit.
  std::span<const int16_t> narrow_code_sums() const { return narrow_code_sums_; }
  // Integer: Σ of the bits of the scales, modulo 2³².
  uint32_t scale_sum() const { return scale_sum_; }
  // Integer: whether codes and scales are still those of the checksums.
  bool codes_intact() const;
  // Float: the checksums of each kCheckPanels panels, see sum_weights().  [check_stride(inputs)]
  uint32_t check_blocks() const { return (panels() + kCheckPanels - 1) / kCheckPanels; }
  const float* sums(uint32_t block) const { return check_row(2 * block); }
  const float* bounds(uint32_t block) const { return check_row(2 * block + 1); }
  // Whether weights and checksums are still those that were sealed.
  bool intact() const;
  // Panels [begin, begin + count), fewer at the end.  REQUIRES: a float format
  Panels panel_range(uint32_t begin, uint32_t count) const;
  // What a message calls it; empty unless set.
  const std::string& name() const { return name_; }
  void set_name(std::string name) { name_ = std::move(name); }

 private:
  size_t weight_bytes() const { return format_ == WeightFormat::kBf16 ? 2 : 4; }
  const float* check_row(uint32_t row) const {
    return checks_.as<float>() + row * check_stride(inputs_);
  }
  uint64_t float_digest() const;
  // of integers, in matrix_int.cc
  void reserve_codes();
  void seal_codes();
  std::vector<uint32_t> sum_codes() const;
  static std::vector<int16_t> narrowed(const std::vector<uint32_t>& sums);
  uint32_t sum_scales() const;

  AlignedBuffer buffer_, scales_;
  WeightFormat format_ = WeightFormat::kF32;
  uint32_t outputs_ = 0, inputs_ = 0, group_ = 0;
  std::vector<uint32_t> code_sums_;
  std::vector<int16_t> narrow_code_sums_;
  uint32_t scale_sum_ = 0;
  AlignedBuffer checks_;  // floats: for each block its sums, then its bounds
  uint64_t digest_ = 0;   // floats: of weights and checksums
  std::string name_;
};

}  // namespace model
