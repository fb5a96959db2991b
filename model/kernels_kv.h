// The kernel that reads int8 KV (docs/NUMERICS.md, "KV types"); model/kernels.h says what holds of
// all kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace model {

// Some parts of int8 rows where they lie (kv_layout.h): scale, `latent` codes, and at byte rope_at
// the `rope` values in bf16.
struct CodedRows {
  const std::byte* const* rows = nullptr;
  uint32_t n = 0;
  uint32_t latent = 0, rope = 0;
  uint32_t rope_at = 0;
};
// tile ← the values, as widen_tile() of kernels_attention.h leaves them: code · scale, rounded
// once.
void widen_codes(const CodedRows& rows, float* tile);

}  // namespace model
