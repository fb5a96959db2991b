#include "kvstore/eviction.h"

#include <algorithm>
#include <array>

namespace kvstore {

namespace {

double lru(const Use& use) { return static_cast<double>(use.now); }

// Dynamic aging: a newcomer starts at the level of what is being evicted, so that what was popular
// once and is no more leaves in the end.
double lfu(const Use& use) { return use.floor + use.uses; }

// GreedyDual with the cost of computing the block anew (Cherkasova, "Improving WWW proxies
// performance with greedy-dual-size-frequency caching policy", HPL-98-69).
double cost_aware(const Use& use) {
  return use.floor + use.uses * recompute_cost(std::max(use.depth, use.chain));
}

constexpr std::array<Policy, 3> kPolicies = {{
    {"lru", "the block unused for longest leaves first", lru},
    {"lfu", "the block found by the fewest lookups leaves first, with aging", lfu},
    {"cost_aware", "the block whose recomputation times reuse is least leaves first", cost_aware},
}};

}  // namespace

std::span<const Policy> policies() { return kPolicies; }

const Policy* find_policy(std::string_view name) {
  const auto at = std::find_if(kPolicies.begin(), kPolicies.end(),
                               [name](const Policy& policy) { return policy.name == name; });
  return at == kPolicies.end() ? nullptr : &*at;
}

double recompute_cost(uint32_t depth) { return 1 + depth / kDepthOfEqualCost; }

}  // namespace kvstore
