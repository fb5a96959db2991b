#include "decode_node/held_blocks.h"

#include <algorithm>

#include "model/draft_slots.h"

namespace decode {

uint32_t common_blocks(const Sequence& holder, const proto::ReserveKv& wanted,
                       const model::Shape& shape) {
  if (holder.final_blocks == 0 || holder.block_root == base::Hash128{}) return 0;
  if (!holder.away.empty() || !wanted.shares.empty()) return 0;  // what leads is elsewhere
  if (holder.block_root != wanted.block_root) return 0;
  const auto [end, ignored] = std::ranges::mismatch(holder.tokens, wanted.tokens);
  const auto common = static_cast<uint32_t>(end - holder.tokens.begin());
  return std::min(holder.final_blocks, model::blocks_in_slots(shape, common));
}

void SharedBlocks::share(std::span<const model::BlockId> blocks) {
  for (const model::BlockId block : blocks) ++others_[block], ++saved_;
}

void SharedBlocks::release(std::span<const model::BlockId> blocks) {
  std::vector<model::BlockId> free;
  for (const model::BlockId block : blocks) {
    const auto others = others_.find(block);
    if (others == others_.end()) {
      free.push_back(block);
      continue;
    }
    --saved_;
    if (--others->second == 0) others_.erase(others);
  }
  pool_.release(free);
}

}  // namespace decode
