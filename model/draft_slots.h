// KV rows by token, as they travel and are stored. In a layer of the model, slot p is the row of
// position p. In the drafting block's layer (shape.layers) slot p is the row of position p − 1,
// which is made of the hidden row p − 1 and of token p: so the slots of a sequence of T tokens are
// known when its tokens are, and those of a block when the block's are. Slot 0 there is zero, and
// so is in every slot the place of attention 1, which the block has none of. Where `kv` begins
// later (kv_split.h), the row before its first is not taken in.
#pragma once
#include "model/engine.h"

namespace model {

// Slots [begin, begin + count) of a layer, packed. out / in: count × shape.kv_row_bytes.
void copy_slots_out(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                    uint32_t count, std::byte* out);
void copy_slots_in(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                   uint32_t count, const std::byte* in);

}  // namespace model
