#include "model/bpe.h"

#include <algorithm>
#include <cstddef>
#include <queue>

namespace model {

using base::TokenId;

namespace {
// Up to here a plain scan for the best pair beats the queue.
constexpr size_t kShortPiece = 32;
}  // namespace

void Bpe::add_merge(TokenId left, TokenId right, TokenId merged) {
  rank_[uint64_t{left} << 32 | right] = static_cast<uint32_t>(merges_.size());
  merges_.push_back({left, right, merged});
}

uint32_t Bpe::rank_of(TokenId left, TokenId right) const {
  const auto found = rank_.find(uint64_t{left} << 32 | right);
  return found == rank_.end() ? kNone : found->second;
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>* out) const {
  if (!whole_.empty()) {
    const auto found = whole_.find(std::string(piece));
    if (found != whole_.end()) return out->push_back(found->second);
  }
  std::vector<TokenId> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) symbols.push_back(bytes_[static_cast<uint8_t>(c)]);
  if (symbols.size() <= kShortPiece)
    merge_short(&symbols);
  else
    merge_long(&symbols);
  out->insert(out->end(), symbols.begin(), symbols.end());
}

void Bpe::merge_short(std::vector<TokenId>* symbols) const {
  std::array<uint32_t, kShortPiece> ranks;  // of symbols i and i + 1
  size_t pairs = symbols->empty() ? 0 : symbols->size() - 1;
  for (size_t i = 0; i < pairs; ++i) ranks[i] = rank_of((*symbols)[i], (*symbols)[i + 1]);
  while (pairs > 0) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + pairs);
    if (*best == kNone) return;
    const auto i = static_cast<size_t>(best - ranks.begin());
    (*symbols)[i] = merges_[*best].merged;
    symbols->erase(symbols->begin() + static_cast<ptrdiff_t>(i) + 1);
    std::copy(ranks.begin() + i + 1, ranks.begin() + pairs, ranks.begin() + i);
    --pairs;
    if (i > 0) ranks[i - 1] = rank_of((*symbols)[i - 1], (*symbols)[i]);
    if (i < pairs) ranks[i] = rank_of((*symbols)[i], (*symbols)[i + 1]);
  }
}

void Bpe::merge_long(std::vector<TokenId>* symbols) const {
  // A doubly linked list over the symbols, and a queue of (rank, left position). An entry whose
  // pair has changed since is recognised by its merge and dropped.
  const auto size = static_cast<uint32_t>(symbols->size());
  std::vector<TokenId>& id = *symbols;
  std::vector<uint32_t> before(size), after(size);
  std::vector<uint64_t> first;
  const auto entry = [](uint32_t rank, uint32_t at) { return uint64_t{rank} << 32 | at; };
  for (uint32_t i = 0; i < size; ++i) {
    before[i] = i == 0 ? kNone : i - 1;
    after[i] = i + 1 == size ? kNone : i + 1;
    if (i + 1 == size) continue;
    if (const uint32_t rank = rank_of(id[i], id[i + 1]); rank != kNone)
      first.push_back(entry(rank, i));
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue(std::greater<>{},
                                                                             std::move(first));
  std::vector<bool> gone(size, false);
  const auto offer = [&](uint32_t at) {
    if (const uint32_t rank = rank_of(id[at], id[after[at]]); rank != kNone)
      queue.push(entry(rank, at));
  };
  while (!queue.empty()) {
    const Merge& merge = merges_[queue.top() >> 32];
    const auto at = static_cast<uint32_t>(queue.top());
    queue.pop();
    if (gone[at] || after[at] == kNone) continue;
    const uint32_t right = after[at];
    if (id[at] != merge.left || id[right] != merge.right) continue;
    id[at] = merge.merged;
    gone[right] = true;
    after[at] = after[right];
    if (after[at] != kNone) {
      before[after[at]] = at;
      offer(at);
    }
    if (before[at] != kNone) offer(before[at]);
  }
  uint32_t kept = 0;
  for (uint32_t i = 0; i < size; ++i)
    if (!gone[i]) id[kept++] = id[i];
  id.resize(kept);
}

}  // namespace model
