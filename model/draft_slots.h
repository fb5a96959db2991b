// KV rows by token, as they travel and are stored. In a layer of the model, slot p is the row of
// position p. In the drafting block's layer (shape.layers) slot p is the row of position p − 1,
// which is made of the hidden row p − 1 and of token p: so the slots of a sequence of T tokens are
// known when its tokens are, and those of a block when the block's are. Slot 0 there is zero, and
// so is in every slot the place of attention 1, which the block has none of. Where `kv` begins
// later (kv_split.h), the row before its first is not taken in.
#pragma once
#include "base/bytes.h"
#include "model/engine.h"

namespace model {

// How many leading slots of a layer have their row in the first `blocks` blocks.
uint32_t slots_in_blocks(const Shape& shape, uint32_t layer, uint32_t blocks);
// How many leading blocks have all their rows, in every layer, in the first `slots` slots: with a
// drafting block the last row of a block is the first slot of the next.
uint32_t blocks_in_slots(const Shape& shape, uint32_t slots);
// Slots [begin, begin + count) of a layer, packed. out / in: count × shape.kv_row_bytes.
void copy_slots_out(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                    uint32_t count, std::byte* out);
base::Blob slots_of(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                    uint32_t count);
void copy_slots_in(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                   uint32_t count, const std::byte* in);

}  // namespace model
