// The indexer's kernels: scores of keys, choice of the highest. Compiled once per instruction set
// (foreach_target); the exported function at the end chooses at run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels_index.cc"
#include "model/kernel_targets.h"
// after the targets
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "model/kernels-inl.h"
#include "model/kernels_attention.h"

HWY_BEFORE_NAMESPACE();
namespace model::HWY_NAMESPACE {

using Du = hn::ScalableTag<uint32_t>;
using Vu = hn::Vec<Du>;

constexpr bool kManyRegisters = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM;

// --- index scores

// Values [begin, end) of kHeads queries against kColumns vectors of positions.
template <size_t kHeads, size_t kColumns, class K>
HWY_INLINE void match_segment(const IndexQuery& query, size_t head, const K* panel, size_t begin,
                              size_t end, V* sum) {
  const D d;
  V acc[kHeads * kColumns];
  for (V& a : acc) a = hn::Zero(d);
  for (size_t k = begin; k < end; ++k) {
    V key[kColumns];
    for (size_t c = 0; c < kColumns; ++c) key[c] = load_weights(panel + k * kKeyPanel + c * kWidth);
    for (size_t h = 0; h < kHeads; ++h) {
      const V value = hn::Set(d, query.q[(head + h) * query.dim + k]);
      for (size_t c = 0; c < kColumns; ++c)
        acc[h * kColumns + c] = fused(value, key[c], acc[h * kColumns + c]);
    }
  }
  for (size_t i = 0; i < kHeads * kColumns; ++i) sum[i] = acc[i];
}

// kHeads heads over kColumns vectors of positions, weighed into acc.
template <size_t kHeads, size_t kColumns, class K>
HWY_INLINE void score_heads(const IndexQuery& query, size_t head, const K* panel, V* acc) {
  const D d;
  V total[kHeads * kColumns];
  match_segment<kHeads, kColumns>(query, head, panel, 0, std::min<size_t>(kDotSegment, query.dim),
                                  total);
  if (query.dim > kDotSegment) {
    V sum[kHeads * kColumns];
    match_segment<kHeads, kColumns>(query, head, panel, kDotSegment, query.dim, sum);
    for (size_t i = 0; i < kHeads * kColumns; ++i) total[i] = hn::Add(total[i], sum[i]);
  }
  for (size_t h = 0; h < kHeads; ++h) {
    const V weight = hn::Set(d, query.w[head + h]);
    for (size_t c = 0; c < kColumns; ++c) {
      const V dot = total[h * kColumns + c];
      // max(dot, 0) that lets NaN through
      const V kept = hn::IfThenElse(hn::Lt(dot, hn::Zero(d)), hn::Zero(d), dot);
      acc[c] = fused(weight, kept, acc[c]);
    }
  }
}

template <class K>
void score_panel(const IndexQuery& query, const K* panel, float* out) {
  constexpr size_t kColumns = kManyRegisters ? 4 : 2;
  constexpr size_t kHeads = 4;
  const D d;
  for (size_t at = 0; at < kKeyPanel; at += kColumns * kWidth) {
    V acc[kColumns];
    for (V& a : acc) a = hn::Zero(d);
    size_t head = 0;
    for (; head + kHeads <= query.heads; head += kHeads)
      score_heads<kHeads, kColumns>(query, head, panel + at, acc);
    for (; head < query.heads; ++head) score_heads<1, kColumns>(query, head, panel + at, acc);
    for (size_t c = 0; c < kColumns; ++c) hn::StoreU(acc[c], d, out + at + c * kWidth);
  }
}

void ScoreKeysF32(const IndexQuery& query, const float* panel, float* out) {
  score_panel(query, panel, out);
}
void ScoreKeysBf16(const IndexQuery& query, const uint16_t* panel, float* out) {
  score_panel(query, panel, out);
}

// --- the highest

#if HWY_TARGET == HWY_AVX2
// Lanes in front, by mask. hn::Compress has the same table, but g++ 12 copies it to the stack at
// every use.
constexpr auto kPackedLanes = [] {
  std::array<std::array<int32_t, 8>, 256> table{};
  for (size_t mask = 0; mask < 256; ++mask) {
    size_t n = 0;
    for (int32_t lane = 0; lane < 8; ++lane)
      if ((mask >> lane & 1) != 0) table[mask][n++] = lane;
  }
  return table;
}();
#endif

// The lanes of the mask in front; what follows them is left open.
template <class M>
HWY_INLINE Vu packed(Vu v, M mask) {
#if HWY_TARGET == HWY_AVX2
  const Du d;
  uint8_t bits[8] = {};
  hn::StoreMaskBits(d, mask, bits);
  return hn::TableLookupLanes(v, hn::SetTableIndices(d, kPackedLanes[bits[0]].data()));
#else
  return hn::Compress(v, mask);
#endif
}

// Integers that order as the floats do, −0 and +0 alike, NaN above all; the last vector is filled
// up with zeros, which are below every key but are never counted.
void order_keys(std::span<const float> values, uint32_t* keys) {
  const hn::RebindToFloat<Du> df;
  const Du d;
  const size_t width = hn::Lanes(d);
  const auto key_of = [&](hn::Vec<decltype(df)> x) HWY_ATTR {
    const Vu bits = hn::BitCast(d, hn::Add(x, hn::Zero(df)));
    const Vu sign = hn::Set(d, 0x80000000u);
    const auto negative = hn::Ne(hn::And(bits, sign), hn::Zero(d));
    const Vu key = hn::IfThenElse(negative, hn::Not(bits), hn::Or(bits, sign));
    return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(x)), hn::Set(d, 0xFFFFFFFFu), key);
  };
  size_t i = 0;
  for (; i + width <= values.size(); i += width)
    hn::StoreU(key_of(hn::LoadU(df, values.data() + i)), d, keys + i);
  if (i == values.size()) return;
  std::array<float, HWY_MAX_BYTES / sizeof(float)> last{};
  std::copy(values.begin() + static_cast<ptrdiff_t>(i), values.end(), last.begin());
  hn::StoreU(key_of(hn::LoadU(df, last.data())), d, keys + i);
}

// Moves the keys in [low, high] of the first n to `to`; adds how many are above. Returns how many
// moved. keys may be read, to written, a vector past the end.
size_t take_between(const uint32_t* keys, size_t n, uint32_t low, uint32_t high, uint32_t* to,
                    size_t& above) {
  const Du d;
  const size_t width = hn::Lanes(d);
  const Vu least = hn::Set(d, low), most = hn::Set(d, high);
  size_t taken = 0, over_all = 0, i = 0;
  const auto take = [&](auto exists) HWY_ATTR {
    const Vu key = hn::LoadU(d, keys + i);
    const auto over = hn::And(exists, hn::Gt(key, most));
    const auto inside = hn::AndNot(hn::Gt(least, key), hn::AndNot(over, exists));
    over_all += hn::CountTrue(d, over);
    hn::StoreU(packed(key, inside), d, to + taken);
    taken += hn::CountTrue(d, inside);
  };
  const auto all = hn::FirstN(d, width);
  for (; i + width <= n; i += width) take(all);
  if (i < n) take(hn::FirstN(d, n - i));
  above += over_all;
  return taken;
}

// Indices of the keys above `limit`, and of those equal to it before index `equal_end`.
size_t take_indices(const uint32_t* keys, size_t n, uint32_t limit, size_t equal_end,
                    uint32_t* to) {
  const Du d;
  const size_t width = hn::Lanes(d);
  const Vu least = hn::Set(d, limit), end = hn::Set(d, static_cast<uint32_t>(equal_end));
  const Vu steps = hn::Iota(d, 0);
  size_t taken = 0, i = 0;
  const auto take = [&](auto exists) HWY_ATTR {
    const Vu key = hn::LoadU(d, keys + i),
             index = hn::Add(steps, hn::Set(d, static_cast<uint32_t>(i)));
    const auto equal = hn::And(hn::Eq(key, least), hn::Gt(end, index));
    const auto wanted = hn::And(exists, hn::Or(hn::Gt(key, least), equal));
    if (hn::AllFalse(d, wanted)) return;
    hn::StoreU(packed(index, wanted), d, to + taken);
    taken += hn::CountTrue(d, wanted);
  };
  const auto all = hn::FirstN(d, width);
  for (; i + width <= n; i += width) take(all);
  if (i < n) take(hn::FirstN(d, n - i));
  return taken;
}

// Narrows the keys down between two samples around the wanted rank, until few are left.
bool SelectHighest(std::span<const float> values, size_t need, std::vector<uint32_t>& out) {
  constexpr size_t kSamples = 64, kMargin = 10, kFew = 128, kPad = HWY_MAX_BYTES / 4 + 1;
  thread_local std::vector<uint32_t> keys, within[2];
  const size_t n = values.size();
  if (keys.size() < n + kPad) {
    keys.resize(n + kPad);
    for (auto& buffer : within) buffer.resize(n + kPad);
  }
  order_keys(values, keys.data());
  const uint32_t* candidates = keys.data();
  size_t count = n, left = need;  // the left-th highest of the candidates is wanted
  for (int turn = 0; count > kFew; turn ^= 1) {
    std::array<uint32_t, kSamples> samples;
    for (size_t i = 0; i < kSamples; ++i) samples[i] = candidates[i * count / kSamples];
    std::sort(samples.begin(), samples.end(), std::greater<>());
    const size_t rank = left * kSamples / count;
    const uint32_t high = rank < kMargin ? 0xFFFFFFFFu : samples[rank - kMargin];
    const uint32_t low = rank + kMargin >= kSamples ? 0 : samples[rank + kMargin];
    size_t above = 0;
    const size_t taken = take_between(candidates, count, low, high, within[turn].data(), above);
    if (left <= above || left > above + taken || taken == count) return false;
    left -= above;
    count = taken;
    candidates = within[turn].data();
  }
  std::array<uint32_t, kFew> few;
  std::copy_n(candidates, count, few.begin());
  const auto wanted = few.begin() + static_cast<ptrdiff_t>(left - 1);
  std::nth_element(few.begin(), wanted, few.begin() + static_cast<ptrdiff_t>(count),
                   std::greater<>());
  const uint32_t limit = *wanted;
  // Of those equal to the limit, all of which are candidates, the first `equal` are taken.
  size_t equal = left, equals = 0;
  for (size_t i = 0; i < count; ++i) {
    equal -= few[i] > limit ? 1 : 0;
    equals += few[i] == limit ? 1 : 0;
  }
  size_t equal_end = equal == equals ? n : 0;
  for (; equal < equals && equal > 0; ++equal_end) equal -= keys[equal_end] == limit ? 1 : 0;
  const size_t at = out.size();
  out.resize(at + need + kPad);
  take_indices(keys.data(), n, limit, equal_end, out.data() + at);
  out.resize(at + need);
  return true;
}

}  // namespace model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace model {

HWY_EXPORT(ScoreKeysF32);
HWY_EXPORT(ScoreKeysBf16);
HWY_EXPORT(SelectHighest);

void score_keys(const IndexQuery& query, const float* panel, float* out) {
  HWY_DYNAMIC_DISPATCH(ScoreKeysF32)(query, panel, out);
}
void score_keys(const IndexQuery& query, const uint16_t* panel, float* out) {
  HWY_DYNAMIC_DISPATCH(ScoreKeysBf16)(query, panel, out);
}

void select_highest_fast(std::span<const float> values, size_t need, std::vector<uint32_t>& out) {
  constexpr size_t kFew = 256;
  const bool few = need == 0 || need >= values.size() || values.size() < kFew;
  if (few || !HWY_DYNAMIC_DISPATCH(SelectHighest)(values, need, out))
    select_highest(values, need, out);
}

}  // namespace model
#endif  // HWY_ONCE
