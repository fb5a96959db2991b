#include "base/hash.h"

#define XXH_INLINE_ALL
#include <fmt/core.h>
#include <xxhash.h>

namespace base {

std::string Hash128::hex() const { return fmt::format("{:016x}{:016x}", high, low); }

Hash128 hash128(ByteView bytes) {
  const XXH128_hash_t h = XXH3_128bits(bytes.data(), bytes.size());
  return {h.low64, h.high64};
}

Hash128 hash128(std::string_view text) { return hash128(as_bytes(text)); }

Hash128 hash_chain(const Hash128& parent, ByteView bytes) {
  // The parent enters as 16 bytes, little endian, low word first, on every machine.
  unsigned char head[16];
  for (unsigned i = 0; i < 8; ++i) {
    head[i] = static_cast<unsigned char>(parent.low >> (8 * i));
    head[8 + i] = static_cast<unsigned char>(parent.high >> (8 * i));
  }
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, head, sizeof head);
  if (!bytes.empty()) XXH3_128bits_update(&state, bytes.data(), bytes.size());
  const XXH128_hash_t h = XXH3_128bits_digest(&state);
  return {h.low64, h.high64};
}

uint64_t hash64(ByteView bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

}  // namespace base
