// What kernels_int-inl.h builds on, for AVX-512 without VNNI, AVX2, and any machine. Included by
// kernels_int.cc in the namespace of each instruction set; no include guard.

#if HWY_TARGET == HWY_AVX3

// AVX-512 without VNNI. The weights' signs move to the activations, so that maddubs may take
// magnitudes as unsigned: |w|, |q| ≤ 127 and 2 · 127 · 127 fits 16 bits.
struct Simd512 {
  using Acc = __m512i;
  using Sum = __m512;
  static constexpr size_t kOutputs = 16;
  static HWY_INLINE Acc set(int32_t v) { return _mm512_set1_epi32(v); }
  static HWY_INLINE Acc add(Acc a, Acc b) { return _mm512_add_epi32(a, b); }
  static HWY_INLINE Acc load(const int32_t* at) { return _mm512_load_si512(at); }
  static HWY_INLINE void store(Acc v, int32_t* at) { _mm512_store_si512(at, v); }
  static HWY_INLINE Sum zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE Sum broadcast(float v) { return _mm512_set1_ps(v); }
  static HWY_INLINE Sum convert(Acc v) { return _mm512_cvtepi32_ps(v); }
  static HWY_INLINE Acc bits(Sum v) { return _mm512_castps_si512(v); }
  static HWY_INLINE uint32_t total(Acc v) {
    alignas(64) uint32_t lanes[kOutputs];  // _mm512_reduce_add_epi32 adds signed: may overflow
    _mm512_store_si512(lanes, v);
    uint32_t sum = 0;
    for (const uint32_t lane : lanes) sum += lane;
    return sum;
  }
  static HWY_INLINE Sum load(const float* at) { return _mm512_load_ps(at); }
  static HWY_INLINE void store(Sum v, float* at) { _mm512_store_ps(at, v); }
  static HWY_INLINE Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static HWY_INLINE Sum mul(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
  static HWY_INLINE Sum fma(Sum a, Sum b, Sum c) { return _mm512_fmadd_ps(a, b, c); }
  // 4 codes of one row, for every output.
  static HWY_INLINE __m512i four(const int8_t* codes) {
    int32_t bits;
    __builtin_memcpy(&bits, codes, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  template <size_t kP>
  static HWY_INLINE void prefetch(const void* at) {
    __builtin_prefetch(at, /*rw=*/0, kP == 1 ? 3 : 2);
  }
  template <size_t kP>
  static HWY_INLINE __m512i weights(const uint8_t* at, size_t ahead) {
    prefetch<kP>(at + ahead);
    return _mm512_loadu_si512(at);
  }
};

struct Simd : Simd512 {
  static constexpr size_t kRows = 6, kPanels = 2;
  static constexpr int32_t kOffset8 = 0, kOffset4 = 8;
  static HWY_INLINE Acc add_pairs(Acc acc, __m512i products) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(products, _mm512_set1_epi16(1)));
  }
  template <size_t kR, size_t kP>
  static HWY_INLINE void unit8(const uint8_t* w, size_t panel_bytes, size_t ahead, const int8_t* x,
                               size_t stride, Acc* acc) {
#pragma GCC unroll 16
    for (size_t k = 0; k < kCodeUnit / 4; ++k) {
      __m512i magnitude[kP];
      __mmask64 negative[kP];
#pragma GCC unroll 16
      for (size_t p = 0; p < kP; ++p) {
        const __m512i raw = weights<kP>(w + p * panel_bytes + k * 64, ahead);
        magnitude[p] = _mm512_abs_epi8(raw);
        negative[p] = _mm512_movepi8_mask(raw);
      }
#pragma GCC unroll 16
      for (size_t r = 0; r < kR; ++r) {
        const __m512i q = four(x + r * stride + k * 4);
#pragma GCC unroll 16
        for (size_t p = 0; p < kP; ++p) {
          const __m512i sign = _mm512_mask_sub_epi8(q, negative[p], _mm512_setzero_si512(), q);
          acc[r * kP + p] = add_pairs(acc[r * kP + p], _mm512_maddubs_epi16(magnitude[p], sign));
        }
      }
    }
  }
  // 8 products of a pair stay within 16 bits: 8 · 2 · 15 · 127.
  template <size_t kR, size_t kP>
  static HWY_INLINE void unit4(const uint8_t* w, size_t panel_bytes, size_t ahead, const int8_t* x,
                               size_t stride, Acc* acc) {
    const __m512i nibble = _mm512_set1_epi8(0xF);
    __m512i pairs[kR * kP];
#pragma GCC unroll 16
    for (size_t k = 0; k < kCodeUnit / 8; ++k) {
#pragma GCC unroll 16
      for (size_t p = 0; p < kP; ++p) {
        const __m512i both = weights<kP>(w + p * panel_bytes + k * 64, ahead);
        const __m512i low = _mm512_and_si512(both, nibble);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
#pragma GCC unroll 16
        for (size_t r = 0; r < kR; ++r) {
          const int8_t* q = x + r * stride + k * 8;
          const __m512i sum = _mm512_add_epi16(_mm512_maddubs_epi16(low, four(q)),
                                               _mm512_maddubs_epi16(high, four(q + 4)));
          pairs[r * kP + p] = k == 0 ? sum : _mm512_add_epi16(pairs[r * kP + p], sum);
        }
      }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kR * kP; ++i) acc[i] = add_pairs(acc[i], pairs[i]);
  }
};

#elif HWY_TARGET == HWY_AVX2

struct Simd {
  using Acc = __m256i;
  using Sum = __m256;
  static constexpr size_t kOutputs = 8;
  static constexpr size_t kRows = 4, kPanels = 1;
  static constexpr int32_t kOffset8 = 0, kOffset4 = 8;
  static HWY_INLINE Acc set(int32_t v) { return _mm256_set1_epi32(v); }
  static HWY_INLINE Acc add(Acc a, Acc b) { return _mm256_add_epi32(a, b); }
  static HWY_INLINE Acc load(const int32_t* at) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
  }
  static HWY_INLINE void store(Acc v, int32_t* at) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), v);
  }
  static HWY_INLINE Sum zero() { return _mm256_setzero_ps(); }
  static HWY_INLINE Sum broadcast(float v) { return _mm256_set1_ps(v); }
  static HWY_INLINE Sum convert(Acc v) { return _mm256_cvtepi32_ps(v); }
  static HWY_INLINE Acc bits(Sum v) { return _mm256_castps_si256(v); }
  static HWY_INLINE uint32_t total(Acc v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
  }
  static HWY_INLINE Sum load(const float* at) { return _mm256_load_ps(at); }
  static HWY_INLINE void store(Sum v, float* at) { _mm256_store_ps(at, v); }
  static HWY_INLINE Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
  static HWY_INLINE Sum mul(Sum a, Sum b) { return _mm256_mul_ps(a, b); }
  static HWY_INLINE Sum fma(Sum a, Sum b, Sum c) { return _mm256_fmadd_ps(a, b, c); }
  static HWY_INLINE __m256i four(const int8_t* codes) {
    int32_t bits;
    __builtin_memcpy(&bits, codes, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  template <size_t kP>
  static HWY_INLINE void prefetch(const void* at) {
    __builtin_prefetch(at, /*rw=*/0, kP == 1 ? 3 : 2);
  }
  static HWY_INLINE __m256i weights(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static HWY_INLINE Acc add_pairs(Acc acc, __m256i products) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  }
  // As for AVX-512: the weights' signs move to the activations.
  template <size_t kR, size_t kP>
  static HWY_INLINE void unit8(const uint8_t* w, size_t panel_bytes, size_t ahead, const int8_t* x,
                               size_t stride, Acc* acc) {
    constexpr size_t kV = kP * 2;
#pragma GCC unroll 16
    for (size_t k = 0; k < kCodeUnit / 4; ++k) {
      __m256i raw[kV], magnitude[kV];
#pragma GCC unroll 16
      for (size_t v = 0; v < kV; ++v) {
        const uint8_t* at = w + v / 2 * panel_bytes + k * 64 + v % 2 * 32;
        if (v % 2 == 0) prefetch<kP>(at + ahead);
        raw[v] = weights(at);
        magnitude[v] = _mm256_abs_epi8(raw[v]);
      }
#pragma GCC unroll 16
      for (size_t r = 0; r < kR; ++r) {
        const __m256i q = four(x + r * stride + k * 4);
#pragma GCC unroll 16
        for (size_t v = 0; v < kV; ++v)
          acc[r * kV + v] = add_pairs(
              acc[r * kV + v], _mm256_maddubs_epi16(magnitude[v], _mm256_sign_epi8(q, raw[v])));
      }
    }
  }
  template <size_t kR, size_t kP>
  static HWY_INLINE void unit4(const uint8_t* w, size_t panel_bytes, size_t ahead, const int8_t* x,
                               size_t stride, Acc* acc) {
    constexpr size_t kV = kP * 2;
    const __m256i nibble = _mm256_set1_epi8(0xF);
    __m256i pairs[kR * kV];
#pragma GCC unroll 16
    for (size_t k = 0; k < kCodeUnit / 8; ++k) {
      __m256i low[kV], high[kV];
#pragma GCC unroll 16
      for (size_t v = 0; v < kV; ++v) {
        const uint8_t* at = w + v / 2 * panel_bytes + k * 64 + v % 2 * 32;
        if (v % 2 == 0) prefetch<kP>(at + ahead);
        const __m256i both = weights(at);
        low[v] = _mm256_and_si256(both, nibble);
        high[v] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      }
#pragma GCC unroll 16
      for (size_t r = 0; r < kR; ++r) {
        const int8_t* at = x + r * stride + k * 8;
        const __m256i q = four(at), next = four(at + 4);
#pragma GCC unroll 16
        for (size_t v = 0; v < kV; ++v) {
          const __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(low[v], q),
                                               _mm256_maddubs_epi16(high[v], next));
          pairs[r * kV + v] = k == 0 ? sum : _mm256_add_epi16(pairs[r * kV + v], sum);
        }
      }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kR * kV; ++i) acc[i] = add_pairs(acc[i], pairs[i]);
  }
};

#else

struct Simd {
  static constexpr size_t kOutputs = 16;
  static constexpr size_t kRows = 4, kPanels = 1;
  static constexpr int32_t kOffset8 = 0, kOffset4 = 8;
  struct Acc {
    int32_t v[kOutputs];
  };
  struct Sum {
    float v[kOutputs];
  };
  template <class To, class From, class F>
  static To each(const From& a, F f) {
    To out;
    for (size_t i = 0; i < kOutputs; ++i) out.v[i] = f(a.v[i], i);
    return out;
  }
  static Acc set(int32_t v) {
    return each<Acc>(Acc{}, [&](int32_t, size_t) { return v; });
  }
  // Modulo 2³², like the vectors.
  static Acc add(const Acc& a, const Acc& b) {
    return each<Acc>(a, [&](int32_t v, size_t i) {
      return static_cast<int32_t>(static_cast<uint32_t>(v) + static_cast<uint32_t>(b.v[i]));
    });
  }
  static Acc load(const int32_t* at) {
    return each<Acc>(Acc{}, [&](int32_t, size_t i) { return at[i]; });
  }
  static void store(const Acc& a, int32_t* at) { std::copy_n(a.v, kOutputs, at); }
  static Sum zero() { return Sum{}; }
  static Sum broadcast(float v) {
    return each<Sum>(Sum{}, [&](float, size_t) { return v; });
  }
  static Sum convert(const Acc& a) {
    return each<Sum>(a, [](int32_t v, size_t) { return static_cast<float>(v); });
  }
  static uint32_t total(const Acc& a) {
    uint32_t sum = 0;
    for (const int32_t v : a.v) sum += static_cast<uint32_t>(v);
    return sum;
  }
  static Acc bits(const Sum& a) {
    return each<Acc>(a, [](float v, size_t) { return std::bit_cast<int32_t>(v); });
  }
  static Sum load(const float* at) {
    return each<Sum>(Sum{}, [&](float, size_t i) { return at[i]; });
  }
  static void store(const Sum& a, float* at) { std::copy_n(a.v, kOutputs, at); }
  static Sum add(const Sum& a, const Sum& b) {
    return each<Sum>(a, [&](float v, size_t i) { return v + b.v[i]; });
  }
  static Sum mul(const Sum& a, const Sum& b) {
    return each<Sum>(a, [&](float v, size_t i) { return v * b.v[i]; });
  }
  static Sum fma(const Sum& a, const Sum& b, const Sum& c) {
    return each<Sum>(a, [&](float v, size_t i) { return std::fma(v, b.v[i], c.v[i]); });
  }
  template <size_t kP>
  static void prefetch(const void*) {}
  template <size_t kR, size_t kP>
  static void unit8(const uint8_t* w, size_t panel_bytes, size_t, const int8_t* x, size_t stride,
                    Acc* acc) {
    const auto* codes = reinterpret_cast<const int8_t*>(w);
    for (size_t p = 0; p < kP; ++p)
      for (size_t r = 0; r < kR; ++r)
        for (size_t k = 0; k < kCodeUnit; ++k)
          for (size_t o = 0; o < kPanel; ++o)
            acc[r * kP + p].v[o] +=
                x[r * stride + k] * codes[p * panel_bytes + k / 4 * 64 + o * 4 + k % 4];
  }
  template <size_t kR, size_t kP>
  static void unit4(const uint8_t* w, size_t panel_bytes, size_t, const int8_t* x, size_t stride,
                    Acc* acc) {
    for (size_t p = 0; p < kP; ++p)
      for (size_t r = 0; r < kR; ++r)
        for (size_t k = 0; k < kCodeUnit; ++k)
          for (size_t o = 0; o < kPanel; ++o) {
            const int both = w[p * panel_bytes + k / 8 * 64 + o * 4 + k % 4];
            acc[r * kP + p].v[o] += x[r * stride + k] * (k % 8 < 4 ? both & 0xF : both >> 4);
          }
  }
};

#endif
