// Hash128: XXH3-128, for digests and keys inside a trusted cluster (not a cryptographic hash).
#pragma once
#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/bytes.h"

namespace base {

struct Hash128 {
  uint64_t low = 0, high = 0;
  auto operator<=>(const Hash128&) const = default;
  std::string hex() const;  // 32 digits
};

Hash128 hash128(ByteView bytes);
Hash128 hash128(std::string_view text);
// Chained: the hash of `parent` followed by `bytes`. hash_chain(hash_chain(a, x), y) names the
// sequence a, x, y.
Hash128 hash_chain(const Hash128& parent, ByteView bytes);
uint64_t hash64(ByteView bytes, uint64_t seed = 0);

}  // namespace base

template <>
struct std::hash<base::Hash128> {
  size_t operator()(const base::Hash128& h) const noexcept { return static_cast<size_t>(h.low); }
};
