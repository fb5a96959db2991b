#include "proto/request.h"

namespace proto {

base::Hash128 kv_digest(uint32_t layer, uint32_t token_begin, base::ByteView rows) {
  const base::Hash128 place{token_begin, layer};
  return base::hash_chain(place, rows);
}

base::Hash128 kv_chain(const base::Hash128& chain, const base::Hash128& digest) {
  return base::hash_chain(chain, std::as_bytes(std::span(&digest, 1)));
}

base::Hash128 sequence_digest(const SequenceKv& message, base::ByteView rows) {
  const uint64_t chunk = uint64_t{message.token_begin} << 32 | message.token_count;
  const base::Hash128 place{chunk, uint64_t{message.layer} << 32 | message.part};
  return base::hash_chain(place, rows);
}

}  // namespace proto
