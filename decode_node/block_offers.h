// BlockOffers: the blocks that decode steps fill go to the kvstores, so that the next turn of a
// chat finds the whole history. Their bits are those that prefill would make of the same tokens
// (docs/NUMERICS.md). What a step has filled is noted at its end and copied while the next one
// computes; full blocks do not change any more, and they stay until they are copied
// (Sequence::offering). Blocks for which the outbox has no room are never stored.
#pragma once
#include <deque>

#include "decode_node/sequence.h"
#include "node/store_outbox.h"
#include "node/store_sites.h"

namespace decode {

class BlockOffers {
 public:
  // Between steps: notes the full blocks that have not been offered and have final KV in all layers
  // (final_slots()).
  void note(Sequence& sequence);
  bool noted() const { return !noted_.empty(); }
  // Copies the noted blocks of one sequence. It is to be told offered() (sequence_table.h).
  // REQUIRES: noted()
  Sequence& hand_over(actor::Context& ctx, model::KvPool& pool, const model::Shape& shape);
  void view_changed(const node::View& view);
  void clear() { outbox_.clear(); }
  size_t pending() const { return outbox_.pending() + noted_.size(); }
  const node::StoreCounters& counters() const { return outbox_.counters(); }

 private:
  struct Noted {
    Sequence* sequence;
    uint32_t full;  // blocks
  };
  std::deque<Noted> noted_;
  node::StoreSites sites_;
  node::StoreOutbox outbox_;
};

}  // namespace decode
