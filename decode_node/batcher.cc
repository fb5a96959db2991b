#include "decode_node/batcher.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace decode {

void Batcher::choose(const std::map<uint64_t, Sequence*>& running, std::vector<Sequence*>& chosen) {
  const size_t rows = std::min<size_t>(running.size(), max_batch_);
  auto it = running.upper_bound(turn_);
  if (running.size() <= max_batch_) it = running.begin();
  for (size_t row = 0; row < rows; ++row) {
    if (it == running.end()) it = running.begin();
    turn_ = it->first;
    chosen.push_back(it->second);
    ++it;
  }
}

bool goes_before(const Sequence& a, const Sequence& b) {
  return std::tie(a.priority, a.key) < std::tie(b.priority, b.key);
}

Sequence* who_gives_way(std::span<Sequence* const> sequences) {
  Sequence* last = nullptr;
  size_t able = 0;
  for (Sequence* sequence : sequences) {
    if (sequence->whole) continue;
    ++able;
    if (last == nullptr || goes_before(*last, *sequence)) last = sequence;
  }
  return able > 1 ? last : nullptr;
}

void trim_drafts(std::span<uint32_t> drafts, uint32_t rows) {
  const size_t room = rows > drafts.size() ? rows - drafts.size() : 0;
  size_t wanted = std::accumulate(drafts.begin(), drafts.end(), size_t{0});
  while (wanted > room) {
    const uint32_t most = *std::ranges::max_element(drafts);
    for (size_t i = drafts.size(); i-- > 0 && wanted > room;) {
      if (drafts[i] < most) continue;
      --drafts[i];
      --wanted;
    }
  }
}

}  // namespace decode
