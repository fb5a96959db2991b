// The structure of an integer product over the vectors of one instruction set: included in the
// namespace of each by kernels_int.cc after it has defined `Simd`:
//   Acc, Sum            vectors of kOutputs int32 and f32
//   kOutputs            of a vector: 16 or 8
//   total               Σ of an Acc modulo 2³²
//   kRows, kPanels      of the largest block whose accumulators fit the registers
//   kOffset8, kOffset4  what the unsigned form adds to a code
//   prefetch            what is read soon into the nearest cache (blocks of one panel), what the
//                       next block reads into the second
//   unit8, unit4        acc += codes · activations over one unit of 32 inputs
// No include guard: once per instruction set.

constexpr size_t kParts = kPanel / Simd::kOutputs;  // vectors of a panel
constexpr size_t kUnitsOfGroup = kActivationGroup / kCodeUnit;
constexpr size_t kLinearAhead = 4096;  // bytes
constexpr size_t kLinearRows = std::min<size_t>(2, Simd::kRows);
// Of the blocks that more than kLinearRows rows are dealt over.
constexpr size_t kLeastRows = (Simd::kRows + 1) / 2;
constexpr size_t kMostLevels = 12;  // of the tree of segments

// What a block of rows reads besides its weights.
struct BlockRows {
  const int8_t* codes;
  size_t stride;
  const float* scales;
  const int32_t* sums;
  size_t groups;  // scales of a row; it has 4 · groups sums
  size_t units;   // that the weights have
  size_t ahead;   // bytes from a weight that is read to one that is prefetched
};

template <size_t kR, size_t kP, bool kInt4>
struct IntBlock {
  static constexpr size_t kV = kP * kParts;
  static constexpr size_t kAcc = kR * kV;
  static constexpr size_t kUnitBytes = kCodeUnit * kPanel / (kInt4 ? 2 : 1);
  using Acc = typename Simd::Acc;
  using Sum = typename Simd::Sum;

  // Starts the accumulators so that what the unsigned codes add too much is taken back.
  static HWY_INLINE void start(const BlockRows& x, size_t unit, size_t count, Acc* acc) {
    constexpr int32_t kOffset = kInt4 ? Simd::kOffset4 : Simd::kOffset8;
#pragma GCC unroll 16
    for (size_t r = 0; r < kR; ++r) {
      int32_t sum = 0;
      if (kOffset != 0)
        for (size_t u = 0; u < count; ++u) sum += x.sums[r * x.groups * kUnitsOfGroup + unit + u];
#pragma GCC unroll 16
      for (size_t v = 0; v < kV; ++v) acc[r * kV + v] = Simd::set(-kOffset * sum);
    }
  }

  static HWY_INLINE void add_checks(const Acc* acc, Acc* checks) {
#pragma GCC unroll 16
    for (size_t r = 0; r < kR; ++r) {
      Acc sum = acc[r * kV];
#pragma GCC unroll 16
      for (size_t v = 1; v < kV; ++v) sum = Simd::add(sum, acc[r * kV + v]);
      checks[r] = Simd::add(checks[r], sum);
    }
  }

  // Groups [begin, end) into sums, from 0.
  static HWY_INLINE void segment8(const uint8_t* w, size_t panel_bytes, const BlockRows& x,
                                  size_t begin, size_t end, float* sums, bool verify, Acc* checks) {
    for (size_t g = begin; g < end; ++g) {
      Acc acc[kAcc];
      const size_t unit = g * kUnitsOfGroup;
      const size_t count = std::min(kUnitsOfGroup, x.units - unit);
      start(x, unit, count, acc);
      for (size_t u = unit; u < unit + count; ++u)
        Simd::template unit8<kR, kP>(w + u * kUnitBytes, panel_bytes, x.ahead,
                                     x.codes + u * kCodeUnit, x.stride, acc);
      if (verify) add_checks(acc, checks);
#pragma GCC unroll 16
      for (size_t r = 0; r < kR; ++r) {
        const Sum scale = Simd::broadcast(x.scales[r * x.groups + g]);
#pragma GCC unroll 16
        for (size_t v = 0; v < kV; ++v) {
          float* at = sums + (r * kV + v) * Simd::kOutputs;
          const Sum before = g == begin ? Simd::zero() : Simd::load(at);
          Simd::store(Simd::fma(Simd::convert(acc[r * kV + v]), scale, before), at);
        }
      }
    }
  }

  // The same for weights with a scale for `group` inputs.
  static HWY_INLINE void segment4(const uint8_t* w, size_t panel_bytes, const float* w_scales,
                                  size_t group, const BlockRows& x, size_t begin, size_t end,
                                  float* sums, bool verify, Acc* checks, Acc& scale_bits) {
    const size_t units = group / kCodeUnit;
    const size_t panel_groups = x.units / units;
    for (size_t unit = begin * kUnitsOfGroup; unit < std::min(end * kUnitsOfGroup, x.units);
         unit += units) {
      Acc acc[kAcc];
      start(x, unit, units, acc);
      for (size_t u = unit; u < unit + units; ++u)
        Simd::template unit4<kR, kP>(w + u * kUnitBytes, panel_bytes, x.ahead,
                                     x.codes + u * kCodeUnit, x.stride, acc);
      if (verify) add_checks(acc, checks);
      const size_t scales_ahead = x.ahead / group * 2;  // as many inputs ahead, in floats
      const bool first = unit == begin * kUnitsOfGroup;
#pragma GCC unroll 16
      for (size_t v = 0; v < kV; ++v) {
        const Sum w_scale =
            Simd::load(w_scales + (v / kParts * panel_groups + unit / units) * kPanel +
                       v % kParts * Simd::kOutputs);
        Simd::template prefetch<kP>(w_scales + (v / kParts * panel_groups + unit / units) * kPanel +
                                    scales_ahead);
        if (verify) scale_bits = Simd::add(scale_bits, Simd::bits(w_scale));
#pragma GCC unroll 16
        for (size_t r = 0; r < kR; ++r) {
          const Sum scale = Simd::broadcast(x.scales[r * x.groups + unit / kUnitsOfGroup]);
          float* at = sums + (r * kV + v) * Simd::kOutputs;
          const Sum before = first ? Simd::zero() : Simd::load(at);
          const Sum term = Simd::mul(Simd::convert(acc[r * kV + v]), w_scale);
          Simd::store(Simd::fma(term, scale, before), at);
        }
      }
    }
  }

  // Segments merge like carries of a binary counter: the pairwise tree of NUMERICS.md.
  static void run(const uint8_t* w, size_t panel_bytes, const float* w_scales, size_t group,
                  const BlockRows& x, float* y, size_t y_stride, const uint32_t* outputs,
                  const IntChecks& checks) {
    constexpr size_t kValues = kAcc * Simd::kOutputs;
    HWY_ALIGN float levels[kMostLevels][kValues];
    HWY_ALIGN float sums[kValues];
    const bool verify(checks);
    Acc row_checks[kR];
#pragma GCC unroll 16
    for (size_t r = 0; r < kR; ++r) row_checks[r] = Simd::set(0);
    Acc scale_bits = Simd::set(0);
    size_t count = 0;
    for (size_t g = 0; g < x.groups; g += kGroupsOfSegment, ++count) {
      const size_t end = std::min<size_t>(g + kGroupsOfSegment, x.groups);
      if constexpr (kInt4)
        segment4(w, panel_bytes, w_scales, group, x, g, end, sums, verify, row_checks, scale_bits);
      else
        segment8(w, panel_bytes, x, g, end, sums, verify, row_checks);
      if (x.groups <= kGroupsOfSegment) break;
      size_t level = 0;
      for (size_t carry = count; (carry & 1) != 0; carry >>= 1, ++level) add(levels[level], sums);
      std::copy_n(sums, kValues, levels[level]);
    }
    if (x.groups > kGroupsOfSegment) fold(levels, count, sums);
    write(sums, w_scales, y, y_stride, outputs, checks.bits);
    if (!checks) return;
    if constexpr (!kInt4)
      for (size_t i = 0; i < kP * kPanel; i += Simd::kOutputs)
        scale_bits = Simd::add(scale_bits, Simd::bits(Simd::load(w_scales + i)));
#pragma GCC unroll 16
    for (size_t r = 0; r < kR; ++r) checks.rows[r] += Simd::total(row_checks[r]);
    *checks.scales += Simd::total(scale_bits);
  }

 private:
  // sums = level + sums
  static HWY_INLINE void add(const float* level, float* sums) {
    for (size_t i = 0; i < kAcc * Simd::kOutputs; i += Simd::kOutputs)
      Simd::store(Simd::add(Simd::load(level + i), Simd::load(sums + i)), sums + i);
  }
  // What is left merges from the youngest level up.
  static void fold(float (*levels)[kAcc * Simd::kOutputs], size_t count, float* sums) {
    bool first = true;
    for (size_t level = 0; (count >> level) != 0; ++level) {
      if (((count >> level) & 1) == 0) continue;
      if (first)
        std::copy_n(levels[level], kAcc * Simd::kOutputs, sums);
      else
        add(levels[level], sums);
      first = false;
    }
  }
  static HWY_INLINE void write(float* sums, const float* w_scales, float* y, size_t y_stride,
                               const uint32_t* outputs, uint32_t* bits) {
    for (size_t r = 0; r < kR; ++r) {
      Acc row_bits = Simd::set(0);
      for (size_t p = 0; p < kP; ++p) {
        float* from = sums + (r * kP + p) * kPanel;
        if constexpr (!kInt4) {
          for (size_t i = 0; i < kPanel; i += Simd::kOutputs)
            Simd::store(Simd::mul(Simd::load(from + i), Simd::load(w_scales + p * kPanel + i)),
                        from + i);
        }
        std::fill(from + outputs[p], from + kPanel, 0.0f);
        for (size_t i = 0; i < kPanel; i += Simd::kOutputs)
          row_bits = Simd::add(row_bits, Simd::bits(Simd::load(from + i)));
        std::copy_n(from, outputs[p], y + r * y_stride + p * kPanel);
      }
      if (bits != nullptr) bits[r] += Simd::total(row_bits);
    }
  }
};

// kR rows against panels [begin, end), kP at a time.
template <size_t kR, size_t kP, bool kInt4>
void multiply_rows(const CodePanels& w, size_t begin, size_t end, const CodeRows& x, float* y,
                   size_t y_stride, const IntChecks& checks) {
  const size_t units = (w.inputs + kCodeUnit - 1) / kCodeUnit;
  const size_t panel_bytes = units * IntBlock<kR, 1, kInt4>::kUnitBytes;
  const size_t panel_scales = kInt4 ? w.inputs / w.group * kPanel : kPanel;
  const BlockRows rows{x.codes,
                       x.stride,
                       x.scales,
                       x.sums,
                       x.groups(),
                       units,
                       kP == 1 ? kLinearAhead : kP * panel_bytes};
  for (size_t p = begin; p < end;) {
    const size_t count = p + kP <= end ? kP : 1;
    uint32_t outputs[kP];
    for (size_t i = 0; i < count; ++i)
      outputs[i] = static_cast<uint32_t>(std::min<size_t>(kPanel, w.outputs - (p + i) * kPanel));
    const auto* at = reinterpret_cast<const uint8_t*>(w.data) + p * panel_bytes;
    const float* scales = w.scales + p * panel_scales;
    const auto run = count == kP ? IntBlock<kR, kP, kInt4>::run : IntBlock<kR, 1, kInt4>::run;
    run(at, panel_bytes, scales, w.group, rows, y + p * kPanel, y_stride, outputs, checks);
    p += count;
  }
}

using MultiplyRows = void (*)(const CodePanels&, size_t, size_t, const CodeRows&, float*, size_t,
                              const IntChecks&);

// Blocks of few rows are bound by memory: they read one panel at a time, which is one stream, and
// prefetch a little ahead.
template <bool kInt4, size_t... kR>
MultiplyRows linear_block(size_t rows, std::index_sequence<kR...>) {
  constexpr MultiplyRows kBlocks[] = {multiply_rows<kR + 1, 1, kInt4>...};
  return kBlocks[rows - 1];
}
// Larger ones are bound by arithmetic, and prefetch the panels after theirs.
template <bool kInt4, size_t... kR>
MultiplyRows wide_block(size_t rows, std::index_sequence<kR...>) {
  constexpr MultiplyRows kBlocks[] = {multiply_rows<kR + kLeastRows, Simd::kPanels, kInt4>...};
  return kBlocks[rows - kLeastRows];
}

// More rows than a block takes are dealt evenly over blocks, a few panels at a time against all of
// them, so that a weight comes from memory once however many rows there are.
template <bool kInt4>
void multiply_all(const CodePanels& w, const CodeRows& x, float* y, size_t y_stride,
                  const IntChecks& checks) {
  constexpr std::make_index_sequence<kLinearRows> kLinear;
  constexpr std::make_index_sequence<Simd::kRows - kLeastRows + 1> kWide;
  const size_t panels = (w.outputs + kPanel - 1) / kPanel;
  if (x.rows == 0) return;
  if (x.rows <= kLinearRows)
    return linear_block<kInt4>(x.rows, kLinear)(w, 0, panels, x, y, y_stride, checks);
  const size_t blocks = (x.rows + Simd::kRows - 1) / Simd::kRows;
  for (size_t p = 0; p < panels; p += Simd::kPanels) {
    const size_t end = std::min(p + Simd::kPanels, panels);
    uint32_t row = 0, ignored = 0;  // the first rows check the scales
    for (size_t b = 0; b < blocks; ++b) {
      const size_t count = x.rows / blocks + (b < x.rows % blocks ? 1 : 0);
      const IntChecks own{checks ? checks.rows + row : nullptr, b == 0 ? checks.scales : &ignored,
                          checks.bits != nullptr ? checks.bits + row : nullptr};
      wide_block<kInt4>(count, kWide)(w, p, end, x.from(row), y + row * y_stride, y_stride, own);
      row += static_cast<uint32_t>(count);
    }
  }
}

void multiply_codes(const CodePanels& w, const CodeRows& x, float* y, size_t y_stride,
                    const IntChecks& checks) {
  if (w.group != 0)
    multiply_all<true>(w, x, y, y_stride, checks);
  else
    multiply_all<false>(w, x, y, y_stride, checks);
}
