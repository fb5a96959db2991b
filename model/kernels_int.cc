// Compiled once per instruction set (foreach_target); int_kernels() at the end chooses at run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_int.cc"
#include "model/kernel_targets.h"
// after kernel_targets
#include <hwy/foreach_target.h>

// after foreach_target
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "model/kernels_int.h"
#include "model/numerics_int.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

#include "model/kernels_int_simd-inl.h"
// on its Simd
#include "model/kernels_int-inl.h"

// --- activations

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2

// Bits of the largest |x|. As integers magnitudes order like their values, and what is not finite
// is above the rest.
HWY_INLINE float largest_magnitude(const float* x) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  const auto bits = [&](size_t i) HWY_ATTR {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)), magnitude);
  };
  __m256i most = bits(0), other = bits(8);
#pragma GCC unroll 16
  for (size_t i = 16; i < kActivationGroup; i += 16) {
    most = _mm256_max_epi32(most, bits(i));
    other = _mm256_max_epi32(other, bits(i + 8));
  }
  most = _mm256_max_epi32(most, other);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

// The codes of one unit.
HWY_INLINE __m256i codes_of(const float* x, __m256 inverse) {
  const auto eight = [&](size_t i) HWY_ATTR {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
  };
  const __m256i low = _mm256_packs_epi32(eight(0), eight(8));
  const __m256i high = _mm256_packs_epi32(eight(16), eight(24));
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

HWY_INLINE int32_t sum_of(__m256i codes) {
  const __m256i eights =  // sums of 8 codes, each with 128 added
      _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
  const __m128i pairs =
      _mm_add_epi32(_mm256_castsi256_si128(eights), _mm256_extracti128_si256(eights, 1));
  return _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_unpackhi_epi64(pairs, pairs))) -
         static_cast<int32_t>(128 * kCodeUnit);
}

// One whole group.
HWY_INLINE void quantise_group(const float* x, int8_t* codes, float* scale, int32_t* sums) {
  const float most = largest_magnitude(x);
  const bool finite = std::isfinite(most);
  if (!finite || most < kSmallestMagnitude) {
    *scale = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    std::fill_n(codes, kActivationGroup, int8_t{0});
    std::fill_n(sums, kUnitsOfGroup, 0);
    return;
  }
  *scale = most / 127.0f;
  const __m256 inverse = _mm256_set1_ps(127.0f / most);
#pragma GCC unroll 4
  for (size_t u = 0; u < kUnitsOfGroup; ++u) {
    const __m256i unit = codes_of(x + u * kCodeUnit, inverse);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + u * kCodeUnit), unit);
    sums[u] = sum_of(unit);
  }
}

#else

void quantise_group(const float* x, int8_t* codes, float* scale, int32_t* sums) {
  const QuantisedActivations group = quantise_activations({x, kActivationGroup});
  std::copy(group.codes.begin(), group.codes.end(), codes);
  *scale = group.scales[0];
  for (size_t u = 0; u < kUnitsOfGroup; ++u)
    sums[u] = std::accumulate(codes + u * kCodeUnit, codes + (u + 1) * kCodeUnit, 0);
}

#endif

void quantise_rows(const float* x, size_t x_stride, const CodeRows& out) {
  const size_t groups = out.groups();
  for (size_t r = 0; r < out.rows; ++r) {
    const float* row = x + r * x_stride;
    for (size_t g = 0; g < groups; ++g) {
      const size_t at = g * kActivationGroup;
      float whole[kActivationGroup];
      const float* from = row + at;
      if (at + kActivationGroup > out.inputs) {  // the last group, filled up
        std::fill(std::copy(from, row + out.inputs, whole), whole + kActivationGroup, 0.0f);
        from = whole;
      }
      quantise_group(from, out.codes + r * out.stride + at, out.scales + r * groups + g,
                     out.sums + (r * groups + g) * kUnitsOfGroup);
    }
  }
}

// Products of codes and 16 bits that an int32 adds up without overflow.
constexpr size_t kExactRun = 512;

// Most matrices' sums fit 16 bits, which is half the work.
void expect_checks(const CodeRows& x, const PackedMatrix& w, uint32_t* checks) {
  const std::span<const uint32_t> wide = w.code_sums();
  const std::span<const int16_t> narrow = w.narrow_code_sums();
  for (uint32_t r = 0; r < x.rows; ++r) {
    const int8_t* codes = x.codes + r * x.stride;
    uint32_t sum = 0;
    if (narrow.empty()) {
      for (size_t k = 0; k < wide.size(); ++k)
        sum += static_cast<uint32_t>(int32_t{codes[k]}) * wide[k];
    } else {
      int32_t pairs = 0;  // at most 2¹⁵ · 127 · inputs: unsigned only where it is added up
      for (size_t begin = 0; begin < narrow.size(); begin += kExactRun, pairs = 0) {
        const size_t end = std::min(begin + kExactRun, narrow.size());
        for (size_t k = begin; k < end; ++k) pairs += int32_t{codes[k]} * narrow[k];
        sum += static_cast<uint32_t>(pairs);
      }
    }
    checks[r] = sum;
  }
}

uint32_t sum_bits(std::span<const float> values) {
  uint32_t sum = 0;
  for (const float value : values) sum += std::bit_cast<uint32_t>(value);
  return sum;
}

bool rows_intact(const CodeRows& x) {
  bool intact = true;
  for (uint32_t r = 0; r < x.rows; ++r) {
    const int8_t* codes = x.codes + r * x.stride;
    const int32_t* sums = x.sums + size_t{r} * x.units();
    int32_t added = 0;  // at most 127 · inputs
    for (size_t k = 0; k < size_t{x.units()} * kCodeUnit; ++k) added += codes[k];
    uint32_t left = static_cast<uint32_t>(added);  // flipped sums may be anything: modulo 2³²
    for (size_t u = 0; u < x.units(); ++u) left -= static_cast<uint32_t>(sums[u]);
    intact = intact && left == 0;
  }
  return intact;
}

const IntKernels* Plain() {
  static const IntKernels kernels = {HWY_TARGET == HWY_AVX3   ? "AVX-512"
                                     : HWY_TARGET == HWY_AVX2 ? "AVX2"
                                                              : "portable",
                                     quantise_rows,
                                     multiply_codes,
                                     expect_checks,
                                     sum_bits,
                                     rows_intact};
  return &kernels;
}

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

// Highway's next step up asks for more than VNNI (and for less: AVX-VNNI), so VNNI stands here.
#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
namespace model::N_AVX3_VNNI {

struct Simd : N_AVX3::Simd512 {
  static constexpr size_t kRows = 6, kPanels = 3;
  static constexpr int32_t kOffset8 = 128, kOffset4 = 8;
  // Accumulators, each in two chains where one would leave the units waiting for the last product.
  template <size_t kAcc>
  struct Halves {
    static constexpr bool kTwo = kAcc <= 2;
    HWY_INLINE explicit Halves(Acc* to) : acc(to) {
#pragma GCC unroll 4
      for (size_t i = 0; kTwo && i < kAcc; ++i) odd[i] = _mm512_setzero_si512();
    }
    HWY_INLINE ~Halves() {
#pragma GCC unroll 4
      for (size_t i = 0; kTwo && i < kAcc; ++i) acc[i] = _mm512_add_epi32(acc[i], odd[i]);
    }
    HWY_INLINE void add(size_t i, size_t k, __m512i codes, __m512i q) {
      Acc& to = kTwo && k % 2 == 1 ? odd[i] : acc[i];
      to = _mm512_dpbusd_epi32(to, codes, q);
    }
    Acc* acc;
    Acc odd[kTwo ? kAcc : 1];
  };
  // The codes as unsigned: with 128 added.
  template <size_t kR, size_t kP>
  static HWY_INLINE void unit8(const uint8_t* w, size_t panel_bytes, size_t ahead, const int8_t* x,
                               size_t stride, Acc* acc) {
    const __m512i flip = _mm512_set1_epi8(-128);
    Halves<kR * kP> chains(acc);
#pragma GCC unroll 16
    for (size_t k = 0; k < kCodeUnit / 4; ++k) {
      __m512i codes[kP];
#pragma GCC unroll 16
      for (size_t p = 0; p < kP; ++p)
        codes[p] = _mm512_xor_si512(weights<kP>(w + p * panel_bytes + k * 64, ahead), flip);
#pragma GCC unroll 16
      for (size_t r = 0; r < kR; ++r) {
        const __m512i q = four(x + r * stride + k * 4);
#pragma GCC unroll 16
        for (size_t p = 0; p < kP; ++p) chains.add(r * kP + p, k, codes[p], q);
      }
    }
  }
  template <size_t kR, size_t kP>
  static HWY_INLINE void unit4(const uint8_t* w, size_t panel_bytes, size_t ahead, const int8_t* x,
                               size_t stride, Acc* acc) {
    const __m512i nibble = _mm512_set1_epi8(0xF);
    Halves<kR * kP> chains(acc);
#pragma GCC unroll 16
    for (size_t k = 0; k < kCodeUnit / 8; ++k) {
      __m512i low[kP], high[kP];
#pragma GCC unroll 16
      for (size_t p = 0; p < kP; ++p) {
        const __m512i both = weights<kP>(w + p * panel_bytes + k * 64, ahead);
        low[p] = _mm512_and_si512(both, nibble);
        high[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
      }
#pragma GCC unroll 16
      for (size_t r = 0; r < kR; ++r) {
        const int8_t* at = x + r * stride + k * 8;
        const __m512i q = four(at), next = four(at + 4);
#pragma GCC unroll 16
        for (size_t p = 0; p < kP; ++p) {
          chains.add(r * kP + p, 0, low[p], q);
          chains.add(r * kP + p, 1, high[p], next);
        }
      }
    }
  }
};

#include "model/kernels_int-inl.h"

const IntKernels* Vnni() {
  static const IntKernels kernels = {"AVX-512 VNNI",   N_AVX3::quantise_rows,
                                     multiply_codes,   N_AVX3::expect_checks,
                                     N_AVX3::sum_bits, N_AVX3::rows_intact};
  return &kernels;
}

}  // namespace model::N_AVX3_VNNI
HWY_POP_ATTRIBUTES
#endif

#if HWY_ONCE

namespace model {

HWY_EXPORT(Plain);

namespace {

// `target` of Highway's as this file's table of it; VNNI where the machine has it.
const IntKernels* vnni() {
#if HWY_ARCH_X86
  if ((HWY_TARGETS & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512vnni"))
    return N_AVX3_VNNI::Vnni();
#endif
  return nullptr;
}

}  // namespace

const IntKernels& int_kernels() {
  const IntKernels* const plain = HWY_DYNAMIC_DISPATCH(Plain)();
#if HWY_TARGETS & HWY_AVX3
  // Not hwy::SupportedTargets(): it asks the CPU, 20 µs and more in a virtual machine.
  if (plain == N_AVX3::Plain() && vnni() != nullptr) return *vnni();
#endif
  return *plain;
}

std::vector<const IntKernels*> all_int_kernels() {
  std::vector<const IntKernels*> all;
  const int64_t supported = hwy::SupportedTargets();
  (void)supported;
#if HWY_TARGETS & HWY_AVX3
  if ((supported & HWY_AVX3) != 0) {
    if (vnni() != nullptr) all.push_back(vnni());
    all.push_back(N_AVX3::Plain());
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((supported & HWY_AVX2) != 0) all.push_back(N_AVX2::Plain());
#endif
  all.push_back(HWY_STATIC_DISPATCH(Plain)());
  return all;
}

CodeRows CodeRows::from(uint32_t row) const {
  return {rows - row,
          inputs,
          stride,
          codes + row * stride,
          scales + size_t{row} * groups(),
          sums + size_t{row} * units()};
}

const CodeRows& CodeBuffer::resize(uint32_t rows, uint32_t inputs) {
  rows_.rows = rows;
  rows_.inputs = inputs;
  // A line more than whole groups: rows of 2^n codes would share the sets of the cache.
  rows_.stride = size_t{rows_.groups()} * kActivationGroup + 64;
  const auto grow = [](AlignedBuffer& buffer, size_t bytes) {
    if (buffer.bytes() < bytes) buffer = AlignedBuffer(bytes);
  };
  grow(codes_, rows * rows_.stride);
  grow(scales_, size_t{rows} * rows_.groups() * sizeof(float));
  grow(sums_, size_t{rows} * rows_.units() * sizeof(int32_t));
  rows_.codes = codes_.as<int8_t>();
  rows_.scales = scales_.as<float>();
  rows_.sums = sums_.as<int32_t>();
  return rows_;
}

CodePanels panels_of_codes(const PackedMatrix& w, uint32_t panel, uint32_t count) {
  const bool int4 = w.format() == WeightFormat::kInt4;
  const size_t units = (w.inputs() + kCodeUnit - 1) / kCodeUnit;
  const size_t panel_bytes = units * kCodeUnit * kPanel / (int4 ? 2 : 1);
  const size_t panel_scales = int4 ? size_t{w.inputs() / w.group()} * kPanel : kPanel;
  return {w.data() + panel * panel_bytes, w.scales() + panel * panel_scales,
          std::min(w.outputs() - panel * kPanel, count * kPanel), w.inputs(), w.group()};
}

void project_codes(std::span<const float> x, const int8_t* codes, const float* scales,
                   uint32_t group, std::span<float> y) {
  const auto outputs = static_cast<uint32_t>(y.size()), inputs = static_cast<uint32_t>(x.size());
  PackedMatrix w(outputs, inputs, group == 0 ? WeightFormat::kInt8 : WeightFormat::kInt4, group);
  w.set_codes(0, outputs, codes, scales);
  CodeBuffer buffer;
  const CodeRows& row = buffer.resize(1, inputs);
  const IntKernels& kernels = int_kernels();
  kernels.quantise(x.data(), inputs, row);
  kernels.multiply(panels_of_codes(w, 0, w.panels()), row, y.data(), outputs, {});
}

}  // namespace model
#endif  // HWY_ONCE
