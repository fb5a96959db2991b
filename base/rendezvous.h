// Rendezvous hashing: which of several nodes hold a key. Every node has a score for a key, the best
// scores win. When a node joins or leaves only the keys that it wins or won move, 1/n of them; no
// table is kept. Pure integer arithmetic: everybody who knows the same nodes places alike.
//
// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"

namespace base {

struct Site {
  uint64_t id = 0;      // site_id of its name
  uint32_t weight = 1;  // keys it gets, relative to others; 0: none
};
// By the name that a node keeps over restarts, so that a restarted store is asked for what it has.
uint64_t site_id(std::string_view name);

// Indices of the `count` sites that hold the key, the first the best; fewer when there are fewer
// with a weight. The first of two is the first of one: more copies move nothing.
std::vector<size_t> sites_of(const Hash128& key, std::span<const Site> sites, size_t count = 1);

// Blocks of a prompt are placed by groups, so that a fetch of following blocks goes to one store
// and a long prompt is spread over all: a block by the key of the first block of its group.
inline constexpr size_t kBlocksOfGroup = 16;
inline const Hash128& group_key(std::span<const Hash128> chain, size_t block) {
  return chain[block / kBlocksOfGroup * kBlocksOfGroup];
}

// Copies of a block that was asked for `uses` times in the last minute: one more with each
// four-fold use from kHotUses on, at most one a site.
inline constexpr uint32_t kHotUses = 16;
size_t copies_of(uint32_t uses, size_t sites);

}  // namespace base
