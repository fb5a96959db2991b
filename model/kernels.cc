#include "model/kernels.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "model/kernels_attention.h"
#include "model/kernels_int.h"
#include "model/matrix.h"

namespace model {

AlignedBuffer::AlignedBuffer(size_t bytes) : bytes_(bytes) {
  constexpr size_t kHuge = 2u << 20;
  const size_t alignment = bytes >= kHuge ? kHuge : 64;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (rounded == 0) return;
  memory_ = std::aligned_alloc(alignment, rounded);
  CHECK(memory_ != nullptr, "no memory for {} bytes", bytes);
  if (alignment == kHuge) ::madvise(memory_, rounded, MADV_HUGEPAGE);
  std::memset(memory_, 0, rounded);
}
AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
AlignedBuffer::~AlignedBuffer() { std::free(memory_); }

ProbedOps local_ops() {
  ProbedOps ops;
  ops.project = [](std::span<const float> x, std::span<const float> w, std::span<float> y) {
    const auto inputs = static_cast<uint32_t>(x.size());
    const auto outputs = static_cast<uint32_t>(y.size());
    PackedMatrix packed(outputs, inputs, WeightFormat::kF32);
    packed.set_rows(0, outputs, w.data());
    const Panels panels{packed.data(), outputs, inputs, /*bf16=*/false};
    multiply_panels(panels, x.data(), x.size(), 1, y.data(), y.size());
  };
  ops.project_codes = project_codes;
  ops.rms_norm = [](std::span<const float> x, const float* w, float eps, float* y) {
    NormRows shape{.rows = 1,
                   .n = static_cast<uint32_t>(x.size()),
                   .x_stride = 0,
                   .y_stride = 0,
                   .eps = eps,
                   .scale = 1};
    rms_norm_rows(shape, x.data(), w, y);
  };
  ops.exp = exp_in_place;
  ops.silu = [](std::span<float> values) {
    const std::vector<float> ones(values.size(), 1.0f);
    silu_multiply(values, ones, values.data());
  };
  ops.absorb_tile = absorb_tile_by_lanes;
  return ops;
}

}  // namespace model
