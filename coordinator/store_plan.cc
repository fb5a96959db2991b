#include "coordinator/store_plan.h"

#include <algorithm>

#include "base/check.h"
#include "model/kv_pool.h"

namespace coordinator {

using base::kBlocksOfGroup;
using model::kBlockTokens;

namespace {

constexpr size_t kAskedLeast = 2;

size_t groups_of(size_t blocks) { return (blocks + kBlocksOfGroup - 1) / kBlocksOfGroup; }

}  // namespace

StorePlan::StorePlan(const Facts& facts, const node::StoreSites& stores,
                     std::span<const size_t> copies)
    : turn_(facts.turn) {
  const std::span<const base::Hash128> keys(facts.keys);
  CHECK(facts.tokens.size() >= keys.size() * kBlockTokens, "{} blocks of {} tokens", keys.size(),
        facts.tokens.size());
  for (size_t first = 0; first < keys.size(); first += kBlocksOfGroup) {
    const size_t at = groups_.size();
    Group& group = groups_.emplace_back();
    group.blocks = static_cast<uint32_t>(std::min(kBlocksOfGroup, keys.size() - first));
    if (at < copies.size()) group.owners = std::max<size_t>(copies[at], 1);
    const base::Hash128& parent = first == 0 ? facts.root : keys[first - 1];
    const auto tokens = facts.tokens.subspan(first * kBlockTokens, group.blocks * kBlockTokens);
    for (const NodeId store : stores.of(keys[first], std::max(group.owners, kAskedLeast))) {
      group.asked.push_back({store});
      proto::LookupPrefix& question = questions_[store];
      std::vector<std::pair<size_t, size_t>>& runs = runs_[store];
      const bool follows = !runs.empty() && runs.back().first + runs.back().second == at;
      if (!follows) {
        runs.emplace_back(at, 0);
        question.runs.push_back({0, parent});
      }
      ++runs.back().second;
      question.runs.back().blocks += group.blocks;
      const auto of_group = keys.subspan(first, group.blocks);
      question.keys.insert(question.keys.end(), of_group.begin(), of_group.end());
      question.tokens.insert(question.tokens.end(), tokens.begin(), tokens.end());
    }
  }
  for (auto& [store, question] : questions_) question.parent = question.runs.front().parent;
  open_ = questions_.size();
}

void StorePlan::close(NodeId store, const proto::PrefixFound* found) {
  const auto asked = runs_.find(store);
  if (asked == runs_.end()) return;
  const auto runs = std::move(asked->second);
  runs_.erase(asked);
  --open_;
  if (found == nullptr) return;
  for (size_t i = 0; i < runs.size(); ++i) {
    uint32_t left = i < found->runs.size() ? found->runs[i] : i == 0 ? found->blocks : 0;
    for (size_t at = runs[i].first; at < runs[i].first + runs[i].second; ++at) {
      Group& group = groups_[at];
      const auto me = std::ranges::find(group.asked, store, &Asked::store);
      me->found = std::min(left, group.blocks);
      me->heard = true;
      left -= me->found;
      if (me->found < group.blocks) left = 0;
    }
  }
}

uint32_t StorePlan::most(const Group& group) const {
  uint32_t most = 0;
  for (const Asked& asked : group.asked) most = std::max(most, asked.found);
  return most;
}

uint32_t StorePlan::blocks() const {
  uint32_t blocks = 0;
  for (const Group& group : groups_) {
    const uint32_t found = most(group);
    blocks += found;
    if (found < group.blocks) break;
  }
  return blocks;
}

const StorePlan::Asked& StorePlan::source(size_t at) const {
  const Group& group = groups_[at];
  std::vector<const Asked*> best;
  for (const Asked& asked : group.asked) {
    if (asked.found == most(group)) best.push_back(&asked);
  }
  return *best[(turn_ + at) % best.size()];
}

std::vector<NodeId> StorePlan::sources(uint32_t blocks) const {
  std::vector<NodeId> stores;
  for (size_t at = 0; at < groups_of(blocks); ++at) stores.push_back(source(at).store);
  return stores;
}

// One that was silent is left alone.
std::vector<NodeId> StorePlan::copy_to(uint32_t blocks) const {
  std::vector<NodeId> stores(groups_of(blocks));
  for (size_t at = 0; at < stores.size(); ++at) {
    const Group& group = groups_[at];
    for (size_t i = 0; i < std::min(group.owners, group.asked.size()); ++i) {
      const Asked& owner = group.asked[i];
      if (owner.heard && owner.found < most(group)) {
        stores[at] = owner.store;
        break;
      }
    }
  }
  return stores;
}

}  // namespace coordinator
