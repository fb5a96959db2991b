// How a sequence's KV is cut for several ranks (KV-cache parallelism). The unit is the attention
// span: a rank's share is an aligned subtree of the tree over span indices by which partials merge
// (docs/NUMERICS.md, "Attention"), so it answers with one partial, which is a node of that tree,
// and the bits are those of one rank. Pure.
#pragma once
#include <cstdint>
#include <vector>

#include "model/kv_pool.h"

namespace model {

// What the peers of the owner hold of a prompt of `tokens`: at most ranks − 1 shares of one size,
// from position 0 on without gaps; the rest, with at least a block of the prompt and all that
// follows, is the owner's. The size is the one that leaves the largest share smallest, of equals
// the smaller. Empty where the prompt is too short.
std::vector<KvRange> kv_split(uint32_t tokens, uint32_t span, uint32_t ranks);

// [begin, end) as aligned subtrees, in order; the last may lack spans at its end.
// REQUIRES: begin is a multiple of span
std::vector<KvRange> span_subtrees(KvRange range, uint32_t span);

// Whether the range is such a subtree, whole, of whole blocks.
bool is_share(KvRange range, uint32_t span);

}  // namespace model
