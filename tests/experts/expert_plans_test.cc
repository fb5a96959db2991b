// Placements, the tables rows are sent by, and a rank's side of the plan protocol.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/rng.h"
#include "experts/dispatch_table.h"
#include "experts/expert_placement.h"
#include "experts/load_window.h"
#include "experts/plan_state.h"

namespace experts {
namespace {

constexpr uint32_t kLayers = 3, kExperts = 8;

std::vector<NodeId> nodes(std::initializer_list<uint64_t> ids) {
  std::vector<NodeId> out;
  for (const uint64_t id : ids) out.push_back(NodeId{id});
  return out;
}

std::vector<float> skewed_loads(uint64_t seed) {
  base::Rng rng(seed);
  std::vector<float> loads(size_t{kLayers} * kExperts);
  for (float& load : loads) load = static_cast<float>(rng.below(rng.chance(0.2) ? 1000 : 50));
  return loads;
}

Placement plan_of(uint64_t epoch, std::vector<NodeId> ranks, uint32_t redundant = 2) {
  const Placement former = even_placement(ranks, kLayers, kExperts);
  Placement plan = plan_placement(skewed_loads(epoch), std::move(ranks), redundant, former);
  plan.epoch = epoch;
  return plan;
}

actor::Incoming<proto::ExpertPlan> told(proto::ExpertPlan::Phase phase, const Placement& plan) {
  actor::Incoming<proto::ExpertPlan> in;
  in.msg.phase = phase;
  in.msg.epoch = plan.epoch;
  in.msg.slots = plan.slots;
  in.msg.ranks = plan.ranks;
  in.blobs = {to_blob(plan)};
  in.msg.digest = base::hash128(in.blobs[0].view());
  return in;
}

TEST(Placement, WithoutAPlanSharesAreThoseOfTheOwners) {
  for (const uint32_t ranks : {1u, 2u, 3u, 5u, 11u}) {
    std::vector<NodeId> ids;
    for (uint64_t i = 0; i < ranks; ++i) ids.push_back(NodeId{i + 1});
    const Placement even = even_placement(ids, kLayers, kExperts);
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      const auto share = even.share(1, rank);
      EXPECT_EQ(std::vector<uint16_t>(share.begin(), share.end()), share_of(rank, ranks, kExperts));
    }
  }
}

TEST(Placement, APlanHoldsEveryExpertAndSurvivesTheWire) {
  const Placement plan = plan_of(7, nodes({5, 6, 9}));
  EXPECT_EQ(plan.slots, kExperts + 2);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    const auto all = plan.layer(layer);
    EXPECT_EQ(std::set<uint16_t>(all.begin(), all.end()).size(), kExperts);
    for (uint32_t rank = 0; rank < 3; ++rank) {
      const auto share = plan.share(layer, rank);
      EXPECT_EQ(std::set<uint16_t>(share.begin(), share.end()).size(), share.size());
    }
  }
  const auto in = told(proto::ExpertPlan::Phase::kPrepare, plan);
  EXPECT_EQ(placement_of(in, kLayers, kExperts), plan);
}

TEST(Placement, TheSameLoadsMoveNothing) {
  const Placement plan = plan_of(7, nodes({5, 6, 9}));
  const Placement again = plan_placement(skewed_loads(7), plan.ranks, 2, plan);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (uint32_t rank = 0; rank < 3; ++rank) {
      const auto was = plan.share(layer, rank), is = again.share(layer, rank);
      EXPECT_EQ(std::set<uint16_t>(was.begin(), was.end()),
                std::set<uint16_t>(is.begin(), is.end()));
    }
  }
}

TEST(Placement, ARankThatComesBackTakesNobodysPlace) {
  const Placement plan = plan_of(7, nodes({5, 6, 9}));
  const Placement again = plan_placement(skewed_loads(7), nodes({5, 77, 9}), 2, plan);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (const auto& [was, is] : {std::pair{0u, 0u}, std::pair{2u, 2u}}) {
      const auto before = plan.share(layer, was), after = again.share(layer, is);
      EXPECT_EQ(std::set<uint16_t>(before.begin(), before.end()),
                std::set<uint16_t>(after.begin(), after.end()));
    }
  }
}

TEST(Placement, MoreCopiesThanRanksCanHoldApartAreNotMade) {
  const Placement plan = plan_of(3, nodes({1, 2}), /*redundant=*/100);
  EXPECT_EQ(plan.slots, 2 * kExperts);
  EXPECT_EQ(plan_of(3, nodes({1}), 4).slots, kExperts);
}

TEST(Placement, ReplicasBalanceWhatEvenSharesDoNot) {
  const std::vector<float> loads = skewed_loads(3);
  const Placement even = even_placement(nodes({1, 2, 3}), kLayers, kExperts);
  const Placement plan = plan_placement(loads, even.ranks, 4, even);
  EXPECT_LT(balancedness(even, loads), 0.7);
  EXPECT_GT(balancedness(plan, loads), 0.9);
}

TEST(Placement, TablesThatDoNotFitAreRefused) {
  const Placement plan = plan_of(7, nodes({5, 6}));
  const auto good = told(proto::ExpertPlan::Phase::kActive, plan);
  using Spoil = void (*)(actor::Incoming<proto::ExpertPlan>&);
  const auto redo = [](actor::Incoming<proto::ExpertPlan>& in, const std::vector<uint16_t>& table) {
    in.blobs = {base::Blob::of(std::span<const uint16_t>(table))};
    in.msg.digest = base::hash128(in.blobs[0].view());
  };
  const std::pair<const char*, Spoil> cases[] = {
      {"digest", [](auto& in) { in.msg.digest.low ^= 1; }},
      {"no blob", [](auto& in) { in.blobs.clear(); }},
      {"no ranks", [](auto& in) { in.msg.ranks.clear(); }},
      {"few slots", [](auto& in) { in.msg.slots = kExperts - 1; }},
      {"many slots", [](auto& in) { in.msg.slots = 0xFFFFFFFF; }},
      {"epoch of no plan", [](auto& in) { in.msg.epoch = 0; }},
  };
  for (const auto& [name, spoil] : cases) {
    auto bad = good;
    spoil(bad);
    EXPECT_FALSE(placement_of(bad, kLayers, kExperts)) << name;
  }
  auto table = plan.expert;
  table[3] = kExperts;
  auto bad = good;
  redo(bad, table);
  EXPECT_FALSE(placement_of(bad, kLayers, kExperts)) << "an expert that there is not";
  table = plan.expert;
  for (uint16_t& expert : table) expert = expert == 0 ? 1 : expert;
  redo(bad, table);
  EXPECT_FALSE(placement_of(bad, kLayers, kExperts)) << "an expert that nobody holds";
}

model::Shape shape_of(uint32_t topk) {
  model::Shape shape;
  shape.layers = kLayers;
  shape.hidden = 4;
  shape.experts = kExperts;
  shape.topk = topk;
  return shape;
}

TEST(DispatchTable, EachPairGoesToALivingHolderOrToTheOwnerAmongTheLiving) {
  base::Rng rng(9);
  for (int round = 0; round < 300; ++round) {
    const std::vector<NodeId> ranks = nodes({11, 12, 13, 14});
    const Placement plan = plan_of(1 + rng.below(50), ranks, static_cast<uint32_t>(rng.below(9)));
    const DispatchTable table(plan, ranks[rng.below(4)]);
    std::vector<NodeId> alive;
    for (const NodeId rank : ranks) {
      if (rng.chance(0.7)) alive.push_back(rank);
    }
    alive.push_back(NodeId{99});  // of no plan
    const model::Shape shape = shape_of(3);
    model::Pass pass;
    pass.tokens.resize(1 + rng.below(20));
    for (size_t i = 0; i < pass.tokens.size() * shape.topk; ++i)
      pass.expert_ids.push_back(static_cast<uint32_t>(rng.below(kExperts + 4)));
    const auto layer = static_cast<uint32_t>(rng.below(kLayers));
    const std::vector<uint32_t> slots = routed_slots(pass, shape);
    const std::vector<uint32_t> chosen = table.choose(layer, slots, pass, shape, alive);
    ASSERT_EQ(chosen.size(), slots.size());
    EXPECT_EQ(chosen, table.choose(layer, slots, pass, shape, alive));
    for (size_t i = 0; i < slots.size(); ++i) {
      const auto expert = static_cast<uint16_t>(pass.expert_ids[slots[i]]);
      const auto holds = [&](NodeId node) {
        const auto rank = plan.rank_of(node);
        return rank && std::ranges::find(plan.share(layer, *rank), expert) !=
                           plan.share(layer, *rank).end();
      };
      const bool held = std::ranges::any_of(alive, holds);
      if (held) {
        EXPECT_TRUE(holds(alive[chosen[i]]));
      } else {
        EXPECT_EQ(chosen[i], owner_of(expert, kExperts, static_cast<uint32_t>(alive.size())));
      }
    }
  }
}

TEST(DispatchTable, ReplicasShareThePairsOfAPass) {
  Placement plan = even_placement(nodes({1, 2}), 1, 2);  // expert 0 at 1, expert 1 at 2
  plan.epoch = 1;
  plan.slots = 4;
  plan.expert = {0, 1, 0, 1};  // both at both
  model::Shape shape = shape_of(1);
  shape.experts = 2;
  model::Pass pass;
  pass.tokens.resize(6);
  pass.expert_ids = {0, 0, 0, 0, 1, 1};
  const std::vector<uint32_t> slots = routed_slots(pass, shape);
  for (const uint64_t self : {1u, 2u}) {
    const DispatchTable table(plan, NodeId{self});
    const auto chosen = table.choose(0, slots, pass, shape, plan.ranks);
    EXPECT_EQ(std::ranges::count(chosen, 0u), 3);
    EXPECT_EQ(plan.ranks[chosen[0]], NodeId{self}) << "a tie goes to the rank itself";
  }
}

TEST(DispatchTable, AReplicaRelievesTheRankOfAnExpertThatHasOne) {
  Placement plan = even_placement(nodes({1, 2}), 1, 2);
  plan.epoch = 1;
  plan.slots = 3;
  plan.expert = {0, 1, 1};  // rank 1 has 0 and 1, rank 2 has 1
  model::Shape shape = shape_of(1);
  shape.experts = 2;
  model::Pass pass;
  pass.tokens.resize(4);
  pass.expert_ids = {1, 0, 1, 0};
  const DispatchTable table(plan, NodeId{1});
  EXPECT_EQ(table.choose(0, routed_slots(pass, shape), pass, shape, plan.ranks),
            (std::vector<uint32_t>{1, 0, 1, 0}));
}

TEST(LoadWindow, ForgetsWhatIsOlderThanTheWindow) {
  LoadWindow window(2, 3);
  window.routed(1, std::vector<uint32_t>{0, 2, 2, 5});  // 5: an identity expert
  window.computed(0, 7);
  const auto totals = [&] { return window.totals().to_vector<uint32_t>(); };
  EXPECT_EQ(totals(), (std::vector<uint32_t>{0, 0, 0, 7, 1, 0, 2, 0}));
  window.turn();
  window.routed(1, std::vector<uint32_t>{2});
  EXPECT_EQ(totals(), (std::vector<uint32_t>{0, 0, 0, 7, 1, 0, 3, 0}));
  for (uint32_t i = 0; i < LoadWindow::kParts - 1; ++i) window.turn();
  EXPECT_EQ(totals(), (std::vector<uint32_t>{0, 0, 0, 0, 0, 0, 1, 0}));
  window.turn();
  EXPECT_EQ(totals(), std::vector<uint32_t>(8, 0));
}

using Phase = proto::ExpertPlan::Phase;
using Taken = PlanState::Taken;

TEST(PlanState, APlanIsPreparedConfirmedAndActiveAtTheNextStep) {
  PlanState state(kLayers, kExperts);
  const Placement plan = plan_of(1, nodes({5, 6}));
  EXPECT_EQ(state.take(told(Phase::kPrepare, plan)), Taken::kChanged);
  EXPECT_EQ(state.held_epoch(), 1u);
  EXPECT_FALSE(state.step());
  EXPECT_EQ(state.take(told(Phase::kActive, plan)), Taken::kChanged);
  EXPECT_EQ(state.active_epoch(), 0u);
  EXPECT_TRUE(state.step());
  EXPECT_EQ(*state.active(), plan);
  EXPECT_FALSE(state.may_release());
  EXPECT_EQ(state.take(told(Phase::kSettled, plan)), Taken::kChanged);
  EXPECT_TRUE(state.may_release());
}

TEST(PlanState, MessagesAgainAndLateChangeNothing) {
  PlanState state(kLayers, kExperts);
  const Placement one = plan_of(1, nodes({5, 6})), two = plan_of(2, nodes({5, 6}));
  for (const Phase phase : {Phase::kPrepare, Phase::kActive}) state.take(told(phase, one));
  EXPECT_EQ(state.take(told(Phase::kPrepare, one)), Taken::kNothing);
  EXPECT_EQ(state.take(told(Phase::kActive, one)), Taken::kNothing);
  state.step();
  state.take(told(Phase::kPrepare, two));
  EXPECT_EQ(state.take(told(Phase::kAborted, two)), Taken::kChanged);
  EXPECT_EQ(state.take(told(Phase::kPrepare, two)), Taken::kNothing) << "overtaken by its end";
  EXPECT_EQ(state.held_epoch(), 1u);
  for (const Phase phase : {Phase::kPrepare, Phase::kActive, Phase::kAborted}) {
    EXPECT_EQ(state.take(told(phase, one)), Taken::kNothing);
  }
  EXPECT_EQ(state.take(told(Phase::kSettled, two)), Taken::kNothing) << "not active here yet";
  EXPECT_FALSE(state.step());
  EXPECT_EQ(*state.active(), one);
}

TEST(PlanState, ARankThatMissedAllOfAPlanTakesTheActiveOne) {
  PlanState state(kLayers, kExperts);
  const Placement plan = plan_of(4, nodes({5, 6}));
  EXPECT_EQ(state.take(told(Phase::kActive, plan)), Taken::kChanged);
  EXPECT_TRUE(state.step());
  auto corrupt = told(Phase::kActive, plan_of(5, nodes({5, 6})));
  corrupt.msg.digest.high ^= 1;
  EXPECT_EQ(state.take(corrupt), Taken::kCorrupt);
  EXPECT_EQ(state.held_epoch(), 4u);
}

TEST(PlanState, WantsTheSharesOfBothPlansAndStandsInForTheDead) {
  PlanState state(kLayers, kExperts);
  const Placement one = plan_of(1, nodes({5, 6}), 0), two = plan_of(2, nodes({5, 6}), 0);
  const NodeId self{5};
  const auto all = nodes({5, 6});
  const auto wants = [&](std::span<const NodeId> alive, PlanState::Duty duty) {
    return state.wanted(self, alive, duty);
  };
  const auto of = [&](const Placement& plan, uint32_t rank) {
    std::vector<bool> share(size_t{kLayers} * kExperts, false);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (const uint16_t expert : plan.share(layer, rank)) share[layer * kExperts + expert] = true;
    }
    return share;
  };
  EXPECT_EQ(wants(all, {0, 2}), of(even_placement(all, kLayers, kExperts), 0));
  state.take(told(Phase::kActive, one));
  state.step();
  EXPECT_EQ(wants(all, {0, 2}), of(one, 0));
  state.take(told(Phase::kPrepare, two));
  std::vector<bool> both = of(one, 0);
  const std::vector<bool> coming = of(two, 0);
  for (size_t i = 0; i < both.size(); ++i) both[i] = both[i] || coming[i];
  EXPECT_EQ(wants(all, {0, 2}), both);
  EXPECT_EQ(wants(nodes({5}), {0, 1}), std::vector<bool>(both.size(), true));
}

}  // namespace
}  // namespace experts
