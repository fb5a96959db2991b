// BlockOffers: the blocks that decode steps fill go to the kvstores, so that the next turn of a
// chat finds the whole history. Their bits are those that prefill would make of the same tokens
// (docs/NUMERICS.md). The rows are copied once the step's tokens have left; blocks for which the
// outbox has no room are never stored.
#pragma once
#include "decode_node/sequence.h"
#include "node/store_outbox.h"
#include "node/store_sites.h"

namespace decode {

class BlockOffers {
 public:
  // Offers the full blocks that have not been and have final KV in all layers (final_slots()).
  void offer(actor::Context& ctx, Sequence& sequence, model::KvPool& pool,
             const model::Shape& shape);
  void view_changed(const node::View& view);
  void clear() { outbox_.clear(); }
  size_t pending() const { return outbox_.pending(); }
  const node::StoreCounters& counters() const { return outbox_.counters(); }

 private:
  node::StoreSites sites_;
  node::StoreOutbox outbox_;
};

}  // namespace decode
