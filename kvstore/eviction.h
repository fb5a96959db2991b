// Eviction: which block leaves when room is needed. A policy is a function that gives a block its
// priority when it is used; the block of the lowest priority leaves first. Of equal priorities the
// deepest block of a chain leaves first, for without the blocks before it a block is worth nothing;
// of equal depths the one unused for longest.
//
// A new policy is a function and a line in the table of eviction.cc. Pure and deterministic.
#pragma once
#include <cstdint>
#include <set>
#include <span>
#include <string_view>
#include <tuple>

#include "base/hash.h"

namespace kvstore {

// What a policy may know of a block at the moment of its use.
struct Use {
  uint64_t now = 0;    // uses of any block so far, this one included
  uint32_t uses = 1;   // of this block: its coming and every lookup that found it
  uint32_t depth = 0;  // blocks before it in its chain
  uint32_t chain = 0;  // blocks of the longest chain it was seen in; 0: not known
  double floor = 0;    // priority of the last block that left: what a new block competes with
};

struct Policy {
  const char* name;
  const char* what;
  double (*priority)(const Use&);
};
std::span<const Policy> policies();
// Null when there is none of that name.
const Policy* find_policy(std::string_view name);

// Relative cost of computing a block at `depth`: the linear part of a layer costs the same
// everywhere, attention grows with the position. kDepthOfEqualCost blocks deep the two are equal.
inline constexpr double kDepthOfEqualCost = 108;
double recompute_cost(uint32_t depth);

// A block's place among those that may leave, given by its last use.
struct Rank {
  double priority = 0;
  uint32_t depth = 0;
  uint64_t serial = 0;  // of the use
};

class EvictionOrder {
 public:
  void insert(const base::Hash128& key, const Rank& rank) { order_.insert(entry(key, rank)); }
  void erase(const base::Hash128& key, const Rank& rank) { order_.erase(entry(key, rank)); }
  bool empty() const { return order_.empty(); }
  size_t size() const { return order_.size(); }
  const base::Hash128& first() const { return std::get<3>(*order_.begin()); }

 private:
  using Entry = std::tuple<double, uint32_t, uint64_t, base::Hash128>;
  static Entry entry(const base::Hash128& key, const Rank& rank) {
    return {rank.priority, ~rank.depth, rank.serial, key};
  }
  std::set<Entry> order_;
};

}  // namespace kvstore
