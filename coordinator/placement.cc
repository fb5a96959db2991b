#include "coordinator/placement.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <tuple>

#include "model/kv_split.h"

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

namespace {

uint32_t blocks_of(const model::KvRange& share) { return share.count() / model::kBlockTokens; }

// Whether empty ranks could take these.
bool ever_fits(const PlacementView& view, std::vector<uint32_t> needs) {
  std::vector<uint32_t> totals;
  for (const RankLoad& rank : view.ranks)
    totals.push_back(rank.blocks_total == 0 ? UINT32_MAX : rank.blocks_total);
  std::ranges::sort(needs, std::greater());
  std::ranges::sort(totals, std::greater());
  for (size_t i = 0; i < needs.size(); ++i)
    if (i >= totals.size() || needs[i] > totals[i]) return false;
  return true;
}

// Those with room; of them those that are not avoided, where there is one.
std::vector<RankLoad> eligible(const std::vector<RankLoad>& ranks,
                               const PlacementRequest& request) {
  std::vector<RankLoad> roomy, preferred;
  for (const RankLoad& rank : ranks) {
    if (!rank.could_have(request.longest) || !rank.has_room(request.blocks)) continue;
    roomy.push_back(rank);
    const auto& avoid = request.avoid;
    if (std::find(avoid.begin(), avoid.end(), rank.node) == avoid.end()) preferred.push_back(rank);
  }
  return preferred.empty() ? roomy : preferred;
}

// The owner by the policy, the holders of the shares where most memory is left.
PlaceVerdict spread(const PlacementView& view, PlacementRequest request, Policy policy,
                    const std::vector<model::KvRange>& shares, Placement& placement) {
  const uint32_t first = shares.empty() ? 0 : shares.back().end / model::kBlockTokens;
  request.longest = std::max(request.blocks, request.longest);
  request.longest -= std::min(first, request.longest);
  if (!shares.empty()) request.blocks = request.longest;  // all from the start (RequestRun)
  std::vector<uint32_t> needs{request.longest};
  for (const model::KvRange& share : shares) needs.push_back(blocks_of(share));
  if (!ever_fits(view, std::move(needs))) return PlaceVerdict::kNeverFits;

  std::vector<RankLoad> left = view.ranks;
  const auto take = [&](Policy pick) {
    const std::vector<RankLoad> ranks = eligible(left, request);
    if (ranks.empty()) return NodeId{};
    const NodeId node = ranks[pick(ranks, request)].node;
    std::erase_if(left, [node](const RankLoad& rank) { return rank.node == node; });
    return node;
  };
  placement.shares.clear();
  placement.decode = take(policy);
  if (!placement.decode) return PlaceVerdict::kNoRoom;
  for (const model::KvRange& share : shares) {
    request.blocks = request.longest = blocks_of(share);
    const NodeId node = take(kv_aware);
    if (!node) return PlaceVerdict::kNoRoom;
    placement.shares.push_back({node, share.begin, share.end});
  }
  return PlaceVerdict::kPlaced;
}

}  // namespace

uint32_t PlacedShare::blocks() const { return (end - begin) / model::kBlockTokens; }

std::vector<std::pair<NodeId, uint32_t>> Placement::promises(uint32_t blocks) const {
  std::vector<std::pair<NodeId, uint32_t>> out{{decode, blocks}};
  for (const PlacedShare& share : shares) {
    out.front().second -= share.blocks();
    out.emplace_back(share.node, share.blocks());
  }
  return out;
}

bool Placement::holds(NodeId node) const {
  return std::ranges::find(shares, node, &PlacedShare::node) != shares.end();
}

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
  if (!fits_stages) return {PlaceVerdict::kNeverFits, {}};
  const auto ranks = static_cast<uint32_t>(view.ranks.size());
  answer.verdict = PlaceVerdict::kNeverFits;
  for (uint32_t n = std::clamp(request.kv_parallel, 1u, ranks); n > 0; --n) {
    std::vector<model::KvRange> shares;
    if (n > 1) shares = model::kv_split(request.tokens, request.span, n);
    if (shares.size() + 1 < n) continue;  // fewer ranks hold the same
    const PlaceVerdict verdict = spread(view, request, policy, shares, answer.placement);
    if (verdict == PlaceVerdict::kPlaced) {
      answer.verdict = verdict;
      return answer;
    }
    if (verdict == PlaceVerdict::kNoRoom) answer.verdict = verdict;
  }
  return {answer.verdict, {}};
}

}  // namespace coordinator
