// Compiled once per instruction set (foreach_target); the exported functions at the end choose at
// run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_kv.cc"
#include "model/kernel_targets.h"
// after the targets
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "model/kernels-inl.h"
#include "model/kernels_attention.h"
#include "model/kernels_kv.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

// to[i] = code[i] · scale
HWY_INLINE void widen_values(const int8_t* codes, float scale, size_t n, float* to) {
  const D d;
  const hn::Rebind<int32_t, D> whole;
  const hn::Rebind<int8_t, D> narrow;
  const V by = hn::Set(d, scale);
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const auto code = hn::PromoteTo(whole, hn::LoadU(narrow, codes + i));
    hn::StoreU(hn::Mul(hn::ConvertTo(d, code), by), d, to + i);
  }
  for (; i < n; ++i) to[i] = static_cast<float>(codes[i]) * scale;
}
HWY_INLINE void widen_values(const uint16_t* from, size_t n, float* to) {
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) hn::StoreU(load_weights(from + i), D(), to + i);
  for (; i < n; ++i) to[i] = from_bf16(from[i]);
}

// f(from, n, to) for the stretches of values [begin, end) of a row that stand together in the tile.
template <class F>
HWY_INLINE void for_stretches(size_t begin, size_t end, float* row, F f) {
  for (size_t at = begin; at < end;) {
    const size_t segment = at / kDotSegment;
    const size_t n = std::min(end, (segment + 1) * kDotSegment) - at;
    f(at - begin, n, row + segment * kTileRows * kTileStride + at % kDotSegment);
    at += n;
  }
}

void WidenCodes(const CodedRows& rows, float* tile) {
  for (uint32_t s = 0; s < rows.n; ++s) {
    const std::byte* part = rows.rows[s];
    float scale;
    std::memcpy(&scale, part, sizeof scale);
    const auto* codes = reinterpret_cast<const int8_t*>(part + sizeof scale);
    const auto* rope = reinterpret_cast<const uint16_t*>(part + rows.rope_at);
    float* row = tile + s * kTileStride;
    for_stretches(0, rows.latent, row, [=](size_t from, size_t n, float* to) HWY_ATTR {
      widen_values(codes + from, scale, n, to);
    });
    for_stretches(rows.latent, size_t{rows.latent} + rows.rope, row,
                  [=](size_t from, size_t n, float* to)
                      HWY_ATTR { widen_values(rope + from, n, to); });
  }
}

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace model {

HWY_EXPORT(WidenCodes);

void widen_codes(const CodedRows& rows, float* tile) {
  HWY_DYNAMIC_DISPATCH(WidenCodes)(rows, tile);
}

}  // namespace model
#endif  // HWY_ONCE
