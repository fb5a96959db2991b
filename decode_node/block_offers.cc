#include "decode_node/block_offers.h"

#include "decode_node/drafter.h"
#include "model/draft_slots.h"

namespace decode {

using model::kBlockTokens;

void BlockOffers::view_changed(const node::View& view) {
  sites_ = node::stores_in(view);
  outbox_.view_changed(view);
}

void BlockOffers::note(Sequence& sequence) {
  const uint32_t full = final_slots(sequence) / kBlockTokens;
  if (sequence.stored_blocks >= full) return;
  if (sequence.block_root == base::Hash128{} || sites_.size() == 0) {
    sequence.stored_blocks = full;
    return;
  }
  const auto same = [&](const Noted& noted) { return noted.sequence == &sequence; };
  std::erase_if(noted_, same);
  noted_.push_back({&sequence, full});
  sequence.offering = true;
}

Sequence& BlockOffers::hand_over(actor::Context& ctx, model::KvPool& pool,
                                 const model::Shape& shape) {
  const auto [noted, full] = noted_.front();
  noted_.pop_front();
  Sequence& sequence = *noted;
  const std::span<const TokenId> tokens(sequence.tokens);
  std::vector<base::Hash128>& keys = sequence.block_keys;
  while (keys.size() < full) {
    const base::Hash128& before = keys.empty() ? sequence.block_root : keys.back();
    keys.push_back(
        proto::block_key(before, tokens.subspan(keys.size() * kBlockTokens, kBlockTokens)));
  }
  const node::BlockChain chain{sequence.block_root, sequence.space, keys, tokens, kBlockTokens};
  const model::KvView kv = sequence.kv(pool);
  const uint32_t layers = pool.layers().count();
  for (uint32_t& at = sequence.stored_blocks; at < full; ++at) {
    if (sites_.size() == 0 || !outbox_.has_room(layers * pool.entry_bytes())) continue;
    const base::NodeId store = sites_.of(base::group_key(keys, at)).front();
    for (uint32_t layer = 0; layer < layers; ++layer) {
      base::Blob rows = model::slots_of(kv, shape, layer, at * kBlockTokens, kBlockTokens);
      outbox_.push(ctx, store, node::describe(chain, at, layer, layers), std::move(rows));
    }
  }
  return sequence;
}

}  // namespace decode
