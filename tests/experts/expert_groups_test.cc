#include "experts/expert_groups.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "experts/expert_service.h"

namespace experts {
namespace {

model::Shape shape_of(uint32_t experts, uint32_t topk) {
  model::Shape shape;
  shape.layers = 2;
  shape.hidden = 4;
  shape.experts = experts;
  shape.topk = topk;
  return shape;
}

TEST(ExpertGroups, SharesAreConsecutiveCoverAllExpertsAndDifferByOneAtMost) {
  for (uint32_t experts : {1u, 8u, 13u, 256u}) {
    for (uint32_t ranks : {1u, 2u, 3u, 5u}) {
      std::vector<uint16_t> all;
      size_t least = experts, most = 0;
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        const std::vector<uint16_t> share = share_of(rank, ranks, experts);
        for (uint16_t id : share) EXPECT_EQ(owner_of(id, experts, ranks), rank);
        all.insert(all.end(), share.begin(), share.end());
        least = std::min(least, share.size());
        most = std::max(most, share.size());
      }
      ASSERT_EQ(all.size(), experts);
      for (uint32_t id = 0; id < experts; ++id) EXPECT_EQ(all[id], id);
      EXPECT_LE(most - least, 1u);
    }
  }
}

TEST(ExpertGroups, APairGoesToItsOwnerWithItsRowOnceAndIdentityExpertsStay) {
  const model::Shape shape = shape_of(/*experts=*/8, /*topk=*/3);
  model::Pass pass;
  pass.tokens = {1, 1, 1};
  pass.expert_ids = {0, 1, 5, /**/ 8, 9, 10, /**/ 3, 7, 11};  // ids from 8 on are identity
  const std::vector<uint32_t> slots = routed_slots(pass, shape);
  EXPECT_EQ(slots, (std::vector<uint32_t>{0, 1, 2, 6, 7}));

  const NodeId ranks[] = {NodeId{50}, NodeId{40}};
  const auto groups = group_by_owner(slots, pass, shape, ranks);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].owner, NodeId{50});
  EXPECT_EQ(groups[0].rows, (std::vector<uint32_t>{0, 2}));
  EXPECT_EQ(groups[0].pair_rows, (std::vector<uint16_t>{0, 0, 1}));
  EXPECT_EQ(groups[0].pair_experts, (std::vector<uint16_t>{0, 1, 3}));
  EXPECT_EQ(groups[0].slots, (std::vector<uint32_t>{0, 1, 6}));
  EXPECT_EQ(groups[1].owner, NodeId{40});
  EXPECT_EQ(groups[1].rows, (std::vector<uint32_t>{0, 2}));
  EXPECT_EQ(groups[1].pair_experts, (std::vector<uint16_t>{5, 7}));
  EXPECT_EQ(groups[1].slots, (std::vector<uint32_t>{2, 7}));
}

TEST(ExpertGroups, ARankWithoutPairsIsNotAsked) {
  const model::Shape shape = shape_of(/*experts=*/9, /*topk=*/2);
  model::Pass pass;
  pass.tokens = {1};
  pass.expert_ids = {0, 8};
  const NodeId ranks[] = {NodeId{1}, NodeId{2}, NodeId{3}};
  const auto groups = group_by_owner(routed_slots(pass, shape), pass, shape, ranks);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].owner, NodeId{1});
  EXPECT_EQ(groups[1].owner, NodeId{3});
}

TEST(ExpertGroups, EveryPairIsInExactlyOneGroup) {
  base::Rng rng(5);
  for (int round = 0; round < 200; ++round) {
    const auto experts = static_cast<uint32_t>(1 + rng.below(40));
    const model::Shape shape = shape_of(experts, static_cast<uint32_t>(1 + rng.below(6)));
    model::Pass pass;
    pass.tokens.resize(1 + rng.below(20));
    for (size_t i = 0; i < pass.tokens.size() * shape.topk; ++i) {
      pass.expert_ids.push_back(static_cast<uint32_t>(rng.below(experts + 4)));
    }
    std::vector<NodeId> ranks(1 + rng.below(5));
    for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = NodeId{i + 10};
    std::vector<uint32_t> seen;
    for (const auto& group : group_by_owner(routed_slots(pass, shape), pass, shape, ranks)) {
      for (size_t i = 0; i < group.slots.size(); ++i) {
        const uint32_t slot = group.slots[i];
        seen.push_back(slot);
        EXPECT_EQ(group.pair_experts[i], pass.expert_ids[slot]);
        EXPECT_EQ(group.rows[group.pair_rows[i]], slot / shape.topk);
      }
    }
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, routed_slots(pass, shape));
  }
}

TEST(ExpertService, RefusesQuestionsThatDoNotFitTheModel) {
  const model::Shape shape = shape_of(/*experts=*/8, /*topk=*/2);
  const std::vector<float> x(2 * shape.hidden, 0.5f);
  actor::Incoming<proto::ExpertIn> good;
  good.msg.layer = 1;
  good.msg.rows = 2;
  good.msg.pair_rows = {0, 1, 1};
  good.msg.pair_experts = {7, 0, 3};
  good.blobs = {base::Blob::of(std::span<const float>(x))};
  good.msg.digest = base::hash128(good.blobs[0].view());
  EXPECT_TRUE(is_sound(good, shape, {1, 2}));

  using Spoil = void (*)(actor::Incoming<proto::ExpertIn>&);
  const std::pair<const char*, Spoil> cases[] = {
      {"layer", [](auto& in) { in.msg.layer = 2; }},
      {"layer of another stage", [](auto& in) { in.msg.layer = 0; }},
      {"no rows", [](auto& in) { in.msg.rows = 0; }},
      {"row count", [](auto& in) { in.msg.rows = 3; }},
      {"huge row count", [](auto& in) { in.msg.rows = 0xFFFFFFFF; }},
      {"row of a pair", [](auto& in) { in.msg.pair_rows[1] = 2; }},
      {"identity expert", [](auto& in) { in.msg.pair_experts[1] = 8; }},
      {"lists differ", [](auto& in) { in.msg.pair_experts.pop_back(); }},
      {"no pairs", [](auto& in) { in.msg.pair_rows.clear(), in.msg.pair_experts.clear(); }},
      {"too many pairs",
       [](auto& in) { in.msg.pair_rows.resize(5, 0), in.msg.pair_experts.resize(5, 0); }},
      {"no blob", [](auto& in) { in.blobs.clear(); }},
      {"two blobs", [](auto& in) { in.blobs.push_back(in.blobs[0]); }},
      {"digest", [](auto& in) { in.msg.digest.low ^= 1; }},
  };
  for (const auto& [name, spoil] : cases) {
    auto bad = good;
    spoil(bad);
    EXPECT_FALSE(is_sound(bad, shape, {1, 2})) << name;
  }
}

}  // namespace
}  // namespace experts
