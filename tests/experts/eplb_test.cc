#include "experts/eplb.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "base/rng.h"

namespace experts {
namespace {

struct Golden {
  std::string name;
  uint32_t groups = 1, nodes = 1;
  std::vector<float> loads;
  std::vector<uint32_t> experts, ranks;
  double balancedness = 0;
};

template <class T>
std::vector<T> values(const std::string& line, const std::string& label) {
  std::istringstream in(line);
  std::string word;
  in >> word;
  EXPECT_EQ(word, label);
  std::vector<T> out;
  for (T value; in >> value;) out.push_back(value);
  return out;
}

std::vector<Golden> goldens() {
  std::ifstream file(std::string(SERVAL_SOURCE_DIR) + "/tests/golden/eplb/vectors.txt");
  std::vector<Golden> all;
  std::string line;
  const auto next = [&] { return static_cast<bool>(std::getline(file, line)); };
  while (next()) {
    if (line.empty() || line[0] == '#') continue;
    Golden golden;
    std::istringstream(line) >> golden.name >> golden.groups >> golden.nodes;
    if (next()) golden.loads = values<float>(line, "loads");
    if (next()) golden.experts = values<uint32_t>(line, "experts");
    if (next()) golden.ranks = values<uint32_t>(line, "ranks");
    if (next()) golden.balancedness = values<double>(line, "balancedness").at(0);
    all.push_back(std::move(golden));
  }
  return all;
}

std::vector<uint16_t> narrow(const std::vector<uint32_t>& ids) { return {ids.begin(), ids.end()}; }

TEST(Eplb, GivesThePublishedPlacementsBitForBit) {
  const std::vector<Golden> all = goldens();
  ASSERT_EQ(all.size(), 4u);
  for (const Golden& golden : all) {
    const Topology topology{.slots = 16,
                            .devices = 8,
                            .groups = golden.groups,
                            .nodes = golden.nodes,
                            .distinct = false};
    const LayerPlan plan = balance_layer(golden.loads, topology);
    EXPECT_EQ(plan.expert, golden.experts) << golden.name;
    if (!golden.ranks.empty()) {
      EXPECT_EQ(plan.rank, golden.ranks) << golden.name;
    }
    const auto loads = device_loads(golden.loads, narrow(plan.expert), 8);
    EXPECT_NEAR(balancedness(loads), golden.balancedness, 0.00005) << golden.name;
  }
}

// The published global placements have an expert twice on a device (1 1; 8 8): a replica for
// nothing.
TEST(Eplb, ReplicasAreKeptApartWhereThePublishedAlgorithmDoesNot) {
  for (const Golden& golden : goldens()) {
    Topology topology{.slots = 16, .devices = 8, .groups = golden.groups, .nodes = golden.nodes};
    const LayerPlan plan = balance_layer(golden.loads, topology);
    for (uint32_t device = 0; device < 8; ++device) {
      EXPECT_NE(plan.expert[2 * device], plan.expert[2 * device + 1]) << golden.name;
    }
    const auto loads = device_loads(golden.loads, narrow(plan.expert), 8);
    EXPECT_GE(balancedness(loads), golden.balancedness - 0.005) << golden.name;
  }
}

TEST(Eplb, HeaviestItemsGoToTheLightestPackWithRoomAndTiesToTheLowestIndex) {
  const float weights[] = {1, 5, 5, 2, 2, 9};
  const Packing packing = pack_items(weights, 3);
  // 9 → 0; 5 → 1; 5 → 2; 2 → 1 (5 < 9, ties low); 2 → 2; 1 → 0.
  EXPECT_EQ(packing.pack, (std::vector<uint32_t>{0, 1, 2, 1, 2, 0}));
  EXPECT_EQ(packing.rank, (std::vector<uint32_t>{1, 0, 0, 1, 1, 0}));
}

TEST(Eplb, AsManyPacksAsItemsKeepTheirOrder) {
  const float weights[] = {1, 3, 2};
  EXPECT_EQ(pack_items(weights, 3).pack, (std::vector<uint32_t>{0, 1, 2}));
}

TEST(Eplb, FurtherSlotsGoToWhoHasMostToDoAReplica) {
  const float weights[] = {10, 30, 10};
  const Replicas made = replicate(weights, 6);
  EXPECT_EQ(made.expert, (std::vector<uint32_t>{0, 1, 2, 1, 1, 0}));  // 30, 15, then a tie at 10
  EXPECT_EQ(made.rank, (std::vector<uint32_t>{0, 0, 0, 1, 2, 1}));
  EXPECT_EQ(made.count, (std::vector<uint32_t>{2, 3, 1}));
  EXPECT_EQ(replicate(weights, 6, 2).count, (std::vector<uint32_t>{2, 2, 2}));
  EXPECT_EQ(replicate(weights, 7, 2).count, (std::vector<uint32_t>{2, 3, 2}));
}

TEST(Eplb, WithoutDistinctReplicasOneDeviceMayHaveAnExpertTwice) {
  const float loads[] = {100, 1, 1};
  const LayerPlan both = balance_layer(loads, {.slots = 4, .devices = 2, .distinct = true});
  EXPECT_EQ(both.count, (std::vector<uint32_t>{2, 1, 1}));
  EXPECT_NE(both.expert[0], both.expert[1]);
  EXPECT_NE(both.expert[2], both.expert[3]);
  const LayerPlan five = balance_layer(loads, {.slots = 6, .devices = 2, .distinct = false});
  EXPECT_EQ(five.count, (std::vector<uint32_t>{4, 1, 1}));
}

// Whatever the numbers: every expert has a slot, slots are full, ranks and counts fit, no device
// has an expert twice as long as it need not.
TEST(Eplb, PlansOfAnyShapeAreSound) {
  base::Rng rng(11);
  for (int round = 0; round < 2000; ++round) {
    const auto experts = static_cast<uint32_t>(1 + rng.below(40));
    Topology topology;
    topology.devices = static_cast<uint32_t>(1 + rng.below(9));
    const auto most = experts * (topology.devices - 1);
    topology.slots = experts + static_cast<uint32_t>(rng.below(std::min(most, 20u) + 1));
    topology.groups = static_cast<uint32_t>(1 + rng.below(4));
    topology.nodes = static_cast<uint32_t>(1 + rng.below(3));
    std::vector<float> loads(experts);
    const bool flat = rng.chance(0.1);
    for (float& load : loads) {
      load = flat ? 3.0f : static_cast<float>(rng.below(rng.chance(0.1) ? 10'000 : 20));
    }
    const LayerPlan plan = balance_layer(loads, topology);
    ASSERT_EQ(plan.expert.size(), topology.slots);
    std::vector<std::set<uint32_t>> ranks(experts);
    for (uint32_t slot = 0; slot < topology.slots; ++slot) {
      ASSERT_LT(plan.expert[slot], experts);
      EXPECT_TRUE(ranks[plan.expert[slot]].insert(plan.rank[slot]).second);
    }
    for (uint32_t expert = 0; expert < experts; ++expert) {
      ASSERT_GE(plan.count[expert], 1u);
      ASSERT_EQ(ranks[expert].size(), plan.count[expert]);
      EXPECT_EQ(*ranks[expert].rbegin(), plan.count[expert] - 1);
    }
    const bool hierarchical =
        topology.groups % topology.nodes == 0 && experts % topology.groups == 0 &&
        topology.slots % topology.nodes == 0 && topology.devices % topology.nodes == 0;
    const uint32_t nodes = hierarchical ? topology.nodes : 1;
    const bool avoidable = topology.slots <= experts / nodes * topology.devices;
    for (uint32_t device = 0; device < topology.devices; ++device) {
      std::set<uint32_t> seen;
      const uint32_t end = first_of_pack(device + 1, topology.devices, topology.slots);
      for (uint32_t slot = first_of_pack(device, topology.devices, topology.slots); slot < end;
           ++slot) {
        const bool fresh = seen.insert(plan.expert[slot]).second;
        EXPECT_TRUE(fresh || !avoidable)
            << "round " << round << ": expert " << plan.expert[slot] << " twice on " << device;
      }
    }
    const LayerPlan again = balance_layer(loads, topology);
    EXPECT_EQ(plan.expert, again.expert);
    EXPECT_EQ(plan.rank, again.rank);
  }
}

TEST(Eplb, KeepingReplicasApartCostsNoBalance) {
  base::Rng rng(3);
  double kept = 0, published = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<float> loads(32);
    for (float& load : loads) load = static_cast<float>(rng.below(rng.chance(0.2) ? 1000 : 100));
    for (const bool distinct : {true, false}) {
      const LayerPlan plan =
          balance_layer(loads, {.slots = 40, .devices = 4, .distinct = distinct});
      const double is = balancedness(device_loads(loads, narrow(plan.expert), 4));
      (distinct ? kept : published) += is / 200;
    }
  }
  EXPECT_GE(kept, published - 0.005);
  EXPECT_GE(kept, 0.95);
}

TEST(Eplb, WithoutLoadEverythingIsBalanced) {
  EXPECT_EQ(balancedness(std::vector<double>{0, 0}), 1);
  EXPECT_EQ(balancedness(std::vector<double>{3, 1}), 2.0 / 3);
}

}  // namespace
}  // namespace experts
