#include "experts/expert_groups.h"

#include "base/check.h"

namespace experts {

uint32_t owner_of(uint32_t expert, uint32_t experts, uint32_t ranks) {
  return static_cast<uint32_t>(static_cast<uint64_t>(expert) * ranks / experts);
}

std::vector<uint16_t> share_of(uint32_t index, uint32_t ranks, uint32_t experts) {
  std::vector<uint16_t> share;
  for (uint32_t expert = 0; expert < experts; ++expert) {
    if (owner_of(expert, experts, ranks) == index) share.push_back(static_cast<uint16_t>(expert));
  }
  return share;
}

std::vector<uint32_t> routed_slots(const model::Pass& pass, const model::Shape& shape) {
  std::vector<uint32_t> slots;
  slots.reserve(pass.expert_ids.size());
  for (uint32_t slot = 0; slot < pass.expert_ids.size(); ++slot) {
    if (pass.expert_ids[slot] < shape.experts) slots.push_back(slot);
  }
  return slots;
}

std::vector<ExpertGroup> group_by_choice(std::span<const uint32_t> slots,
                                         std::span<const uint32_t> choice, const model::Pass& pass,
                                         const model::Shape& shape, std::span<const NodeId> ranks) {
  std::vector<ExpertGroup> groups(ranks.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    const uint32_t slot = slots[i], row = slot / shape.topk;
    CHECK(choice[i] < ranks.size(), "rank {} of {} was chosen", choice[i], ranks.size());
    ExpertGroup& group = groups[choice[i]];
    if (group.rows.empty() || group.rows.back() != row) group.rows.push_back(row);
    group.pair_rows.push_back(static_cast<uint16_t>(group.rows.size() - 1));
    group.pair_experts.push_back(static_cast<uint16_t>(pass.expert_ids[slot]));
    group.slots.push_back(slot);
  }
  for (size_t i = 0; i < groups.size(); ++i) groups[i].owner = ranks[i];
  std::erase_if(groups, [](const ExpertGroup& group) { return group.slots.empty(); });
  return groups;
}

std::vector<ExpertGroup> group_by_owner(std::span<const uint32_t> slots, const model::Pass& pass,
                                        const model::Shape& shape, std::span<const NodeId> ranks) {
  CHECK(!ranks.empty(), "somebody must own the experts");
  const auto count = static_cast<uint32_t>(ranks.size());
  std::vector<uint32_t> owners(slots.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    owners[i] = owner_of(pass.expert_ids[slots[i]], shape.experts, count);
  }
  return group_by_choice(slots, owners, pass, shape, ranks);
}

}  // namespace experts
