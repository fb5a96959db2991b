#include "model/kv_split.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace model {

std::vector<KvRange> kv_split(uint32_t tokens, uint32_t span, uint32_t ranks) {
  CHECK(span > 0, "spans have positions");
  std::vector<KvRange> shares;
  if (ranks < 2 || tokens < kBlockTokens) return shares;
  const uint64_t most = tokens - kBlockTokens;  // that peers may hold
  uint64_t best = tokens, size = 0, count = 0;
  for (uint64_t share = span; share <= most; share *= 2) {
    if (share % kBlockTokens != 0) continue;
    const uint64_t peers = std::min<uint64_t>(ranks - 1, most / share);
    const uint64_t largest = std::max(share, tokens - peers * share);
    if (largest >= best) continue;
    best = largest;
    size = share;
    count = peers;
  }
  for (uint64_t i = 0; i < count; ++i)
    shares.push_back({static_cast<uint32_t>(i * size), static_cast<uint32_t>((i + 1) * size)});
  return shares;
}

std::vector<KvRange> span_subtrees(KvRange range, uint32_t span) {
  CHECK(range.begin % span == 0, "a subtree from position {} of spans of {}", range.begin, span);
  std::vector<KvRange> out;
  uint64_t at = range.begin / span;
  const uint64_t last = (uint64_t{range.end} + span - 1) / span;
  while (at < last) {
    uint64_t size = std::bit_ceil(last - at);
    if (at > 0) size = std::min(size, uint64_t{1} << std::countr_zero(at));
    const uint64_t end = std::min<uint64_t>((at + size) * span, range.end);
    out.push_back({static_cast<uint32_t>(at * span), static_cast<uint32_t>(end)});
    at += size;
  }
  return out;
}

bool is_share(KvRange range, uint32_t span) {
  if (range.begin >= range.end || range.begin % kBlockTokens != 0) return false;
  if (range.count() % span != 0 || range.count() % kBlockTokens != 0) return false;
  return std::has_single_bit(range.count() / span) && range.begin % range.count() == 0;
}

}  // namespace model
