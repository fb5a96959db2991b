#include "model/draft_slots.h"

#include <algorithm>

#include "base/made_blob.h"

namespace model {

uint32_t slots_in_blocks(const Shape& shape, uint32_t layer, uint32_t blocks) {
  if (blocks == 0) return 0;
  return blocks * kBlockTokens + (layer < shape.layers ? 0 : 1);
}

uint32_t blocks_in_slots(const Shape& shape, uint32_t slots) {
  if (slots == 0) return 0;
  return (slots - (shape.mtp_steps > 0 ? 1 : 0)) / kBlockTokens;
}

void copy_slots_out(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                    uint32_t count, std::byte* out) {
  if (layer < shape.layers) return copy_rows_out(kv, layer, begin, count, out);
  const size_t row_bytes = shape.kv_row_bytes, latent = shape.kv_latent_bytes;
  const std::byte* const end = out + count * row_bytes;
  if (begin == 0 && count > 0) {
    out = std::fill_n(out, row_bytes, std::byte{0});
    ++begin;
    --count;
  }
  if (count > 0) copy_rows_out(kv, layer, begin - 1, count, out);
  for (; out != end; out += row_bytes) std::fill_n(out + latent, latent, std::byte{0});
}

base::Blob slots_of(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                    uint32_t count) {
  return base::made_blob(size_t{count} * shape.kv_row_bytes, [&](std::byte* out) {
    copy_slots_out(kv, shape, layer, begin, count, out);
  });
}

void copy_slots_in(const KvView& kv, const Shape& shape, uint32_t layer, uint32_t begin,
                   uint32_t count, const std::byte* in) {
  if (layer < shape.layers) return copy_rows_in(kv, layer, begin, count, in);
  if (begin == kv.begin() && count > 0) {
    in += shape.kv_row_bytes;
    ++begin;
    --count;
  }
  if (count > 0) copy_rows_in(kv, layer, begin - 1, count, in);
}

}  // namespace model
