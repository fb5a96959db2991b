// place(view, request): which nodes carry an attempt. A pure function; the policies stand in one
// table in placement.cc.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace coordinator {

using base::NodeId;

// A ready decode rank as the scheduler sees it: what it has told, and what has been promised to it
// since.
struct RankLoad {
  NodeId node;
  uint32_t rank = 0;
  uint32_t requests = 0;      // placed there and not ended
  uint32_t blocks_total = 0;  // 0: not told yet
  uint64_t blocks_held = 0;   // by the placed requests, as far as their answers have grown
  bool has_room(uint32_t blocks) const {
    return blocks_total == 0 || blocks_held + blocks <= blocks_total;
  }
  bool could_have(uint32_t blocks) const { return blocks_total == 0 || blocks <= blocks_total; }
  uint64_t blocks_free() const {
    return blocks_total > blocks_held ? blocks_total - blocks_held : 0;
  }
};

struct StageLoad {
  NodeId node;
  uint32_t blocks_total = 0;  // 0: not told yet
};

struct PlacementView {
  std::vector<std::vector<StageLoad>> stages;  // the ready ranks of each stage
  std::vector<RankLoad> ranks;                 // ready ones, ascending rank
};

struct PlacementRequest {
  uint32_t blocks = 0;          // of 64 tokens, to be held from the start: on the rank
  uint32_t longest = 0;         // blocks that it may come to: the rank has as many
  uint32_t prefill_blocks = 0;  // for the tokens of the attempt: on each stage
  uint64_t turn = 0;            // counts placements (round_robin)
  uint64_t draw = 0;            // a random number (random)
  std::vector<NodeId> avoid =
      {};  // ranks that let an earlier attempt down: only if there is no other
  // KV-cache parallelism: how many ranks a sequence may be spread over, tokens of the attempt, and
  // positions of an attention span (model/kv_split.h).
  uint32_t kv_parallel = 1, tokens = 0, span = 0;
};

// Positions [begin, end) of the sequence, held by another rank than its owner.
struct PlacedShare {
  NodeId node;
  uint32_t begin = 0, end = 0;
  uint32_t blocks() const;
};

struct Placement {
  std::vector<NodeId> stages;   // the ranks of each stage, stage by stage
  uint32_t sequence_ranks = 1;  // of every stage: as many as the poorest has
  NodeId decode;
  std::vector<PlacedShare> shares;  // from position 0 on; the rest is the decode rank's

  // Blocks that each rank is to set aside, of a sequence of so many.
  std::vector<std::pair<NodeId, uint32_t>> promises(uint32_t blocks) const;
  bool holds(NodeId node) const;  // a share
};

enum class PlaceVerdict : uint8_t {
  kPlaced,
  kNotReady,   // a stage or every rank is missing
  kNoRoom,     // every rank is full now
  kNeverFits,  // larger than the ready ranks it may be spread over, or than a stage
};
struct PlaceAnswer {
  PlaceVerdict verdict = PlaceVerdict::kNotReady;
  Placement placement;
};

// A policy picks among ranks with room (never empty) and returns an index.
using Policy = size_t (*)(const std::vector<RankLoad>& ranks, const PlacementRequest& request);
struct PolicyEntry {
  std::string_view name;
  Policy pick;
  bool draws;  // wants PlacementRequest::draw
};
// Null when the name is unknown.
const PolicyEntry* find_policy(std::string_view name);

// On as many ranks as kv_parallel allows and the prompt can be cut for, or on fewer if so many have
// no room.
PlaceAnswer place(const PlacementView& view, const PlacementRequest& request, Policy policy);

}  // namespace coordinator
