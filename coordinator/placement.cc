#include "coordinator/placement.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <tuple>

namespace coordinator {

namespace {

template <class Key>
size_t least_by(const std::vector<RankLoad>& ranks, Key key) {
  const auto least =
      std::min_element(ranks.begin(), ranks.end(),
                       [&](const RankLoad& a, const RankLoad& b) { return key(a) < key(b); });
  return static_cast<size_t>(least - ranks.begin());
}

// KV memory is what runs out first and what forces requests to wait: the smallest share of blocks
// taken, then the fewest requests. Ranks that have not told their size compare by requests.
size_t kv_aware(const std::vector<RankLoad>& ranks, const PlacementRequest& request) {
  return least_by(ranks, [&](const RankLoad& r) {
    const uint64_t taken = r.blocks_held + request.blocks;
    const uint64_t share = r.blocks_total == 0 ? 0 : taken * 1'000'000 / r.blocks_total;
    return std::tuple(share, r.requests, r.rank);
  });
}

size_t least_loaded(const std::vector<RankLoad>& ranks, const PlacementRequest&) {
  return least_by(
      ranks, [](const RankLoad& r) { return std::tuple(r.requests, ~r.blocks_free(), r.rank); });
}

size_t round_robin(const std::vector<RankLoad>& ranks, const PlacementRequest& request) {
  return static_cast<size_t>(request.turn % ranks.size());
}

size_t at_random(const std::vector<RankLoad>& ranks, const PlacementRequest& request) {
  return static_cast<size_t>(request.draw % ranks.size());
}

constexpr std::array<PolicyEntry, 4> kPolicies = {{
    {"kv_aware", kv_aware, false},
    {"least_loaded", least_loaded, false},
    {"round_robin", round_robin, false},
    {"random", at_random, true},
}};

}  // namespace

const PolicyEntry* find_policy(std::string_view name) {
  for (const PolicyEntry& entry : kPolicies) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

PlaceAnswer place(const PlacementView& view, const PlacementRequest& request, Policy policy) {
  PlaceAnswer answer;
  if (view.ranks.empty()) return answer;
  bool fits_stages = true;
  size_t ranks_of_stage = SIZE_MAX;
  for (const auto& stage : view.stages) ranks_of_stage = std::min(ranks_of_stage, stage.size());
  if (ranks_of_stage == 0 || view.stages.empty()) return answer;
  answer.placement.sequence_ranks = static_cast<uint32_t>(ranks_of_stage);
  for (const auto& stage : view.stages) {
    for (const StageLoad& rank : std::span(stage).first(ranks_of_stage)) {
      answer.placement.stages.push_back(rank.node);
      const uint32_t total = rank.blocks_total;
      fits_stages = fits_stages && (total == 0 || request.prefill_blocks <= total);
    }
  }
  const uint32_t longest = std::max(request.blocks, request.longest);
  const auto fits = [&](const RankLoad& r) {
    return r.blocks_total == 0 || longest <= r.blocks_total;
  };
  const bool fits_a_rank = std::ranges::any_of(view.ranks, fits);
  if (!fits_stages || !fits_a_rank) return {PlaceVerdict::kNeverFits, {}};

  std::vector<RankLoad> roomy, preferred;
  for (const RankLoad& rank : view.ranks) {
    if (!fits(rank) || !rank.has_room(request.blocks)) continue;
    roomy.push_back(rank);
    const auto& avoid = request.avoid;
    if (std::find(avoid.begin(), avoid.end(), rank.node) == avoid.end()) preferred.push_back(rank);
  }
  if (roomy.empty()) return {PlaceVerdict::kNoRoom, {}};
  const std::vector<RankLoad>& ranks = preferred.empty() ? roomy : preferred;
  answer.verdict = PlaceVerdict::kPlaced;
  answer.placement.decode = ranks[policy(ranks, request)].node;
  return answer;
}

}  // namespace coordinator
